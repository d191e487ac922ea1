"""Numpy's files, safely: sizes are checked before anything is read, and no object is ever loaded."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError, shorten
from moesim.inputs import source_of

MAX_GROWTH = 200
FREE_BYTES = 64 << 20
MAX_HEADER = 10_000
MAX_FILES = 10_000
_HEADERS = {(1, 0): (2, np.lib.format.read_array_header_1_0), (2, 0): (4, np.lib.format.read_array_header_2_0)}
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped."""
    source_of(path)
    try:
        with path.open("rb") as file:
            shape, kind, begin = _header(file, path)
        declared = math.prod(shape) * kind.itemsize
        held = path.stat().st_size - begin
        if declared != held:
            raise FileError(f"cannot read {path}: it declares {declared:,} bytes of numbers and holds {held:,}")
        with _quiet():
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise _told(path, error) from error


def zip_names(path: Path) -> list[str]:
    """Names of the files in an archive; raises `FileError` where it is damaged, or holds too many."""
    try:
        with zipfile.ZipFile(source_of(path)) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot read {path}: it is a damaged zip archive: {shorten(str(error), 160)}") from error
    if len(names) > MAX_FILES:
        raise FileError(f"cannot read {path}: it holds {len(names):,} files, more than the {MAX_FILES:,} that are read")
    return names


def read_npz(path: Path, wanted: Collection[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file whose names are wanted; refuses one that would grow far beyond its size."""
    zip_names(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            odd = next((entry for entry in entries if entry.compress_type not in _COMPRESSIONS), None)
            if odd is not None:
                raise FileError(f"cannot read {path}: {shorten(odd.filename)!r} is compressed as numpy does not")
            declared = sum(entry.file_size for entry in entries)
            if declared > max(FREE_BYTES, MAX_GROWTH * path.stat().st_size):
                raise FileError(f"cannot read {path}: it would grow to {declared:,} bytes, {MAX_GROWTH} times its size")
            names = {entry.filename.removesuffix(".npy"): entry for entry in entries}
            return {name: _entry(archive, entry, path) for name, entry in names.items() if name in wanted}
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise FileError(f"cannot read {path}: it is a damaged archive: {shorten(str(error), 160)}") from error


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    where = Path(f"{path}:{shorten(entry.filename)}")
    try:
        with archive.open(entry) as file:
            shape, kind, begin = _header(file, where)
        declared = math.prod(shape) * kind.itemsize
        if begin + declared != entry.file_size:
            raise FileError(
                f"cannot read {where}: it declares {declared:,} bytes and holds {entry.file_size - begin:,}"
            )
        with _quiet():
            return np.asarray(np.lib.format.read_array(io.BytesIO(archive.read(entry)), allow_pickle=False))
    except ValueError as error:
        raise _told(where, error) from error


def _header(file: IO[bytes], where: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type, and where the numbers begin."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise FileError(f"cannot read {where}: it is of numpy format {version}, known are 1.0 and 2.0")
    width, read = _HEADERS[version]
    length = file.read(width)
    if int.from_bytes(length, "little") > MAX_HEADER:
        raise FileError(f"cannot read {where}: its header is longer than {MAX_HEADER:,} bytes")
    rest = io.BytesIO(length + file.read(int.from_bytes(length, "little")))
    try:
        with _quiet():
            shape, _, kind = read(rest)
    # numpy reads it as Python's literals
    except (ValueError, RecursionError, MemoryError, SyntaxError, TypeError, TokenError) as error:
        raise FileError(f"cannot read {where}: its header is not one that numpy writes") from error
    if kind.kind not in "biuf":
        raise FileError(f"cannot read {where}: it holds {shorten(str(kind))}, not numbers")
    return shape, kind, file.tell()


def _quiet() -> AbstractContextManager[object]:
    """Numpy warns of headers that Python 2 wrote, and reads them."""
    return warnings.catch_warnings(action="ignore")


def _told(where: Path, error: Exception) -> FileError:
    """The one line about what numpy says of a file."""
    return error if isinstance(error, FileError) else FileError(f"cannot read {where}: {shorten(str(error), 160)}")
