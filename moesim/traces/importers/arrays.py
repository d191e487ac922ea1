"""Numpy's files, safely: sizes are checked before anything is read, and no object is ever loaded."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError, shorten

MAX_GROWTH = 200
FREE_BYTES = 64 << 20


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped."""
    try:
        with path.open("rb") as file:
            shape, kind, begin = _header(file, path)
        declared = math.prod(shape) * kind.itemsize
        held = path.stat().st_size - begin
        if declared != held:
            raise FileError(f"cannot read {path}: it declares {declared:,} bytes of numbers and holds {held:,}")
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {shorten(str(error), 160)}") from error


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name; refuses one that would grow far beyond its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            declared = sum(entry.file_size for entry in entries)
            if declared > max(FREE_BYTES, MAX_GROWTH * path.stat().st_size):
                raise FileError(f"cannot read {path}: it would grow to {declared:,} bytes, {MAX_GROWTH} times its size")
            return {entry.filename.removesuffix(".npy"): _entry(archive, entry, path) for entry in entries}
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise FileError(f"cannot read {path}: it is a damaged archive: {shorten(str(error), 160)}") from error


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    where = Path(f"{path}:{entry.filename}")
    try:
        with archive.open(entry) as file:
            shape, kind, begin = _header(file, where)
        declared = math.prod(shape) * kind.itemsize
        if begin + declared != entry.file_size:
            raise FileError(
                f"cannot read {where}: it declares {declared:,} bytes and holds {entry.file_size - begin:,}"
            )
        return np.asarray(np.lib.format.read_array(io.BytesIO(archive.read(entry)), allow_pickle=False))
    except ValueError as error:
        raise FileError(f"cannot read {where}: {shorten(str(error), 160)}") from error


def _header(file: IO[bytes], where: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type, and where the numbers begin."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise FileError(f"cannot read {where}: it is of numpy format {version}, known are 1.0 and 2.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if kind.kind not in "biuf":
        raise FileError(f"cannot read {where}: it holds {kind}, not numbers")
    return shape, kind, file.tell()
