"""Files of plain tensors (safetensors): a strict reader that maps them, and a writer that always gives the same bytes.

Layout: eight bytes, the header's length N (little endian); N bytes of JSON, name -> dtype, shape, data_offsets, and
`__metadata__` -> text by text; then the tensors, without gaps. Nothing in such a file can run.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError, shorten
from moesim.files import whole_file
from moesim.inputs import source_of

MAX_HEADER = 1 << 20
MAX_SHAPE = 1 << 48
_TYPES: dict[str, str] = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
_NAMES = {np.dtype(code): name for name, code in _TYPES.items() if name != "BF16"}
_PICKLES = {b"\x80": "a pickle", b"PK": "a zip archive (a torch or npz file)"}


@dataclass(frozen=True)
class Tensors:
    """What a file holds: arrays mapped from it (read-only), the name of each one's type, and its text metadata.
    An array of type BF16 is given as the 16 bits of each number (uint16)."""

    arrays: dict[str, NDArray[Any]]
    types: dict[str, str]
    metadata: dict[str, str]


@dataclass(frozen=True)
class _Place:
    type: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_tensors(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of a file, mapped: no array is copied. Raises `FileError` where the header lies, or is no header."""
    source = source_of(path)
    try:
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _header(file.read(8), size, file.read(min(size, MAX_HEADER)), source)
            metadata, places = _described(header, source)
            _check_places(places, size - start, source)
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror or error}") from error
    arrays = {name: _view(buffer, place, start) for name, place in places.items()}
    return Tensors(arrays, {name: place.type for name, place in places.items()}, metadata)


def write_tensors(path: str | os.PathLike[str], arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    """Writes a whole file or none; the same arrays, in the same order, and metadata give the same bytes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise FileError(f"cannot write {path}: its description is larger than {MAX_HEADER >> 20} MiB")
    with whole_file(path, durable=True) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def is_tensor_file(head: bytes) -> bool:
    """Whether a file that begins with `head` looks like one of tensors."""
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and 2 <= length <= MAX_HEADER and head[8:9] == b"{"


def _header(prefix: bytes, size: int, rest: bytes, source: Path) -> tuple[dict[str, Any], int]:
    """The header as plain data, and where the tensors begin."""
    what = next((what for sign, what in _PICKLES.items() if prefix.startswith(sign)), None)
    if what and not is_tensor_file(prefix + rest[:1]):
        raise FileError(f"{source} is {what}, not a file of tensors; import it with `moesim trace import`")
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= MAX_HEADER or rest[:1] != b"{":
        raise FileError(f"{source} is not a file of tensors: it does not begin with a header")
    if 8 + length > size:
        raise FileError(f"{source} is cut: its header says {length:,} bytes, the file has {size:,}")
    try:
        header = json.loads(rest[:length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FileError(f"cannot read {source}: its header is not valid JSON: {shorten(str(error))}") from error
    if not isinstance(header, dict):
        raise FileError(f"cannot read {source}: its header is not a table of tensors")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _described(header: dict[str, Any], source: Path) -> tuple[dict[str, str], dict[str, _Place]]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise FileError(f"cannot read {source}: its metadata is not text by text")
    return metadata, {name: _place(name, entry, source) for name, entry in header.items()}


def _place(name: str, entry: Any, source: Path) -> _Place:
    where = f"cannot read {source}: tensor {shorten(name)!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FileError(f"{where} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise FileError(f"{where} has the unknown type {shorten(kind)}; known: {', '.join(_TYPES)}")
    if not _sizes(shape, 8) or not _sizes(offsets, 2) or len(offsets) != 2:
        raise FileError(f"{where} has a shape or offsets that are not small lists of whole numbers")
    if math.prod(shape) * np.dtype(_TYPES[kind]).itemsize != offsets[1] - offsets[0]:
        raise FileError(f"{where} of shape {shorten(shape)} and type {kind} does not take {shorten(offsets)} bytes")
    if math.prod(max(size, 1) for size in shape) > MAX_SHAPE:
        raise FileError(f"{where} has the shape {shorten(shape)}, larger than any file")
    return _Place(kind, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(size) is int and size >= 0 for size in value)


def _check_places(places: dict[str, _Place], data: int, source: Path) -> None:
    """Tensors must fill the data without gaps and without overlap."""
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != end:
            raise FileError(f"cannot read {source}: tensor {shorten(name)!r} overlaps another, or leaves a gap")
        end = place.end
    if end != data:
        raise FileError(f"{source} is cut or padded: it declares {end:,} bytes of tensors and holds {data:,}")


def _view(buffer: mmap.mmap, place: _Place, start: int) -> NDArray[Any]:
    kind = np.dtype(_TYPES[place.type])
    if 0 in place.shape:
        return np.empty(0, kind).reshape(place.shape)
    flat = np.frombuffer(buffer, kind, math.prod(place.shape), start + place.begin)
    return flat.reshape(place.shape)
