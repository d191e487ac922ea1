"""From what a search found to a model's answer: counts by reason, what weaker limits would bring, table and words."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.costs.memory import coefficients
from moesim.errors import shorten
from moesim.planner.explain import words
from moesim.planner.figures import Figures, Limit, best_first, better
from moesim.planner.legality import RULES
from moesim.planner.pareto import axes_of, front
from moesim.planner.plan import ModelPlan, Own, Row
from moesim.planner.pool import Pool
from moesim.planner.relax import ask_nearest, far, nearest, relaxations
from moesim.planner.search import SAMPLES, Search, rows_of
from moesim.planner.space import COLUMNS, NOT_SCREENED, PLACEMENT, SAME
from moesim.units import show

MOST_ROWS = 10_000
"""Screened candidates that the table keeps beside the Pareto front and all that were answered."""
TOO_LARGE, NOT_PRICED, NOT_SIMULATED = "memory", "not priced", "not simulated"


def conclude(state: Search, pool: Pool) -> ModelPlan:
    """The answer; asks, by the pool, for the few candidates that only one limit stands against."""
    ask_nearest(state, pool)
    answered_rows = rows_of(state)
    rows = tuple(row for row in answered_rows if row.road == "simulate" or row.pareto) or answered_rows[:1]
    bound = _bound(state)
    edge = _edge(state, bound)
    places = _kept(state, bound, edge)
    rejected = _rejected(state, bound)
    question = state.question
    closest = None if answered_rows else nearest(state)
    found = ModelPlan(
        question=question,
        base=question.base,
        whole_run=question.whole_run,
        rows=rows,
        closest=None if closest is None else state.answers[closest],
        total=state.total,
        screened=len(state.sieve),
        feasible=int((bound == "").sum()),
        rejected=rejected,
        meanings={code: meaning for code, meaning in _meanings(state).items() if code in rejected},
        relaxations=relaxations(state),
        best_by_gpu=_best_by_gpu(answered_rows),
        words=(),
        notes=(*question.notes, _detail(state)),
        table=_table(state, places, bound, edge),
        places=state.sieve.rows[places],
        overturned=tuple(sorted((state.answers[p] for p in state.overturned if p in state.answers), key=far)),
        failed=tuple(told.reason for told in state.refused.values() if told.road == "simulate"),
        own=_own(state, bound),
    )
    return replace(found, words=words(found, question))


def _own(state: Search, bound: NDArray[Any]) -> Own | None:
    """The scenario's own layout and its rank: it is held against others by the simulation where they are simulated,
    and by the screening where they are not."""
    if state.own is None:
        rows = list(state.elsewhere.values())
        return _ranked(state, bound, rows[-1], rows[0].figures) if rows else None
    row = state.answers.get(state.own)
    return _ranked(state, bound, row, state.sieve.figures.rows(np.array([state.own]))) if row else None


def _ranked(state: Search, bound: NDArray[Any], row: Row, screened: Figures) -> Own:
    """A row and its rank; `screened`: what the closed form says of it."""
    able = {int(place) for place in np.flatnonzero(bound == "")}
    same = {place for place in able if place in state.answers and state.answers[place].road == row.road}
    objective = state.question.spec.objective
    ahead = sum(bool(better(objective, state.answers[place].figures, row.figures)[0]) for place in sorted(same))
    others = np.array(sorted(able - same - {state.own}), dtype=np.int64)
    ahead += int(better(objective, state.sieve.figures.rows(others), screened).sum())
    return Own(row, 1 + ahead, len(able) + int(state.own not in able), state.own is not None)


def _bound(state: Search) -> NDArray[Any]:
    """The reason of every screened candidate ("" where it keeps all limits), by the best that is known of it [C]."""
    keys = np.array(["", *(limit.key for limit in state.sieve.limits)], dtype=object)
    found = keys[state.sieve.bound.astype(np.int64) + 1]
    share = state.sieve.figures.memory_share.copy()
    for place, row in state.answers.items():
        found[place] = max(row.over, key=lambda key: row.over[key]) if row.over else ""
        share[place] = row.figures.memory_share[0]
    found[(found == "memory_headroom") & (share > float(coefficients()["infeasible"]))] = TOO_LARGE
    for place in state.refused:
        found[place] = NOT_PRICED if state.refused[place].road == "estimate" else NOT_SIMULATED
    return found


def _rejected(state: Search, bound: NDArray[Any]) -> dict[str, int]:
    """Candidates by their one reason, the most frequent first."""
    count = Counter(state.rejected)
    count.update(str(code) for code in bound if code)
    return dict(
        sorted(((code, number) for code, number in count.items() if number), key=lambda item: (-item[1], item[0]))
    )


def _meanings(state: Search) -> dict[str, str]:
    """What every reason means."""
    found = {rule.code: rule.meaning for rule in RULES}
    found[SAME] = "says the same as another: a setting without effect there"
    found[PLACEMENT] = "the placement of experts does not go with such an expert-parallel group"
    found[NOT_SCREENED] = "legal, but beyond the budget of candidates"
    for code, road in ((NOT_PRICED, "estimate"), (NOT_SIMULATED, "simulate")):
        why = next((told.reason for told in state.refused.values() if told.road == road), "")
        found[code] = f"the {'closed form' if road == 'estimate' else 'simulation'} has no answer: {shorten(why)}"
    found[TOO_LARGE] = f"does not fit: needs more than {coefficients()['infeasible']:g} x a GPU's memory"
    for limit in state.sieve.limits:
        found[limit.key] = limit_words(limit)
    return found


def limit_words(limit: Limit) -> str:
    """A limit in words."""
    if limit.key == "memory_headroom":
        return f"tight: less than {show(max(0.0, 1.0 - limit.allowed), 'fraction')} of a GPU's memory stays free"
    said = {"days": "takes", "dollars": "costs", "dropped_fraction": "drops", "power": "draws", "gpus": "uses"}
    return f"{said[limit.key]} more than {show(limit.allowed, limit.unit)}{' GPUs' if limit.key == 'gpus' else ''}"


def _best_by_gpu(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The best row of every kind of GPU and fabric, in the order of the rows."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        found.setdefault((row.scenario.cluster.gpu.name, row.scenario.cluster.fabric.name), row)
    return tuple(found.values())


def _edge(state: Search, bound: NDArray[Any]) -> NDArray[np.int64]:
    """Places on the Pareto front of the screened numbers."""
    able = np.flatnonzero(bound == "")
    return able[front(axes_of(state.sieve.figures.rows(able)))] if len(able) else able


def _detail(state: Search) -> str:
    """How the numbers came about."""
    roads = [*(row.road for row in state.answers.values()), *(told.road for told in state.refused.values())]
    simulated = roads.count("simulate")
    said = f"{state.question.base.model.name}: {len(state.sieve):,} candidates screened by the closed form's columns"
    said += f", {len(roads):,} of them estimated"
    said += f", {simulated} simulated with {SAMPLES} routing samples"
    if state.overturned:
        said += f" ({len(state.overturned)} of which the closed form alone had within the limits)"
    return f"{said}; `moesim simulate winner.yaml` takes your own detail"


def _kept(state: Search, bound: NDArray[Any], edge: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the best screened candidates, of the front, and of all that a road answered; best first."""
    order = best_first(state.question.spec.objective, state.sieve.figures)
    order = order[np.argsort(bound[order] != "", kind="stable")]
    extra = np.union1d(edge, np.array(sorted(state.answers), dtype=np.int64))
    kept = np.zeros(len(state.sieve), dtype=np.bool_)
    kept[extra], kept[order[:MOST_ROWS]] = True, True
    return order[kept[order]]


