"""Reads a trace of requests: CSV, Parquet or JSON lines, in our own columns or those of three published traces.

Ours: timestamp (seconds, or a date and time), input_tokens, output_tokens. Read as they are: the Azure LLM inference
traces (github.com/Azure/AzurePublicDataset), Mooncake's (github.com/kvcache-ai/Mooncake, milliseconds) and BurstGPT
(github.com/HPMLL/BurstGPT, seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moesim.errors import FileError, shorten
from moesim.scenario.serving_trace import SUFFIXES
from moesim.serving.trace_rows import read_rows


class Layout(NamedTuple):
    """The columns of a kind of trace; `second`: one second in its timestamps' unit; `hint`: about wrong tokens."""

    timestamp: str
    input_tokens: str
    output_tokens: str
    second: float = 1.0
    hint: str = ""

    @property
    def names(self) -> tuple[str, str, str]:
        """The three columns."""
        return self.timestamp, self.input_tokens, self.output_tokens


COLUMNS = Layout("timestamp", "input_tokens", "output_tokens")
LAYOUTS = {
    "ours": COLUMNS,
    "Azure": Layout("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "Mooncake": Layout("timestamp", "input_length", "output_length", 1e3),
    "BurstGPT": Layout("Timestamp", "Request tokens", "Response tokens", hint="; a failed request has 0, drop it"),
}
MAX_ROWS = 10_000_000
MAX_TOKENS = 1 << 24
MAX_SECONDS = 1e11
_TIMES = (pa.float64(), pa.timestamp("ns"), pa.timestamp("ns", "UTC"))


def read_trace(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Arrival seconds from the first request on, ascending, prompt and output tokens [Q] each.

    Rows may come in any order. Raises `FileError` naming file, column and row of what is wrong.
    """
    table = _read(path)
    table = table.rename_columns([name.strip() for name in table.column_names])
    layout = _layout(table.column_names, path)
    if not 1 <= table.num_rows <= MAX_ROWS:
        raise FileError(f"{path}: holds {table.num_rows:,} requests, expected 1 to {MAX_ROWS:,}")
    times = _seconds(table.column(layout.timestamp), layout, path)
    order = np.argsort(times, kind="stable")
    prompts, outputs = (_tokens(table.column(name), name, path, layout.hint) for name in layout.names[1:])
    return times[order] - times.min(), prompts[order], outputs[order]


def _layout(names: Sequence[str], path: Path) -> Layout:
    """The kind of trace that has these columns."""
    layout = _known_layout(names, path)
    if layout is None:
        missing = [name for name in COLUMNS.names if name not in names]
        near = [one for name in missing for one in get_close_matches(name, names, n=1, cutoff=0.5)]
        hint = f"; nearest: {', '.join(shorten(name) for name in near)}" if near else ""
        there = ", ".join(shorten(name, 40) for name in names[:12]) + (", ..." if len(names) > 12 else "")
        wanted = ", ".join(COLUMNS.names)
        raise FileError(f"{path}: no column {' nor '.join(missing)}{hint}. It has {there}: rename them to {wanted}")
    return layout


def _known_layout(names: Sequence[str], path: Path) -> Layout | None:
    """The first kind whose columns are all there; raises `FileError` where one of them is there twice."""
    found = next((layout for layout in LAYOUTS.values() if set(layout.names) <= set(names)), None)
    twice = [name for name in found.names if names.count(name) > 1] if found else []
    if twice:
        raise FileError(f"{path}: column {twice[0]} is there more than once")
    return found


def _read(path: Path) -> pa.Table:
    """The three columns of the file, whatever its kind."""
    if path.suffix.lower() not in SUFFIXES:
        raise FileError(f"{path}: is not a trace of requests: its name should end in {', '.join(SUFFIXES)}")
    return read_rows(path, MAX_ROWS, lambda names: _layout(list(names), path).names)


def _seconds(column: pa.ChunkedArray, layout: Layout, path: Path) -> NDArray[np.float64]:
    """Timestamps in seconds: numbers, dates and times, or text of such."""
    name = layout.timestamp
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _of_text(column, name, path)
    if pa.types.is_temporal(column.type):
        return _numbers(_of_dates(column, name, path), name, path)
    times = _numbers(column, name, path) / layout.second
    far = np.flatnonzero(np.abs(times) > MAX_SECONDS)
    if len(far):
        raise FileError(
            f"{path}: column {name}, row {far[0] + 1}: {times[far[0]]:.6g} s is beyond {MAX_SECONDS:.0e} s; timestamps"
            f" are {'milliseconds' if layout.second != 1 else 'seconds'}: are these in a smaller unit?"
        )
    return times


def _of_text(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """Text as numbers, or as dates and times."""
    for kind in _TIMES:
        try:
            return pc.cast(column, kind)
        except pa.ArrowException as error:
            last = error
    raise FileError(f"{path}: column {name}: {shorten(str(last), 160)}") from last


def _of_dates(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """Dates and times as seconds."""
    try:
        whole = pc.cast(column, pa.timestamp("us", getattr(column.type, "tz", None)), safe=False)
        return pc.divide(pc.cast(pc.cast(whole, pa.int64()), pa.float64(), safe=False), 1e6)
    except pa.ArrowException as error:
        raise FileError(f"{path}: column {name}: {shorten(str(error), 160)}") from error


def _tokens(column: pa.ChunkedArray, name: str, path: Path, hint: str) -> NDArray[np.int64]:
    """Token counts: whole numbers of at least 1."""
    numbers = _numbers(column, name, path)
    wrong = np.flatnonzero((numbers != np.rint(numbers)) | (numbers < 1) | (numbers > MAX_TOKENS))
    if len(wrong):
        where = f"{path}: column {name}, row {wrong[0] + 1}"
        raise FileError(f"{where}: expected a whole number from 1 to {MAX_TOKENS:,}, got {numbers[wrong[0]]:g}{hint}")
    return numbers.astype(np.int64)


def _numbers(column: pa.ChunkedArray, name: str, path: Path) -> NDArray[np.float64]:
    """The column as finite numbers."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise FileError(f"{path}: column {name}: expected numbers, found {shorten(str(kind))}")
    numbers = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise FileError(f"{path}: column {name}, row {wrong[0] + 1}: is empty or not a number")
    return numbers
