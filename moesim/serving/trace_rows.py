"""The rows of a trace of requests as an Arrow table: of CSV, Parquet or JSON lines, within limits.

Arrow guesses the types of JSON by descending into it, and a line of brackets alone takes its stack and the process; so
the first line says which columns there are and of which type, and the rest of a line is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json

from moesim.errors import FileError, shorten
from moesim.inputs import source_of
from moesim.parquet_files import Most, column_names, read_parquet

MAX_BYTES = 1 << 30
MAX_COLUMNS = 1000
MAX_LINE = 1 << 20
Wanted = Callable[[Sequence[str]], Sequence[str]]


def read_rows(path: Path, most: int, wanted: Wanted) -> pa.Table:
    """The columns that `wanted` chooses of a file's names (it raises where they are not there), at most `most` rows."""
    source_of(path, MAX_BYTES)
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            return _parquet(path, most, wanted)
        return _csv(path, wanted) if kind == ".csv" else _json_lines(path, wanted)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise FileError(f"{path}: cannot be read: {shorten(str(error), 200)}") from error


def _parquet(path: Path, most: int, wanted: Wanted) -> pa.Table:
    limits = Most(most, MAX_COLUMNS, MAX_BYTES)
    return read_parquet(path, limits, wanted(column_names(path, limits)))


def _csv(path: Path, wanted: Wanted) -> pa.Table:
    names = _first_line(path).decode("utf-8-sig").strip().split(",")
    if len(names) > MAX_COLUMNS:
        raise FileError(f"{path}: has more than {MAX_COLUMNS:,} columns")
    chosen = wanted([name.strip().strip('"').strip() for name in names])
    table = arrow_csv.read_csv(path)
    table = table.rename_columns([name.strip() for name in table.column_names])
    for name in chosen:
        if name not in table.column_names:
            raise FileError(f"{path}: line 1: the quotes about column {shorten(name)} are not in pairs")
    return table.select(list(chosen))


def _json_lines(path: Path, wanted: Wanted) -> pa.Table:
    try:
        first = json.loads(_first_line(path))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: line 1 is no JSON object of less than {MAX_LINE >> 20} MiB") from error
    if not isinstance(first, dict):
        raise FileError(f"{path}: line 1 is no JSON object, expected one a line")
    schema = pa.schema([(name, _type(name, first[name], path)) for name in wanted(list(first))])
    return arrow_json.read_json(
        path,
        arrow_json.ReadOptions(block_size=16 << 20),
        arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )


def _type(name: str, value: Any, path: Path) -> pa.DataType:
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return pa.float64()
    found = {dict: "struct", list: "list", bool: "bool"}.get(type(value), "null")
    raise FileError(f"{path}: column {shorten(name)}: expected numbers, found {found}")


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(MAX_LINE)