def _table(
    state: Search, places: NDArray[np.int64], bound: NDArray[Any], edge: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Columns of the candidates at these places."""
    sieve, choices = state.sieve, state.question.choices
    rows = sieve.rows[places]
    clusters = [choices.clusters[index] for index in rows[:, COLUMNS.index("cluster")]]
    named = {
        "recompute": [r if isinstance(r, str) else "+".join(r) for r in choices.recomputes],
        "schedule": [schedule.kind for schedule in choices.schedules],
        "capacity": [0.0 if capacity == "dropless" else capacity.factor for capacity in choices.capacities],
        "dispatcher": list(choices.dispatchers),
        "overlap": [spec.expert_communication for spec in choices.overlaps],
    }
    columns: dict[str, Any] = {
        "gpu": np.array([cluster.gpu.name for cluster in clusters], dtype=object),
        "gpus": np.array([cluster.gpus for cluster in clusters], dtype=np.int64),
        "fabric": np.array([cluster.fabric.name for cluster in clusters], dtype=object),
    }
    for place, name in enumerate(COLUMNS):
        if name != "cluster":
            columns[name] = np.array(named[name])[rows[:, place]] if name in named else rows[:, place].astype(np.int64)
    figures = sieve.figures.rows(places)
    columns |= {
        "step_time": figures.step_seconds,
        "exposed_communication_time": sieve.exposed[places],
        "pipeline_bubble_time": sieve.bubble[places],
        "memory_per_gpu": sieve.memory[places],
        "fits_in_memory": figures.memory_share,
        "dropped_token_fraction": figures.dropped,
        "training_time": figures.run_seconds,
        "cost": figures.cost,
        "bound_by": bound[places],
        "pareto": np.isin(places, edge),
    }
    for road in ("estimate", "simulate"):
        told = {place: row.summary["step_time"].value for place, row in state.answers.items() if row.road == road}
        columns[f"{road}d_step_time"] = np.array([told.get(int(place), np.nan) for place in places])
    return columns
