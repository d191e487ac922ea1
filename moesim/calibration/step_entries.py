"""What measured steps make of the catalog's entries: coefficients that moved, and the range that so few steps leave.

N steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import expm1, inf, log, log1p, sqrt
from typing import Any

import numpy as np

from moesim import catalog
from moesim.calibration.statistics import residual
from moesim.calibration.step_fit import StepFit, fit, known
from moesim.calibration.step_rows import COMPUTE, METRICS, STACKS, Floats, Name, Step, answered, predict, put, sort_out
from moesim.results.resampling import student
from moesim.step.own_kernels import rates_of
from moesim.step.stack import own_place
from moesim.validation.cases import Case

# Steps of one GPU and stack lie about their own mean by so much, in log: eleven pairs of the shipped cases and eight of
# other stacks by 0.02 to 0.08, and a fit to few of them misses the rest a little further. It is worth so many steps of
# one's own.
_SCATTER, _WORTH = 0.06, 8
# Moves of a log that no answer shows.
_LEAST_MOVE = 1e-3
# A step that still misses by more than this is told.
_FAR = 0.05
_NINE_IN_TEN = 1.645


@dataclass(frozen=True)
class StepEntries:
    """Entries "training-compute" and "stacks" by name, `moved` coefficients with the shipped and the fitted value, the
    cases left out by how many and which with the reason, notes, and how many steps were used."""

    entries: dict[str, dict[str, Any]]
    moved: dict[str, tuple[float, float]]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    used: int


def fit_steps(cases: Iterable[Case], day: str | None = None) -> StepEntries:
    """What the cases' steps give, with what goes before the catalog's only; `day` (ISO) is today's where None.

    A case of another kind, of a ratio, with a problem, or marked `known` is left out. The stated `residual` is that of
    the whole estimate under these very entries, of each case's own metric, as `moesim validate` finds it.
    """
    listed = list(cases)
    steps, left_out = sort_out(listed)
    if not listed:
        left_out = {"training steps": "the case files hold no case"}
    if not steps:
        return StepEntries({}, {}, left_out, (), 0)
    found = fit(steps)
    values = _written(found)
    entries = _entries(found, values)
    times = np.log([step.seconds for step in steps])
    misses, shipped = np.log(answered(steps, entries)) - times, np.log(predict(steps, {})) - times
    gpus = list(dict.fromkeys(step.scenario.cluster.gpu.name for step in steps))
    where = f"fit of {len(steps)} training steps ({', '.join(gpus)})"
    head = {
        "source": {"basis": "fitted", "where": where, "date": day or datetime.now(UTC).date().isoformat()},
        "residual": _residual(steps, misses),
        "residual_of_shipped": _residual(steps, shipped),
        "rows": {"used": len(steps)},
    }
    made = {name: {**head, **entries.get(name, {})} for name in (COMPUTE, STACKS)}
    made[COMPUTE]["own"] = _own(steps, misses)
    moved = {".".join(name): (_digits(found.start[name]), value) for name, value in values.items()}
    return StepEntries(made, moved, left_out, tuple(_notes(steps, misses, len(listed))), len(steps))


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _written(found: StepFit) -> dict[Name, float]:
    """The coefficients that moved, with the digits that are written."""
    return {
        name: _digits(value)
        for name, value in found.values.items()
        if abs(log(_digits(value) / found.start[name])) > _LEAST_MOVE
    }


def _entries(found: StepFit, values: Mapping[Name, float]) -> dict[str, dict[str, Any]]:
    """The moved coefficients in their places, each with how far its log may still be off."""
    entries: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        entry = entries.setdefault(name[0], {})
        put(entry, name[1:], value)
        entry.setdefault("standard_error", {})[".".join(name[1:])] = float(f"{found.spread[name]:.2g}")
    return entries


def _residual(steps: Sequence[Step], misses: Floats) -> dict[str, float]:
    """Relative misses of each case's own metric from those of log time [N]; a throughput misses the other way."""
    sign = np.array([1.0 if step.metric == METRICS[0] else -1.0 for step in steps])
    return residual(np.exp(sign * misses), np.ones(len(steps))).as_dict()


def _own(steps: Sequence[Step], misses: Floats) -> dict[str, Any]:
    """Steps and the range they leave, by GPU, format, stack and make of layers."""
    places: dict[Name, list[int]] = {}
    for at, step in enumerate(steps):
        places.setdefault(own_place(step.scenario), []).append(at)
    own: dict[str, Any] = {}
    for (*above, make), rows in places.items():
        listed = above[-1] in catalog.calibration(STACKS)["time_factor"]
        before = log1p(rates_of(steps[rows[0]].scenario).band) if listed else inf
        reach = own_reach(misses[rows], known((STACKS, "time_factor", above[-1])), before)
        inner = own
        for key in above:
            inner = inner.setdefault(key, {})
        inner[make] = {"rows": len(rows), "range": float(f"{expm1(reach):.3g}")}
    return own


def own_reach(misses: Floats, spread: float, before: float) -> float:
    """Half the range, in log, that holds nine in ten further steps of a place after a fit that misses its steps by
    `misses` [N]: their scatter, of which few steps tell little, and what they leave unknown of the factor on all of
    them, before them known by `spread`. No wider than the range `before` them unless they miss by more."""
    count, squares = len(misses), float(np.square(misses).sum())
    scatter = (_WORTH * _SCATTER**2 + squares) / (_WORTH + count)
    left = 1.0 / (count / scatter + 1.0 / spread**2)
    reach = student(float(_WORTH + count)) * sqrt(scatter + left)
    seen = _NINE_IN_TEN * sqrt(squares / count)
    return max(min(reach, before), seen)


def _notes(steps: Sequence[Step], misses: Floats, cases: int) -> Iterable[str]:
    if cases > len(steps):
        yield f"{len(steps)} of {cases} cases used as training steps, the others left out"
    far = [at for at in np.argsort(-np.abs(misses), kind="stable") if abs(np.expm1(misses[at])) > _FAR]
    if far:
        step = steps[far[0]]
        yield (
            f"{len(far)} of {len(steps)} training steps still miss by more than {100 * _FAR:.0f} % under this"
            f" calibration, furthest {step.where} ({step.id}), by {100 * np.expm1(misses[far[0]]):+.0f} % of its time;"
            " check what its scenario says of layout, recomputation and overlap"
        )
