"""The one table of a sweep: a row a point in the order of the points; units and meanings stand in its metadata.

Plain types only (64-bit numbers, text, true or false), so that pandas, polars and DuckDB read it alike. No time of day,
path, or name of an executor goes in: the same sweep gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moesim.columns import Column
from moesim.specs.sweep import SweepSpec
from moesim.sweeps.fields import unit_of
from moesim.sweeps.nouns import COLUMNS, Noun, metrics_of

FORMAT = 1
HEADER = b"moesim_sweep"
STATES: dict[str, Column] = {
    "seed": Column("", "simulation.seed of the point, and routing.seed where the sweep sets seeds", "int64"),
    "status": Column("", "done, infeasible (does not fit), illegal (breaks a rule), failed (an error)", "str"),
    "reason": Column("", "why the point is not done", "str"),
    "key": Column("", "hash of scenario, road, and release: the name of the point's answer", "str"),
}
_PARTS = ("", "_low", "_high")
_INT64 = 2**63


@dataclass
class Row:
    """One point: what it sets, its seed, the key of its answer, or why it has none."""

    values: dict[str, Any]
    seed: int | None
    key: str = ""
    reason: str = ""


def arrow_table(spec: SweepSpec, noun: Noun, rows: Sequence[Row], outcomes: Iterable[dict[str, Any]]) -> pa.Table:
    """The table of a sweep; `outcomes` has one entry a row, as `moesim.sweeps.work.outcome` writes them."""
    metrics = metrics_of(noun, spec.metrics)
    numbers, bases, states = _spread(metrics, len(rows), outcomes)
    fields = [_field(name, [row.values.get(name) for row in rows]) for name in spec.fields]
    fields.append(_column("seed", pa.array([row.seed for row in rows], pa.int64()), STATES["seed"]))
    fields += [_column(name, pa.array(states[name], pa.string()), STATES[name]) for name in ("status", "reason")]
    fields.append(_column("key", pa.array([row.key or None for row in rows], pa.string()), STATES["key"]))
    for place, name in enumerate(metrics):
        for part, described in enumerate(_described(name, COLUMNS[noun][name])):
            values = numbers[3 * place + part]
            fields.append(_column(name + _PARTS[part], pa.array(values, mask=np.isnan(values)), described))
        fields.append(
            _column(f"{name}_basis", pa.array(bases[place], pa.string()), Column("", f"where {name} is from"))
        )
    schema = pa.schema([field for field, _ in fields], {HEADER: _header(spec, noun)})
    return pa.table([array for _, array in fields], schema=schema)


def _spread(
    metrics: tuple[str, ...], count: int, outcomes: Iterable[dict[str, Any]]
) -> tuple[NDArray[np.float64], list[list[str | None]], dict[str, list[str]]]:
    """Numbers [3 x metrics, points] with NaN where absent, bases by metric, status and reason."""
    numbers = np.full((3 * len(metrics), count), np.nan)
    bases: list[list[str | None]] = [[None] * count for _ in metrics]
    states: dict[str, list[str]] = {"status": [], "reason": []}
    for at, outcome in enumerate(outcomes):
        states["status"].append(outcome["status"])
        states["reason"].append(outcome["reason"])
        for place, name in enumerate(metrics):
            found = outcome["summary"].get(name)
            if found is not None:
                numbers[3 * place : 3 * place + 3, at] = found[:3]
                bases[place][at] = found[3]
    return numbers, bases, states


def _described(name: str, column: Column) -> tuple[Column, Column, Column]:
    low, high = (Column(column.unit, f"{end} end of the range of {name}") for end in ("lower", "upper"))
    return column, low, high


def _column(name: str, array: pa.Array, described: Column) -> tuple[pa.Field, pa.Array]:
    return pa.field(name, array.type, True, {"unit": described.unit, "meaning": described.meaning}), array


def _field(name: str, values: list[Any]) -> tuple[pa.Field, pa.Array]:
    """A field that varies: numbers, or true and false, where all its values are; else text, JSON of what is not."""
    told = [value for value in values if value is not None]
    if told and all(isinstance(value, bool) for value in told):
        array = pa.array(values, pa.bool_())
    elif told and all(type(value) is int and abs(value) < _INT64 for value in told):
        array = pa.array(values, pa.int64())
    elif told and all(type(value) in (int, float) for value in told):
        array = pa.array([None if value is None else float(value) for value in values], pa.float64())
    else:
        array = pa.array([_text(value) for value in values], pa.string())
    unit = "" if array.type == pa.string() else unit_of(name)
    return _column(name, array, Column(unit, "field of the scenario that the sweep sets; empty: the scenario's own"))


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _header(spec: SweepSpec, noun: Noun) -> str:
    said = {"format": FORMAT, "question": spec.question, "of": noun, "road": spec.road, "fields": spec.fields}
    return json.dumps({**said, "metrics": metrics_of(noun, spec.metrics)}, ensure_ascii=False)
