"""A result as files in a folder, and back: whole files or none, and the same bytes for the same result.

`result.json` goes first and comes last, and holds the hash of every table, so that a folder whose tables belong to
another run, or were cut, is refused instead of read. No time of day, host name or path goes into any file.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from moesim.columns import OPERATIONS, ROUTING, Column
from moesim.errors import FileError, InternalError, shorten
from moesim.files import alone_in, draft_folder
from moesim.inputs import source_of
from moesim.parquet_files import Most, read_parquet
from moesim.provenance import Basis, Quantity
from moesim.results.report import write_html
from moesim.results.result import Columns, Result, Road
from moesim.results.timeline import write_trace

SCHEMA = 1
FILES = ("operations.parquet", "routing.parquet", "traffic.parquet", "timeline.json", "report.html", "result.json")
SERVING_FILES = ("requests.parquet", "iterations.parquet", "report.html", "result.json")
TRAFFIC: dict[str, Column] = {
    "source": Column("", "expert-parallel rank that sends", "int32"),
    "destination": Column("", "expert-parallel rank that receives", "int32"),
    "bytes": Column("B", "bytes sent in one dispatch, mean over layers and samples"),
}
MAX_JSON_BYTES = 16 << 20
MAX_TABLE_ROWS = 10_000_000
MAX_TABLE_COLUMNS = 100
MAX_TABLE_BYTES = 2 << 30

_MOST_SECONDS = 1e15
_TABLES = {"operations.parquet": OPERATIONS, "routing.parquet": ROUTING, "traffic.parquet": TRAFFIC}
_TYPES = {"int32": pa.int32(), "int64": pa.int64(), "float64": pa.float64()}
_TEXT = pa.dictionary(pa.int32(), pa.string())


class Strict(BaseModel):
    """What a file must hold to the letter."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StoredQuantity(Strict):
    """A quantity as it stands in `result.json`."""

    value: float
    unit: str
    low: float
    high: float
    basis: Basis
    note: str


class StoredHead(Strict):
    """What every kind of result holds in `result.json`."""

    name: str
    question: str
    road: Road
    summary: dict[str, StoredQuantity]
    breakdown: dict[str, Annotated[float, Field(ge=0.0, le=_MOST_SECONDS)]]
    memory: dict[str, float]
    notes: Annotated[tuple[str, ...], Field(strict=False)]
    scenario: dict[str, JsonValue]


Stored = TypeVar("Stored", bound=StoredHead)


class _StoredResult(StoredHead):
    """A training step's `result.json`; `tables` maps a file's name to its SHA-256."""

    moesim_result: Literal[1]
    tables: dict[Literal["operations.parquet", "routing.parquet", "traffic.parquet"], str]


