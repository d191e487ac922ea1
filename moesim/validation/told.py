"""What a case tells of its software where a law tells no releases or kernels apart: a note that says so."""

from __future__ import annotations

import re
from dataclasses import replace

from moesim import catalog
from moesim.costs.kernels import KernelTime
from moesim.validation.fields import Told

_VERSION = re.compile(r"v?\d[\w.+-]*")


def untold(found: KernelTime, op: Told, entry: str) -> KernelTime:
    """`found` with a note, as assumed, where `op` names a kernel or a release: calibration `entry` tells none apart."""
    named = {"kernel": op.kernel, "release": op.told_release}
    told = {what: str(name)[:80] for what, name in named.items() if name is not None}
    notes = [f"{what} {name} has no calibration: {entry} answered" for what, name in told.items()]
    if not notes:
        return found
    band = max(found.band, float(catalog.calibration(entry)["residual_datasheet"]["p90"]))
    return replace(found, basis="assumed", band=band, notes=(*found.notes, *notes))


def foreign(op: Told) -> list[str]:
    """Notes where an exchange names a kernel, or a release of another product than its library."""
    found = [
        f"release {str(text)[:80]} has no calibration: the law of library {op.library} answered"
        for text in (op.release, op.software, op.stack)
        if text is not None and not _own(str(text), str(op.library))
    ]
    if op.kernel is not None:
        found.append(f"kernel {str(op.kernel)[:80]} has no calibration: the law of library {op.library} answered")
    return found


def pooled(op: Told) -> list[str]:
    """Notes where an exchange names a release of its own library: the law was fitted on several of them together."""
    own = [str(text) for text in (op.release, op.software, op.stack) if text is not None]
    return [
        f"release {text[:80]}: releases of {op.library} are not told apart"
        for text in own
        if _own(text, str(op.library))
    ]


def _own(text: str, library: str) -> bool:
    """Whether a text is a version alone, or names the library."""
    words = re.findall(r"[a-z]{2,}", text.lower())
    return not words or words[0] in re.findall(r"[a-z]{2,}", library.lower()) or bool(_VERSION.fullmatch(text.strip()))
