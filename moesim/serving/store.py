"""A serving result as files in a folder, and back: whole files or none, and the same bytes for the same result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from moesim.columns import ITERATIONS, REQUESTS
from moesim.errors import FileError
from moesim.inputs import source_of
from moesim.provenance import Quantity
from moesim.results import store
from moesim.results.result import Columns, Result
from moesim.results.store import StoredHead, arrow_table, json_text, publish, read_json, read_table, sha256, workplace
from moesim.serving.report import write_serving_html
from moesim.serving.result import ServingResult

_TABLES = {"requests.parquet": REQUESTS, "iterations.parquet": ITERATIONS}
_MARK = b'"moesim_serving"'


class _StoredServing(StoredHead):
    """A serving result's `result.json`; `tables` maps a file's name to its SHA-256."""

    moesim_serving: Literal[1]
    tables: dict[Literal["requests.parquet", "iterations.parquet"], str]


def save(result: Result | ServingResult, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes a result of either kind into `folder`, which is made where absent, and returns the files.

    Everything is written beside its place first and then moved there; files of an earlier result that this one does not
    have are removed. Raises `FileError` where the folder cannot be written, or the disk is full.
    """
    if isinstance(result, Result):
        return store.save(result, folder)
    target = Path(folder)
    with workplace(target) as temporary:
        return publish(temporary, target, _write_all(result, temporary))


def _write_all(result: ServingResult, folder: Path) -> list[str]:
    """Writes every file that the result has and returns their names, `result.json` last."""
    tables: dict[str, Columns | None] = {
        "requests.parquet": result.request_columns,
        "iterations.parquet": result.iteration_columns,
    }
    held = {name: columns for name, columns in tables.items() if columns is not None}
    for name, columns in held.items():
        pq.write_table(arrow_table(columns, _TABLES[name]), folder / name, compression="zstd")
    hashes = {name: sha256(folder / name) for name in held}
    texts = {
        "report.html": write_serving_html(result),
        "result.json": json_text({"moesim_serving": 1, **result.as_dict(), "tables": hashes}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [*held, *texts]


def load(folder: str | os.PathLike[str]) -> Result | ServingResult:
    """The result that `save` wrote into `folder`, of either kind.

    Raises `FileError` where a file is absent, too large, cut, of another run, or not what `save` writes.
    """
    source = Path(folder)
    try:
        with source_of(source / "result.json").open("rb") as file:
            serving = _MARK in file.read(64)
    except OSError as error:
        raise FileError(f"cannot read results from {source}: {error.strerror or error}") from error
    return load_serving(source) if serving else store.load(source)


def load_serving(folder: str | os.PathLike[str]) -> ServingResult:
    """The serving result in `folder`; raises `FileError` where there is none."""
    source = Path(folder)
    try:
        stored = read_json(source / "result.json", _StoredServing)
        tables = {name: read_table(source / name, digest, _TABLES[name]) for name, digest in stored.tables.items()}
    except (OSError, pa.ArrowException) as error:
        raise FileError(f"cannot read results from {source}: {error}") from error
    return ServingResult(
        name=stored.name,
        question=stored.question,
        road=stored.road,
        scenario=stored.scenario,
        summary={name: Quantity(**quantity.model_dump()) for name, quantity in stored.summary.items()},
        breakdown=stored.breakdown,
        memory=stored.memory,
        notes=stored.notes,
        request_columns=tables.get("requests.parquet"),
        iteration_columns=tables.get("iterations.parquet"),
    )
