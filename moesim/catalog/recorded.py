"""Recorded routings in the catalog: traces and fitted profiles by name, each a file `traces/NAME.safetensors` or
`fitted/NAME.safetensors` of the package's data or of the user's overlay folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from moesim.catalog.loader import OVERLAY_VARIABLE
from moesim.errors import FileError, UnknownNameError

Kind = Literal["traces", "fitted"]
KINDS: tuple[Kind, ...] = ("traces", "fitted")
SUFFIX = ".safetensors"

_PACKAGED = Path(__file__).parent / "data"


def names(kind: Kind) -> tuple[str, ...]:
    """All names of a kind, sorted, the overlay's included."""
    return tuple(sorted({path.stem for folder in _folders(kind) for path in folder.glob(f"*{SUFFIX}")}))


def find(kind: Kind, name: str) -> Path:
    """The file that a catalog name or a path stands for; a name goes before a file called like it.

    Raises `UnknownNameError` for what looks like a name, `FileError` for what looks like a path.
    """
    if name in names(kind):
        return next(path for folder in _folders(kind) if (path := folder / f"{name}{SUFFIX}").exists())
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise FileError(f"cannot read {name}: {'it is a folder' if path.is_dir() else 'no such file'}")
    raise UnknownNameError("trace" if kind == "traces" else "fitted profile", name, names(kind))


def _folders(kind: Kind) -> list[Path]:
    overlay = os.environ.get(OVERLAY_VARIABLE)
    return [*([Path(overlay) / kind] if overlay else []), _PACKAGED / kind]
