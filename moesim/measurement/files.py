"""Reads one measurement file into a plain table: CSV, gzipped CSV or Parquet, within limits, never by unpickling."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pyarrow import ArrowException

from moesim.errors import FileError, shorten
from moesim.parquet_files import Most, read_parquet

MAX_FILE = 128 << 20
MAX_TEXT = 128 << 20
MAX_ROWS = 3_000_000
MAX_CELLS = 40_000_000
MAX_COLUMNS = 500
SUFFIXES = (".csv", ".csv.gz", ".parquet")

_BLOCK = 1 << 20


@dataclass(frozen=True)
class RawTable:
    """The rows of a file as it has them, its name and the SHA-256 of its bytes."""

    path: Path
    rows: pd.DataFrame
    digest: str


def suffix_of(path: Path) -> str | None:
    """Which of `SUFFIXES` a file's name ends in, or None."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)


def read_table(path: Path) -> RawTable:
    """The table in a file; raises `FileError` that names the file and what is wrong with it."""
    data = _bytes(path)
    suffix = suffix_of(path)
    if suffix is None:
        raise FileError(f"{path}: a measurement file ends in {', '.join(SUFFIXES)}")
    digest = hashlib.sha256(data).hexdigest()
    rows = _parquet(path) if suffix == ".parquet" else _csv(path, _unpacked(path, data, suffix))
    if len(rows) > MAX_ROWS:
        raise FileError(f"{path}: has more than {MAX_ROWS:,} rows, the most that is read")
    rows.index = pd.RangeIndex(1, len(rows) + 1)
    return RawTable(path, rows, digest)


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise FileError(f"{path}: {'is no plain file' if path.exists() else 'no such file or folder'}")
        if path.stat().st_size > MAX_FILE:
            raise FileError(f"{path}: is larger than {MAX_FILE >> 20} MiB, the most that is read")
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error


def _unpacked(path: Path, data: bytes, suffix: str) -> bytes:
    """The text of a CSV file, unpacked block by block so that a small file cannot fill the memory."""
    if suffix == ".csv":
        return data
    text = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            while block := packed.read(_BLOCK):
                text += block
                if len(text) > MAX_TEXT:
                    raise FileError(f"{path}: unpacks to more than {MAX_TEXT >> 20} MiB, the most that is read")
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"{path}: is a damaged gzip file: {shorten(str(error), 120)}") from error
    return bytes(text)


def _csv(path: Path, text: bytes) -> pd.DataFrame:
    """The rows of comma-separated text with a header line."""
    first = text.lstrip(b"\xef\xbb\xbf")[:_BLOCK].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    names = [name.strip().strip('"') for name in first.split(",")] if first else []
    if not names:
        raise FileError(f"{path}: is empty, expected a line of column names and rows below it")
    if len(names) > MAX_COLUMNS:
        raise FileError(f"{path}: has more than {MAX_COLUMNS} columns")
    if text.count(b",") > MAX_CELLS:
        raise FileError(f"{path}: has more than {MAX_CELLS:,} cells, the most that is read")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FileError(f"{path}: column {shorten(twice[0])!r} stands there twice")
    try:
        return pd.read_csv(io.BytesIO(text), low_memory=False, nrows=MAX_ROWS + 1, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, OverflowError) as error:
        raise FileError(f"{path}: is no sound CSV: {shorten(str(error).strip(), 160)}") from error


def _parquet(path: Path) -> pd.DataFrame:
    """The rows of a Parquet file of plain columns, refused unread where they would be too large."""
    try:
        table = read_parquet(path, Most(MAX_ROWS, MAX_COLUMNS, 4 * MAX_TEXT))
        rows: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: is no sound Parquet file: {shorten(str(error), 160)}") from error
    return rows
