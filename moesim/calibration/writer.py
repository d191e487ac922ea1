"""Writes a calibration as YAML that a scenario can name; the same entries give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moesim.errors import shorten
from moesim.files import write_whole

_WIDTH = 120


class _Dumper(yaml.SafeDumper):
    """Plain YAML without anchors: a source that several entries share is written out in each."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write(target: Path, name: str, entries: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
    """Writes the whole file or none; raises `FileError`."""
    write_whole(target, text(name, entries, left_out))


def text(name: str, entries: Mapping[str, Any], left_out: Mapping[str, str]) -> str:
    """The file's text: what it is and what it lacks as comments, then an entry a calibration, by name."""
    lines = [
        f"# Calibration {shorten(name)}, fitted by moesim calibrate. Name this file as cluster.calibration of a",
        "# scenario: what stands here goes before the catalog's calibration of the same name.",
        *(f"# Not fitted: {shorten(f'{what}: {why}', 400)}" for what, why in sorted(left_out.items())),
    ]
    for entry in sorted(entries):
        plain = {entry: _plain(entries[entry])}
        body = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, width=_WIDTH, default_flow_style=None)
        lines += ["", body.rstrip("\n")]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """`value` without numpy's and mapping types, small mappings kept in order."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
