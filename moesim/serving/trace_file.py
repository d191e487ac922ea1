"""Reads a trace of requests: CSV, Parquet or JSON lines with the columns timestamp, input_tokens, output_tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moesim.errors import FileError, nearest_hint, shorten
from moesim.scenario.serving_trace import SUFFIXES

COLUMNS = ("timestamp", "input_tokens", "output_tokens")
MAX_BYTES = 1 << 30
MAX_ROWS = 10_000_000
MAX_TOKENS = 1 << 24


def read_trace(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Arrival seconds from the first request on, ascending, prompt and output tokens [Q] each.

    `timestamp` is in seconds, or a date and time; rows may come in any order. Raises `FileError` naming file, column
    and row of what is wrong.
    """
    table = _read(path)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise FileError(f"{path}: no column {missing[0]}{nearest_hint(missing[0], table.column_names)}")
    if not 1 <= table.num_rows <= MAX_ROWS:
        raise FileError(f"{path}: holds {table.num_rows:,} requests, expected 1 to {MAX_ROWS:,}")
    times = _seconds(table.column("timestamp"), path)
    order = np.argsort(times, kind="stable")
    prompts, outputs = (_tokens(table.column(name), name, path) for name in COLUMNS[1:])
    return times[order] - times.min(), prompts[order], outputs[order]


def _read(path: Path) -> pa.Table:
    """The file's table, whatever its kind."""
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise FileError(f"{path}: is not a trace of requests: its name should end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileError(f"{path}: {'is no plain file' if path.exists() else 'no such file'}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FileError(f"{path}: is larger than {MAX_BYTES >> 20} MiB, the most that is read")
        if kind == ".csv":
            return arrow_csv.read_csv(path)
        return pq.read_table(path, columns=_known(path)) if kind == ".parquet" else arrow_json.read_json(path)
    except (OSError, pa.ArrowException) as error:
        raise FileError(f"{path}: cannot be read: {shorten(str(error), 200)}") from error


def _known(path: Path) -> list[str] | None:
    """The wanted columns of a Parquet file, so that others are not read; None (all) where one is absent."""
    names = pq.read_schema(path).names
    rows = pq.read_metadata(path).num_rows
    if rows > MAX_ROWS:
        raise FileError(f"{path}: holds {rows:,} requests, expected 1 to {MAX_ROWS:,}")
    return list(COLUMNS) if set(COLUMNS) <= set(names) else None


def _seconds(column: pa.ChunkedArray, path: Path) -> NDArray[np.float64]:
    """Timestamps in seconds: numbers, dates and times, or text of such."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            column = pc.cast(column, pa.timestamp("us"))
        except pa.ArrowException as error:
            raise FileError(f"{path}: column timestamp: {shorten(str(error), 160)}") from error
    if pa.types.is_temporal(column.type):
        column = pc.divide(pc.cast(pc.cast(column, pa.timestamp("us")), pa.int64()).cast(pa.float64()), 1e6)
    return _numbers(column, "timestamp", path)


def _tokens(column: pa.ChunkedArray, name: str, path: Path) -> NDArray[np.int64]:
    """Token counts: whole numbers of at least 1."""
    numbers = _numbers(column, name, path)
    wrong = np.flatnonzero((numbers != np.rint(numbers)) | (numbers < 1) | (numbers > MAX_TOKENS))
    if len(wrong):
        where = f"{path}: column {name}, row {wrong[0] + 1}"
        raise FileError(f"{where}: expected a whole number from 1 to {MAX_TOKENS:,}, got {numbers[wrong[0]]:g}")
    return numbers.astype(np.int64)


def _numbers(column: pa.ChunkedArray, name: str, path: Path) -> NDArray[np.float64]:
    """The column as finite numbers."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise FileError(f"{path}: column {name}: expected numbers, found {kind}")
    numbers = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise FileError(f"{path}: column {name}, row {wrong[0] + 1}: is empty or not a number")
    return numbers
