"""What SGLang's recordings have in common: the files of all ranks, and physical experts back to logical ones.

T tokens, L layers, K choices, P physical experts (copies included), E logical ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError
from moesim.traces.importers.base import ImportOptions, Source

_MAP = "last_physical_to_logical_map"


def is_recording(content: Any) -> bool:
    """Whether a torch file's content is a list of forward passes."""
    return isinstance(content, dict) and isinstance(content.get("records"), list) and _MAP in content


def sample(source: Source) -> Any:
    """The content of the file, or of a folder's first recording."""
    if source.kind == "folder":
        names = [name for name in source.names if name.endswith(".pt")]
        return Source(source.path / names[0]).torch if names else None
    return source.torch


def records_of(content: Any) -> list[dict[str, Any]]:
    """The forward passes of one file; empty where it is none."""
    records = content["records"] if is_recording(content) else []
    return [record for record in records if isinstance(record, dict)]


def recordings(source: Source, options: ImportOptions) -> list[dict[str, Any]]:
    """The content of every file, one a rank."""
    paths = [source.path]
    if source.kind == "folder":
        paths = [source.path / name for name in source.names if name.endswith(".pt")]
        if options.ranks is not None:
            paths = [path for path in paths if path.stem.rpartition("_")[2] in map(str, options.ranks)]
    contents = [Source(path).torch for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if not is_recording(content):
            raise FileError(f"cannot read {path}: it is no recording of forward passes (records, {_MAP})")
    if not contents:
        raise FileError(f"cannot read {source.path}: it holds no recording (.pt) of the ranks asked for")
    return contents


def logical_map(content: dict[str, Any], path: Path) -> NDArray[np.int64]:
    """The logical expert of each physical one [L, P]."""
    found = whole_numbers(content[_MAP], 2, f"{_MAP} of {path}")
    if found.size == 0 or found.min() < 0 or found.max() >= 65534:
        raise FileError(f"cannot read {path}: its map from physical to logical experts is empty or out of range")
    return found


def whole_numbers(value: Any, axes: int, where: str) -> NDArray[np.int64]:
    """An array of whole numbers with so many axes."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise FileError(f"cannot read {where}: its rows differ in length") from error
    if array.ndim != axes or array.dtype.kind not in "iu":
        raise FileError(f"cannot read {where}: not whole numbers with {axes} axes (shape {array.shape}, {array.dtype})")
    return array.astype(np.int64)
