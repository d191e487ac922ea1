"""Parquet files of others, bounded before anything is unpacked: rows, columns, and what the pages themselves declare.

The footer is the writer's word. A page says again how large it is unpacked, in front of its bytes, and there it cannot
lie: the reader unpacks just so much or fails. Repetition (a billion rows of one value in a few bytes) is bounded by the
rows, for only plain columns are read, and by reading texts as numbers of the texts that there are.

The page's header is thrift's compact protocol (apache/parquet-format, PageHeader: fields 2 and 3 are its sizes).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moesim.errors import FileError, shorten
from moesim.inputs import source_of

MAX_FOOTER = 8 << 20
MAX_PAGES = 200_000
_HEAD = 1 << 16
_BOOLEANS, _BYTE, _WHOLE, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
_DEPTH, _CELL = 8, 8
_UNSOUND = (pa.ArrowException, OSError, ValueError, OverflowError, KeyError)


@dataclass(frozen=True)
class Most:
    """What is read of a file at most: rows, columns, bytes unpacked."""

    rows: int
    columns: int
    size: int


def read_parquet(path: str | os.PathLike[str], most: Most, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a file, or these of its columns; raises `FileError` where it is none, or takes more than `most`."""
    source = source_of(path)
    try:
        _check_footer(source, most)
        with pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            texts = _check_columns(file.metadata, source, most)
            _check_pages(file.metadata, source, most.size)
        absent = [name for name in columns or () if name not in schema.names]
        if absent:
            raise FileError(f"cannot read {source}: it has no column {absent[0]}")
        with pq.ParquetFile(source, read_dictionary=texts) as file:
            return _as_written(file.read(columns), schema, source, most.size)
    except _UNSOUND as error:
        raise _unsound(source, error) from error


def column_names(path: str | os.PathLike[str], most: Most) -> list[str]:
    """Names of a file's columns; raises `FileError` as `read_parquet` does."""
    source = source_of(path)
    try:
        _check_footer(source, most)
        return list(pq.read_schema(source).names)
    except _UNSOUND as error:
        raise _unsound(source, error) from error


def _unsound(source: Path, error: Exception) -> FileError:
    """The one line about what the reader says of a file."""
    if isinstance(error, FileError):
        return error
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return FileError(f"cannot read {source}: it is no sound Parquet file: {shorten(told, 160)}")


def _as_written(table: pa.Table, schema: pa.Schema, source: Path, most: int) -> pa.Table:
    """The table with the types that its writer gave it: texts written out, as long as they take at most so much."""
    for place, field in enumerate(table.schema):
        wanted = schema.field(field.name)
        if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(wanted.type):
            column = table.column(place)
            most -= sum(_written_out(chunk) for chunk in column.chunks)
            if most < 0:
                raise FileError(f"cannot read {source}: column {shorten(field.name)!r} repeats long texts too often")
            table = table.set_column(place, wanted, column.cast(wanted.type))
    return table.replace_schema_metadata(schema.metadata)


def _written_out(chunk: pa.DictionaryArray) -> int:
    """Bytes of all its texts."""
    lengths = pc.cast(pc.binary_length(chunk.dictionary), pa.int64())
    return int(pc.sum(lengths.take(chunk.indices)).as_py() or 0)


def _check_footer(source: Path, most: Most) -> None:
    """The footer of a plain table names its columns and no more; a schema of a million levels takes minutes to read."""
    with source.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        file.seek(max(0, end - 8 - length))
        head = file.read(_HEAD)
    if len(tail) < 8 or tail[4:] != b"PAR1" or length > end:
        raise FileError(f"cannot read {source}: it is no sound Parquet file, or it was cut")
    if length > MAX_FOOTER:
        raise FileError(f"cannot read {source}: its footer is larger than {MAX_FOOTER >> 20} MiB")
    try:
        named = _schema_length(head)
    except (IndexError, ValueError) as error:
        raise FileError(f"cannot read {source}: it is no sound Parquet file: its footer is damaged") from error
    if named > most.columns + 1:
        raise FileError(
            f"cannot read {source}: it names {named - 1:,} columns and levels; at most {most.columns:,} are read"
        )


def _schema_length(data: bytes) -> int:
    """Entries of the schema, the footer's second field: the root, and one a column of a plain table."""
    at = field = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        field, at = (field + step, at) if step else _number(data, at)
        if field == 2 and kind in _LISTS:
            return data[at] >> 4 if data[at] >> 4 < 15 else _unsigned(data, at + 1)[0]
        at = _skipped(data, at, kind, 0)
    raise ValueError("no schema")


