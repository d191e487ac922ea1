"""Fits what a serving stack makes of the law of isolated kernels: one factor a stack on the time of an iteration.

The factor at which half of a stack's throughputs are predicted too high: a median, which rows with prompts in a cache
or with a batch that memory cuts short do not bend. A release with few rows has its product's factor, which is that of
all rows of the product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.calibration.statistics import residual
from moesim.calibration.step_rows import listed
from moesim.errors import UserError
from moesim.iteration.law import IterationLaw
from moesim.iteration.stack import plain, product, time_factor
from moesim.scenario.loading import load_serving
from moesim.scenario.serving import ServingScenario
from moesim.serving.closed_form import steady_state
from moesim.validation.cases import Case

Floats = NDArray[np.float64]
SERVING = "serving"
METRICS = ("output_tokens_per_second_per_gpu", "output_tokens_per_second")
# A release with fewer rows than this has its product's factor.
LEAST_ROWS = 10
_ROUNDS, _SETTLED = 6, 1e-3


@dataclass(frozen=True)
class Row:
    """One measured throughput, in output tokens a second of the whole deployment; `laws` of its pools."""

    laws: tuple[IterationLaw, ...]
    scenario: ServingScenario
    stack: str
    measured: float


@dataclass(frozen=True)
class ServingEntries:
    """The entry "serving" by name, the factors that moved with the shipped and the fitted value, the cases left out
    with the reason, and how many rows were used."""

    entries: dict[str, dict[str, Any]]
    moved: dict[str, tuple[float, float]]
    left_out: dict[str, str]
    used: int


def fit_serving(cases: Iterable[Case], day: str | None = None) -> ServingEntries:
    """What the cases' throughputs give; `day` (ISO) is today's where None. Cases of other kinds, marked `known`, or
    without a steady state are left out."""
    rows: list[Row] = []
    why: dict[str, list[str]] = {}
    for case in cases:
        found = _row(case)
        if isinstance(found, Row):
            rows.append(found)
        else:
            why.setdefault(found, []).append(f"{case.where} ({case.id})")
    left_out = {listed(places): reason for reason, places in why.items()}
    if not rows:
        return ServingEntries({}, {}, left_out, 0)
    factors = _factors(rows)
    predicted, measured = _throughputs(rows, factors), np.array([row.measured for row in rows])
    shipped = _throughputs(rows, {row.stack: time_factor(row.stack) for row in rows})
    by_stack = _by_stack(rows, factors)
    gpus = ", ".join(dict.fromkeys(row.scenario.cluster.gpu.name for row in rows))
    where = f"fit of {len(rows):,} serving throughputs ({gpus})"
    entry = {
        "source": {"basis": "fitted", "where": where, "date": day or datetime.now(UTC).date().isoformat()},
        "residual": residual(predicted, measured).as_dict(),
        "residual_of_shipped": residual(shipped, measured).as_dict(),
        "residual_by": by_stack,
        "rows": {"used": len(rows)},
        "time_factor": factors,
        "standard_error": {f"time_factor.{name}": _standard_error(miss) for name, miss in by_stack.items()},
    }
    moved = {
        f"{SERVING}.time_factor.{stack}": (time_factor(stack), factor)
        for stack, factor in factors.items()
        if abs(factor / time_factor(stack) - 1) > _SETTLED
    }
    return ServingEntries({SERVING: entry}, moved, left_out, len(rows))


def _row(case: Case) -> Row | str:
    """The case as a measured throughput, or why it is none."""
    metric = next((name for name in METRICS if name in case.measured), None)
    if case.problem:
        return case.problem
    if case.kind != "serving" or case.scenario is None or metric is None:
        return f"not of kind serving with one of {', '.join(METRICS)}"
    if case.known:
        return f"the law is known to fail there: {case.known}"
    try:
        scenario = load_serving(case.scenario)
    except UserError as error:
        return " ".join(str(error).split())
    laws = tuple(IterationLaw(scenario, pool.instance, pool.phase) for pool in scenario.pools)
    if not steady_state(scenario, laws).feasible:
        return "the law knows no steady state there"
    gpus = scenario.gpus_used if metric == METRICS[0] else 1
    return Row(laws, scenario, plain(scenario.stack), case.measured[metric] * gpus)


def _factors(rows: Sequence[Row]) -> dict[str, float]:
    """A factor for each product and for each release with rows enough, at which half of its rows are too high."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for name in dict.fromkeys((product(row.stack), row.stack)):
            groups.setdefault(name, []).append(row)
    kept = {name: group for name, group in groups.items() if " " not in name or len(group) >= LEAST_ROWS}
    return {name: _factor(group) for name, group in sorted(kept.items())}


def _factor(rows: Sequence[Row]) -> float:
    """Throughput falls about as the factor rises, so the median miss is the next move."""
    factor, measured = 1.0, np.array([row.measured for row in rows])
    for _ in range(_ROUNDS):
        said = np.array([_throughput(row, factor) for row in rows])
        miss = float(np.median(np.log(said / measured)))
        factor *= float(np.exp(miss))
        if abs(miss) < _SETTLED:
            break
    return float(f"{factor:.4g}")


def _throughputs(rows: Sequence[Row], factors: Mapping[str, float]) -> Floats:
    return np.array([_throughput(row, _of(row.stack, factors)) for row in rows])


def _of(stack: str, factors: Mapping[str, float]) -> float:
    return factors[stack] if stack in factors else factors[product(stack)]


def _throughput(row: Row, factor: float) -> float:
    laws = [law.with_factor(factor) for law in row.laws]
    return steady_state(row.scenario, laws).output_tokens_per_second


def _by_stack(rows: Sequence[Row], factors: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Misses of each stack that has a factor, under that factor; a product's are those of all its releases."""
    found: dict[str, dict[str, float]] = {}
    for name, factor in factors.items():
        mine = [row for row in rows if name in (row.stack, product(row.stack))]
        said = np.array([_throughput(row, factor) for row in mine])
        found[name] = residual(said, np.array([row.measured for row in mine])).as_dict()
    return found


def _standard_error(miss: Mapping[str, float]) -> float:
    """Of the log of a median, from the median size of the misses (a normal law's, 1.25 x 1.48 / root of the rows)."""
    return float(f"{1.25 * 1.48 * miss['median'] / np.sqrt(miss['rows']):.2g}")
