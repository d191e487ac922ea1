"""Seconds of a step by operation inside every part of its breakdown, from the operations of a simulation.

The rows of a part add up to it. N operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.results.result import Columns, Result
from moesim.results.views import categories

KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "router": ("router",),
    "experts": ("experts", "shared"),
    "dense layers": ("dense",),
    "embedding and head": ("embedding", "head"),
    "exposed dispatch": ("dispatch",),
    "exposed combine": ("combine",),
    "data parallel": ("parameter gathering", "gradient reduction"),
    "optimizer": ("optimizer",),
}
"""The kinds of operation that make up each part of a breakdown; the other parts are waiting, or time inside these."""

HIDDEN = "hidden by compute"
LESS_COLLECTIVES = "less its collectives"
"""What a part has less than its operations: exchanges that compute hides, collectives that are a part of their own."""

_COMPUTE = ("attention", "experts", "dense layers")
_BETWEEN = "waiting between operations"
_NOTHING = 1e-9


@dataclass(frozen=True)
class OperationChange:
    """Seconds of one operation inside a part of the step, of the first result and of another; means over GPUs."""

    part: str
    operation: str
    base: float
    other: float

    @property
    def change(self) -> float:
        """Seconds that the other has more."""
        return self.other - self.base

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = {"part": self.part, "operation": self.operation}
        return {**names, "base": self.base, "other": self.other, "change": self.change}


def operation_changes(base: Result, other: Result, parts: tuple[str, ...]) -> tuple[OperationChange, ...]:
    """Every operation that takes time in one of two results: by part in the order given, inside it the most changed
    first. Nothing where a result holds no operations."""
    here, there = seconds_by_operation(base), seconds_by_operation(other)
    if not here or not there:
        return ()
    rows = [
        OperationChange(*name, here.get(name, 0.0), there.get(name, 0.0)) for name in dict.fromkeys((*here, *there))
    ]
    place = {part: index for index, part in enumerate(parts)}
    return tuple(sorted(rows, key=lambda row: (place[row.part], -abs(row.change), row.operation)))


def seconds_by_operation(result: Result) -> dict[tuple[str, str], float]:
    """(part, operation) -> seconds of a step, mean over GPUs; empty where the result holds no operations.

    An operation's own work and its waiting for peers stand apart, and so does what a part's operations have more or
    less than the part: exchanges hidden behind compute, collectives that count elsewhere.
    """
    columns = result.operation_columns
    if columns is None or not len(columns["begin"]):
        return {}
    inside = _by_kind(columns)
    found: dict[tuple[str, str], float] = {}
    for part, total in result.breakdown.items():
        rows = {name: spent for kind in KINDS.get(part, ()) for name, spent in inside.get(kind, {}).items()}
        rows[_rest(part, total - sum(rows.values()), bool(rows))] = total - sum(rows.values())
        least = _NOTHING * sum(result.breakdown.values())
        found |= {(part, name): spent for name, spent in rows.items() if abs(spent) > least}
    return found


def _rest(part: str, seconds: float, has_operations: bool) -> str:
    """What to call seconds that a part has more, or less, than its operations."""
    if not has_operations:
        return part
    said = _BETWEEN if seconds > 0 else LESS_COLLECTIVES if part in _COMPUTE else HIDDEN
    return f"{part.removeprefix('exposed ')} {said}"


def _by_kind(columns: Columns) -> dict[str, dict[str, float]]:
    """Kind -> operation -> seconds of a step, mean over pipeline ranks."""
    kinds, kind = categories(columns["kind"])
    phases, phase = categories(columns["phase"])
    pair = kind * len(phases) + phase
    share = 1.0 / (len(np.unique(columns["stage"])) * len(np.unique(columns["step"])))
    busy, taken = (
        np.bincount(pair, weights=seconds, minlength=len(kinds) * len(phases)) * share
        for seconds in (columns["busy_mean"], columns["end_mean"] - columns["begin_mean"])
    )
    found: dict[str, dict[str, float]] = {}
    for place in np.unique(pair).tolist():
        name, when = kinds[place // len(phases)], phases[place % len(phases)]
        operation = name if when == "step" else f"{name} {when}"
        waited = f"{operation} waiting"
        found.setdefault(name, {}).update({operation: float(busy[place]), waited: float(taken[place] - busy[place])})
    return found
