"""Rows of a measurement table (the columns of `moesim.measurement.columns`) as cases: each row's time is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesim.errors import FileError, nearest_hint, shorten
from moesim.measurement.files import read_table
from moesim.validation.ops import KINDS
from moesim.validation.words import key_name

_NEEDED = ("kind", "gpu", "time")


def items(path: Path) -> Iterator[dict[str, Any]]:
    """The plain mapping of a case for each row; raises `FileError` where the file is no such table."""
    rows = read_table(path).rows
    for name in _NEEDED:
        if name not in rows:
            hint = nearest_hint(name, [str(column) for column in rows.columns])
            raise FileError(f"{path}: column {name!r} is missing, a measurement table needs {', '.join(_NEEDED)}{hint}")
    if not len(rows):
        raise FileError(f"{path}: has column names and no rows")
    for number, row in zip(rows.index, rows.to_dict("records"), strict=True):
        told = {str(name): _plain(value) for name, value in row.items() if not _empty(value)}
        yield _case(told, f"{path.name}/row {number}")


def _case(told: dict[str, Any], identity: str) -> dict[str, Any]:
    kind = str(told.get("kind", "")).strip().lower().replace("-", "_")
    direction = str(told.get("direction", "")).strip().lower()
    metric = f"{direction}_time" if kind == "dispatch_combine" and direction else "time"
    source = {"where": str(told["source"])} if "source" in told else None
    case = {"id": identity, "kind": kind, "op": _op(kind, told), "measured": {metric: told.get("time")}}
    return {**case, "source": source} if source else case


def _op(kind: str, told: dict[str, Any]) -> dict[str, Any]:
    """What the kind's operation knows of a row; a table may have any columns beside."""
    if kind not in KINDS:
        return {"gpu": shorten(told.get("gpu"))}
    known = {*KINDS[kind].model_fields, "top_groups"}
    return {name: value for name, value in told.items() if key_name(name, known) in known}


def _empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # NaN is unlike itself


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
