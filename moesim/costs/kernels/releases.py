"""Whether a set of coefficients was fitted on the software release that is asked for, and how another one differs.

A release is told as "PRODUCT VERSION", by either part alone, or in any longer text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_PRODUCTS = {"tensorrtllm": "trtllm", "tensorrt": "trtllm", "trt": "trtllm", "trtllm": "trtllm"}
_SERVING = ("vllm", "sglang", "trtllm")
_VERSION = re.compile(r"v?(\d+(?:\.\w+)+)\b")
_UNTOLD = {"", "auto", "default", "none", "latest"}


class Release(NamedTuple):
    """`factor` on time; whether the release is `known`; a `note` where it is not the one fitted."""

    factor: float
    known: bool
    note: str


def answering(found: Mapping[str, Any], asked: str | None) -> Release:
    """What a fitted set says of the release `asked`: `release` is the one fitted, `releases` the factors of others."""
    told = " ".join(str(asked or "").split())[:80]
    if told.lower() in _UNTOLD:
        return Release(1.0, True, "")
    fitted = str(found.get("release", ""))
    if fitted and same(fitted, told):
        return Release(1.0, True, "")
    for name, factor in found.get("releases", {}).items():
        if same(str(name), told):
            return Release(float(factor), True, f"release {name}: {float(factor):g} times as long as {fitted}")
    answers = f"{fitted} answered" if fitted else "no release is told apart here"
    return Release(1.0, False, f"release {told} has no calibration: {answers}")


def product_of(kernel: str | None) -> str | None:
    """The product that a kernel's name begins with: "vllm_fused_moe" runs in vllm; None where it tells none."""
    first = re.split(r"[^a-z0-9]", str(kernel or "").lower())[0]
    return first if first in _SERVING else None


def same(fitted: str, told: str) -> bool:
    """Whether a text tells of this release: product and version agree as far as the text states them."""
    (product, version), (other, number) = _parts(fitted), _parts(told)
    if not other and not number:
        return False
    return other in ("", product) and number in ("", version)


def _parts(text: str) -> tuple[str, str]:
    """Product and version of a text, "" where it has none."""
    plain = text.lower()
    match = _VERSION.search(plain)
    words = re.findall(r"[a-z]+", (plain[: match.start()] if match else plain).replace("_", "").replace("-", ""))
    return (_PRODUCTS.get(words[0], words[0]) if words else "", match[1] if match else "")
