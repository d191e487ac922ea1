"""What SGLang's recordings have in common: the files of all ranks, and physical experts back to logical ones.

T tokens, L layers, K choices, P physical experts (copies included), E logical ones.
"""

from __future__ import annotations

from itertools import chain
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
    """The logical expert of each physical one [L, P]; every logical expert has a copy, so there are no more of them."""
    found = whole_numbers(content[_MAP], 2, f"{_MAP} of {path}")
    if found.size == 0 or found.min() < 0 or found.max() >= min(65534, found.shape[1]):
        raise FileError(f"cannot read {path}: its map from physical to logical experts is empty or out of range")
    return found


def whole_numbers(value: Any, axes: int, where: str) -> NDArray[np.int64]:
    """An array of whole numbers with so many axes, of an array or of lists."""
    array = value if isinstance(value, np.ndarray) else array_of_lists(value, where)
    if array.ndim != axes or array.dtype.kind not in "iu":
        raise FileError(f"cannot read {where}: not whole numbers with {axes} axes (shape {array.shape}, {array.dtype})")
    return array.astype(np.int64)


def array_of_lists(value: Any, where: str) -> NDArray[Any]:
    """Lists of whole numbers, or lists of such lists, as an array; numpy itself would take texts and mappings too.

    Raises `FileError` where anything else is in them, or lists side by side differ in length.
    """
    shape, flat = [], [value]
    while flat and isinstance(flat[0], list):
        lengths = {len(inner) if isinstance(inner, list) else -1 for inner in flat}
        if len(lengths) > 1:
            raise FileError(f"cannot read {where}: its rows differ in length")
        shape.append(lengths.pop())
        flat = list(chain.from_iterable(flat))
    try:
        if flat and all(isinstance(row, np.ndarray) and row.dtype.kind in "iu" for row in flat):
            return np.stack(flat).reshape((*shape, *flat[0].shape))
        if not set(map(type, flat)) <= {int}:
            raise FileError(f"cannot read {where}: not whole numbers")
        return np.array(flat, np.int64).reshape(shape)
    except (OverflowError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot read {where}: a number is out of range, or rows differ in length") from error