def _check_columns(metadata: Any, source: Path, most: Most) -> list[str]:
    """Names of the columns of text, of a table that is flat and small enough."""
    schema = metadata.schema
    if metadata.num_rows > most.rows or metadata.num_columns > most.columns:
        raise FileError(
            f"cannot read {source}: it holds {metadata.num_rows:,} rows in {metadata.num_columns:,} columns; at most "
            f"{most.rows:,} in {most.columns:,} are read"
        )
    if metadata.num_rows * metadata.num_columns * _CELL > most.size:
        raise FileError(
            f"cannot read {source}: {metadata.num_rows:,} rows in {metadata.num_columns:,} columns take more than the "
            f"{most.size >> 20:,} MiB that are read"
        )
    columns = [schema.column(place) for place in range(metadata.num_columns)]
    nested = next((column for column in columns if column.max_repetition_level or column.path != column.name), None)
    if nested is not None:
        raise FileError(f"cannot read {source}: its column {shorten(nested.path)!r} is nested, expected plain ones")
    return [column.name for column in columns if column.physical_type == "BYTE_ARRAY"]


def _check_pages(metadata: Any, source: Path, most: int) -> None:
    """Adds up what the pages declare, and holds the row groups against the file."""
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows or any(group.num_rows < 0 for group in groups):
        raise FileError(f"cannot read {source}: its footer contradicts itself about its rows")
    left, pages = most, MAX_PAGES
    with source.open("rb") as file:
        for group in groups:
            for place in range(group.num_columns):
                column = group.column(place)
                if column.num_values != group.num_rows:
                    raise FileError(f"cannot read {source}: its footer contradicts itself about its values")
                for size in _pages(file.fileno(), column, source):
                    left, pages = left - size, pages - 1
                    if left < 0 or pages < 0:
                        raise FileError(
                            f"cannot read {source}: it unpacks to more than {most >> 20:,} MiB or {MAX_PAGES:,} pages"
                        )


def _pages(file: int, column: Any, source: Path) -> Iterator[int]:
    """Bytes of each page of a column chunk, unpacked, by its own header."""
    starts = [column.data_page_offset, column.dictionary_page_offset or column.data_page_offset]
    at = min(starts)
    end = at + column.total_compressed_size
    while at < end:
        try:
            length, unpacked, packed = _page_header(os.pread(file, _HEAD, at))
        except (IndexError, ValueError) as error:
            raise FileError(f"cannot read {source}: a page of it has no sound header") from error
        if unpacked < 0 or packed < 0:
            raise FileError(f"cannot read {source}: a page of it declares a negative size")
        yield unpacked
        at += length + packed


def _page_header(data: bytes) -> tuple[int, int, int]:
    """Length of the header, and of its page unpacked and packed."""
    sizes = {2: 0, 3: 0}
    at = field = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        field, at = (field + step, at) if step else _number(data, at)
        if field in sizes and kind in _WHOLE:
            sizes[field], at = _number(data, at)
        else:
            at = _skipped(data, at, kind, 0)
    return at + 1, sizes[2], sizes[3]


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A signed whole number, and where it ends."""
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of too many bytes")


def _skipped(data: bytes, at: int, kind: int, depth: int) -> int:
    """Where a value of that kind ends."""
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    if kind in _BOOLEANS:
        return at
    if kind == _BYTE:
        return at + 1
    if kind in _WHOLE:
        return _unsigned(data, at)[1]
    if kind == _DOUBLE:
        return at + 8
    if kind == _BINARY:
        length, at = _unsigned(data, at)
        return at + length
    if kind in _LISTS:
        return _skipped_list(data, at, depth)
    if kind == _STRUCT:
        return _skipped_struct(data, at, depth)
    raise ValueError("a kind that page headers do not hold")


def _skipped_list(data: bytes, at: int, depth: int) -> int:
    count, kind = data[at] >> 4, data[at] & 15
    at += 1
    if count == 15:
        count, at = _unsigned(data, at)
    for _ in range(min(count, len(data))):
        at = at + 1 if kind in _BOOLEANS else _skipped(data, at, kind, depth + 1)
        if at > len(data):
            raise ValueError("a list that goes on")
    return at


def _skipped_struct(data: bytes, at: int, depth: int) -> int:
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if not step:
            at = _unsigned(data, at)[1]
        at = _skipped(data, at, kind, depth + 1)
    return at + 1