def save(result: Result, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the result into `folder`, which is made where absent, and returns the files.

    Everything is written to a temporary folder inside `folder` first and then moved into place, so that an error or an
    interrupt leaves nothing half-written; files of an earlier result that this one does not have are removed.
    Raises `FileError` where the folder cannot be written, or the disk is full.
    """
    target = Path(folder)
    with workplace(target) as temporary:
        return publish(temporary, target, _write_all(result, temporary))


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raises `FileError` where `save` could not write into `folder`; leaves no trace. To be asked before a long run."""
    with workplace(Path(folder)):
        pass


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """A temporary folder inside `target`, both made here; folders that end up empty are removed again."""
    made: list[Path] = []
    try:
        if target.exists() and not target.is_dir():
            raise FileError(f"cannot write results to {target}: it is a file, not a folder")
        made = [path for path in (target, *target.parents) if not path.exists()]
        target.mkdir(parents=True, exist_ok=True)
        with draft_folder(target) as temporary:
            yield temporary
    except OSError as error:
        raise FileError(f"cannot write results to {target}: {error.strerror or error}") from error
    finally:
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """Removes the folders, innermost first, that hold nothing."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _write_all(result: Result, folder: Path) -> list[str]:
    """Writes every file that the result has, flushed to the disk, and returns their names in the order to publish."""
    tables = _tables(result)
    for name, columns in tables.items():
        pq.write_table(arrow_table(columns, _TABLES[name]), folder / name, compression="zstd")
    hashes = {name: sha256(folder / name) for name in tables}
    document = json_text({"moesim_result": SCHEMA, **result.as_dict(), "tables": hashes})
    writers: dict[str, Callable[[TextIO], object]] = {
        "report.html": lambda file: file.write(write_html(result)),
        "result.json": lambda file: file.write(document),
    }
    if result.operation_columns is not None:
        writers["timeline.json"] = lambda file: write_trace(result, file)
    for name, write in writers.items():
        with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
            write(file)
    return [name for name in FILES if name in tables or name in writers]


def save_files(
    folder: str | os.PathLike[str], contents: Mapping[str, str | bytes], others: Sequence[str] = ()
) -> list[Path]:
    """Writes files of one run into `folder`, made where absent, and returns them: the last comes last and goes first.

    `others`: files that an earlier run may have and this one has not. Raises `FileError` where it cannot be written.
    """
    target, names = Path(folder), list(contents)
    with workplace(target) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return publish(temporary, target, names, (*names, *others))


def publish(
    source: Path, target: Path, names: Sequence[str], every: Sequence[str] = (*FILES, *SERVING_FILES)
) -> list[Path]:
    """Flushes the files to the disk and moves them into `target` in this order; removes those of an earlier result.

    The last name says that the others are there and belong together: that file is removed before any other is touched.
    One process at a time moves files into a folder; `every` names all that a result may have.
    """
    for name in names:
        with (source / name).open("rb") as written:
            os.fsync(written.fileno())
    blocked = [name for name in every if (target / name).is_dir()]
    if blocked:
        raise FileError(f"cannot write results to {target}: {blocked[0]} there is a folder")
    with alone_in(target), uninterrupted():
        for name in (names[-1], *(name for name in every if name not in names)):
            (target / name).unlink(missing_ok=True)
        for name in names:
            os.replace(source / name, target / name)
    return [target / name for name in names]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts off Ctrl-C while files are published, so that a folder never holds those of two runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        raise KeyboardInterrupt


def _tables(result: Result) -> dict[str, Columns]:
    tables: dict[str, Columns | None] = {
        "operations.parquet": result.operation_columns,
        "routing.parquet": result.routing_columns,
    }
    if result.traffic is not None:
        source, destination = np.indices(result.traffic.shape, np.int32)
        pairs: Columns = {"source": source.ravel(), "destination": destination.ravel()}
        tables["traffic.parquet"] = {**pairs, "bytes": result.traffic.ravel()}
    return {name: columns for name, columns in tables.items() if columns is not None}


def arrow_table(columns: Columns, described: dict[str, Column]) -> pa.Table:
    """The columns as an Arrow table; unit and meaning of each stand in its metadata.

    Raises `InternalError` where the columns are not the described ones, or a number is not finite.
    """
    if set(columns) != set(described):
        raise InternalError(f"result columns differ from their description: {sorted(set(columns) ^ set(described))}")
    for name, column in columns.items():
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise InternalError(f"result column {name} holds a number that is not finite")
    arrays = [_array(columns[name], column) for name, column in described.items()]
    return pa.table(arrays, schema=_schema(described))


def _array(values: NDArray[Any], column: Column) -> pa.Array:
    if column.dtype == "str":
        return pa.array(values.astype(object), pa.string()).dictionary_encode()
    return pa.array(np.ascontiguousarray(values.astype(column.dtype)))


def _schema(described: dict[str, Column]) -> pa.Schema:
    return pa.schema(
        pa.field(name, _TYPES.get(column.dtype, _TEXT), False, {"unit": column.unit, "meaning": column.meaning})
        for name, column in described.items()
    )


def json_text(document: dict[str, Any]) -> str:
    """JSON in the order given, floats in their shortest exact form."""
    try:
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
    except (ValueError, TypeError) as error:
        raise InternalError(f"the result does not go into JSON: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not plain data")


def sha256(path: Path) -> str:
    """The file's digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(folder: str | os.PathLike[str]) -> Result:
    """The result that `save` wrote into `folder`.

    Raises `FileError` where a file is absent, too large, cut, of another run, or not what `save` writes.
    """
    source = Path(folder)
    try:
        stored = read_json(source / "result.json", _StoredResult)
        tables = {name: read_table(source / name, digest, _TABLES[name]) for name, digest in stored.tables.items()}
    except (OSError, pa.ArrowException) as error:
        raise FileError(f"cannot read results from {source}: {error}") from error
    return Result(
        name=stored.name,
        question=stored.question,
        road=stored.road,
        scenario=stored.scenario,
        summary={name: Quantity(**quantity.model_dump()) for name, quantity in stored.summary.items()},
        breakdown=stored.breakdown,
        memory=stored.memory,
        notes=stored.notes,
        operation_columns=tables.get("operations.parquet"),
        routing_columns=tables.get("routing.parquet"),
        traffic=_square(tables["traffic.parquet"], source) if "traffic.parquet" in tables else None,
    )


def read_json(path: Path, kind: type[Stored]) -> Stored:
    """What stands in `result.json`; raises `FileError` where that is no result of this kind."""
    source_of(path, MAX_JSON_BYTES)
    try:
        stored = kind.model_validate_json(path.read_bytes())
        json.dumps(stored.scenario, allow_nan=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FileError(f"{path} is not a result: {shorten(where)}: {shorten(first['msg'], 200)}") from error
    except ValueError as error:
        raise FileError(f"{path} is not a result: scenario: {error}") from error
    return stored


def read_table(path: Path, digest: str, described: dict[str, Column]) -> Columns:
    """The columns of a table that has this digest; raises `FileError` where it is another or not as described."""
    if sha256(source_of(path)) != digest:
        raise FileError(f"cannot read {path}: it was changed, cut, or belongs to another result.json")
    table = read_parquet(path, Most(MAX_TABLE_ROWS, MAX_TABLE_COLUMNS, MAX_TABLE_BYTES))
    if not table.schema.equals(_schema(described)):
        raise FileError(f"cannot read {path}: its columns are not {', '.join(described)}")
    return {name: _values(table.column(name).combine_chunks()) for name in described}


def _values(array: pa.Array) -> NDArray[Any]:
    if isinstance(array, pa.DictionaryArray):
        names = np.array(array.dictionary.to_pylist(), dtype=object)
        return np.asarray(names[array.indices.to_numpy()])
    return np.array(array.to_numpy())


def _square(columns: Columns, source: Path) -> NDArray[np.float64]:
    """[R, R] bytes from one row a pair of ranks, in order."""
    ranks = round(len(columns["bytes"]) ** 0.5)
    rows, places = np.indices((ranks, ranks), np.int32)
    ordered = len(columns["bytes"]) == ranks * ranks and bool(
        (columns["source"] == rows.ravel()).all() and (columns["destination"] == places.ravel()).all()
    )
    if not ordered:
        raise FileError(f"cannot read {source / 'traffic.parquet'}: it is not one row for every pair of ranks")
    return np.asarray(columns["bytes"].reshape(ranks, ranks), np.float64)
