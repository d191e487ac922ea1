"""Parquet files of others, bounded before anything is unpacked: rows, columns, and what the pages themselves declare.

The footer is the writer's word. A page says again how large it is unpacked, in front of its bytes, and there it cannot
lie: the reader unpacks just so much or fails. Repetition (a billion rows of one value in a few bytes) is bounded by the
rows, for only plain columns are read, and by reading texts as numbers of the texts that there are.

Footer and page headers are read by our own `thrift`: of some damaged footers pyarrow's accessors of row groups and
columns end the process, where its reader only refuses.
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
from moesim.thrift import LENGTH, Wanted, read_struct

MAX_FOOTER = 8 << 20
MAX_PAGES = 200_000
_HEAD = 1 << 16
_CELL = 8
# Fields of apache/parquet-format's parquet.thrift: FileMetaData, RowGroup, ColumnChunk, ColumnMetaData, PageHeader.
_SCHEMA, _GROUPS = 2, 4
_COLUMNS, _ROWS = 1, 3
_COLUMN = 3
_VALUES, _PACKED, _DATA_PAGES, _DICTIONARY_PAGE = 5, 7, 9, 11
_CHUNK: Wanted = {_COLUMN: dict.fromkeys((_VALUES, _PACKED, _DATA_PAGES, _DICTIONARY_PAGE))}
_FOOTER: Wanted = {_GROUPS: {_COLUMNS: _CHUNK, _ROWS: None}}
_PAGE: Wanted = {2: None, 3: None}
_Fields = dict[int, Any]
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
        groups = _check_footer(source, most)
        with pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            texts = _check_columns(file.metadata, source, most)
            _check_pages(groups, file.metadata.num_rows, source, most.size)
        absent = [name for name in columns or () if name not in schema.names]
        if absent:
            raise FileError(f"cannot read {source}: it has no column {absent[0]}")
        with pq.ParquetFile(source, read_dictionary=texts) as file:
            table = _as_written(file.read(columns), schema, source, most.size)
        table.validate(full=True)  # texts are UTF-8, lists end where they say
        return table
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


def _check_footer(source: Path, most: Most) -> list[_Fields]:
    """The row groups in the footer, of a table whose footer names its columns and no more: a schema of a million levels
    takes minutes to read."""
    with source.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if len(tail) < 8 or tail[4:] != b"PAR1" or length > end:
            raise FileError(f"cannot read {source}: it is no sound Parquet file, or it was cut")
        if length > MAX_FOOTER:
            raise FileError(f"cannot read {source}: its footer is larger than {MAX_FOOTER >> 20} MiB")
        file.seek(max(0, end - 8 - length))
        data = file.read(length)
    try:
        named = read_struct(data, 0, {_SCHEMA: LENGTH})[0][_SCHEMA]
        groups = [] if named > most.columns + 1 else read_struct(data, 0, _FOOTER)[0][_GROUPS]
    except (IndexError, ValueError, KeyError) as error:
        raise FileError(f"cannot read {source}: it is no sound Parquet file: its footer is damaged") from error
    if named > most.columns + 1:
        raise FileError(
            f"cannot read {source}: it names {named - 1:,} columns and levels; at most {most.columns:,} are read"
        )
    return list(groups)


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


def _check_pages(groups: Sequence[_Fields], rows: int, source: Path, most: int) -> None:
    """Adds up what the pages declare, and holds the row groups against the file."""
    if sum(group[_ROWS] for group in groups) != rows or any(group[_ROWS] < 0 for group in groups):
        raise FileError(f"cannot read {source}: its footer contradicts itself about its rows")
    left, pages = most, MAX_PAGES
    with source.open("rb") as file:
        for group in groups:
            for chunk in group[_COLUMNS]:
                column = chunk[_COLUMN]
                if column[_VALUES] != group[_ROWS]:
                    raise FileError(f"cannot read {source}: its footer contradicts itself about its values")
                for size in _pages(file.fileno(), column, source):
                    left, pages = left - size, pages - 1
                    if left < 0 or pages < 0:
                        raise FileError(
                            f"cannot read {source}: it unpacks to more than {most >> 20:,} MiB or {MAX_PAGES:,} pages"
                        )


def _pages(file: int, column: _Fields, source: Path) -> Iterator[int]:
    """Bytes of each page of a column chunk, unpacked, by its own header."""
    at = min(column[_DATA_PAGES], column.get(_DICTIONARY_PAGE) or column[_DATA_PAGES])
    end = at + column[_PACKED]
    while at < end:
        try:
            header, length = read_struct(os.pread(file, _HEAD, at), 0, _PAGE)
        except (IndexError, ValueError) as error:
            raise FileError(f"cannot read {source}: a page of it has no sound header") from error
        unpacked, packed = (header.get(field, 0) for field in _PAGE)
        if unpacked < 0 or packed < 0:
            raise FileError(f"cannot read {source}: a page of it declares a negative size")
        yield unpacked
        at += length + packed
