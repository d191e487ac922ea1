"""From what a search of serving found to a model's answer: counts by reason, what weaker limits would bring, table."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import shorten
from moesim.planner.pareto import front
from moesim.planner.pool import Pool
from moesim.planner.serving_explain import words
from moesim.planner.serving_figures import Limit, axes_of, best_first
from moesim.planner.serving_plan import Relaxation, Row, ServingModelPlan
from moesim.planner.serving_search import SLACK, Search, far, nearest, rows_of
from moesim.planner.serving_space import MEANINGS, Candidate
from moesim.units import show

MOST_ROWS = 10_000
"""Candidates that the table keeps beside the Pareto front and all that were answered."""
NEAR = 6
"""Candidates a limit that are estimated: one of them needs least."""
NOT_SIMULATED = "not simulated"
_SAID = {
    "memory": "needs more memory than the engine is given: weights and buffers leave no room for a request, or less"
    " than memory_headroom",
    "rate": "requests come faster than they are served",
    "gpus": "uses more than {} GPUs",
    "dollars_per_hour": "costs more than {} an hour",
    "dollars_per_million_tokens": "costs more than {} a million output tokens",
    "goodput_fraction": "more than {} of the requests break a latency limit (simulated)",
}


def conclude(state: Search, pool: Pool) -> ServingModelPlan:
    """The answer; asks, by the pool, for the few candidates that only one limit stands against."""
    _ask_nearest(state, pool)
    answered = rows_of(state)
    rows = tuple(row for row in answered if row.road == "simulate" or row.pareto) or answered[:1]
    bound = _bound(state)
    edge = _edge(state, bound)
    places = _kept(state, bound, edge)
    counts = Counter(state.found.bound)
    for place, reason in enumerate(bound):  # what was asked in full replaces what the scan said
        before = _scanned(state, place)
        if before != reason:
            counts[before] -= 1
            counts[reason] += 1
    feasible = counts.pop("", 0)
    rejected = {code: count for code, count in (state.found.rejected + counts).items() if count > 0}
    found = ServingModelPlan(
        question=state.question,
        rows=rows,
        closest=None if answered else nearest(state),
        total=state.found.judged + sum(state.found.rejected.values()),
        judged=state.found.judged,
        states=state.found.states,
        feasible=feasible,
        rejected=dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
        meanings={code: meaning for code, meaning in _meanings(state).items() if code in rejected},
        relaxations=_relaxations(state),
        best_by_gpu=_best_by_gpu(answered),
        overturned=tuple(sorted((state.answers[p] for p in state.overturned if p in state.answers), key=far)),
        failed=tuple(told.reason for told in state.refused.values() if told.road == "simulate"),
        own=state.own,
        notes=(*state.question.notes, _detail(state)),
        table=_table(state, places, bound, edge),
        places=tuple(state.found.candidates[int(place)] for place in places),
    )
    return replace(found, words=words(found, state.limits))


def _ask_nearest(state: Search, pool: Pool) -> None:
    """Estimates candidates that only one limit stands against, best first or nearest first."""
    able, places = bool(state.feasible()), []
    for at in range(len(state.limits)):
        others = np.delete(state.excess, at, axis=1).max(axis=1, initial=0.0) <= 1.0
        alone = np.flatnonzero(others & (state.excess[:, at] > 1.0) & np.isfinite(state.excess[:, at]))
        alone = alone[state.excess[alone, at] <= SLACK] if able else alone
        order = best_first(state.question.spec.objective, state.limits, state.figures.rows(alone))
        if not able:
            order = order[np.argsort(state.excess[alone[order], at], kind="stable")]
        places += [int(place) for place in alone[order[: 1 if able else NEAR]]]
    state.ask([place for place in dict.fromkeys(places) if place not in state.answers], "estimate", pool)
    known = [nearest(state)] if not able else []
    few = [row.place for row in known if row is not None and row.place is not None and row.road == "estimate"]
    if few and state.question.spec.simulate:
        state.ask(few, "simulate", pool)


def _relaxations(state: Search) -> tuple[Relaxation, ...]:
    """For each limit what it would have to be: the best for a little more where there is a winner, else what needs
    least more; simulated candidates go before estimated ones."""
    rows, found = rows_of(state), []
    for limit in state.limits:
        alone = [row for _, row in sorted(state.answers.items()) if list(row.over) == [limit.key]]
        alone = [row for row in alone if np.isfinite(row.over[limit.key])]
        alone = [row for row in alone if not rows or row.over[limit.key] <= SLACK]
        alone = [row for row in alone if row.road == "simulate"] or alone
        key = state.value if rows else (lambda row, key=limit.key: row.over[key])
        row = min(alone, key=key, default=None)
        if row is None:
            continue
        ratio = state.value(row) / state.value(rows[0]) if rows else None
        if ratio is None or state.value(row) < state.value(rows[0]) * (1 - 1e-3 * np.sign(state.value(rows[0]))):
            needed = row.over[limit.key] * limit.allowed
            found.append(Relaxation(limit.key, limit.allowed, needed, limit.unit, row, ratio))
    return tuple(found)


def _scanned(state: Search, place: int) -> str:
    """The reason of a candidate as the scan gave it."""
    excess = state.excess[place]
    return state.limits[int(excess.argmax())].key if excess.max() > 1.0 else ""


def _bound(state: Search) -> NDArray[Any]:
    """The reason of every kept candidate ("" where it keeps all limits), by the best that is known of it [C]."""
    found = np.array([_scanned(state, place) for place in range(len(state.excess))], dtype=object)
    for place, row in state.answers.items():
        found[place] = max(row.over, key=lambda key: row.over[key]) if row.over else ""
    for place in state.refused:
        found[place] = NOT_SIMULATED
    return found


def limit_words(limit: Limit) -> str:
    """What breaking a limit means."""
    if limit.unit == "s":
        which = "99 % of the requests" if limit.key.endswith("_p99") else "the median request"
        return f"{limit.key.removesuffix('_p99').replace('_', ' ')} of {which} above {show(limit.allowed, 's')}"
    return _SAID[limit.key].format(show(limit.allowed, limit.unit))


def _meanings(state: Search) -> dict[str, str]:
    """What every reason means."""
    why = next((told.reason for told in state.refused.values()), "")
    found = {**MEANINGS, NOT_SIMULATED: f"the simulation has no answer: {shorten(why)}"}
    return {**found, **{limit.key: limit_words(limit) for limit in state.limits}}


def _best_by_gpu(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The best row of every kind of GPU and fabric, and of either kind of deployment."""
    found: dict[tuple[str, str, bool], Row] = {}
    for row in rows:
        cluster = row.scenario.cluster
        found.setdefault((cluster.gpu.name, cluster.fabric.name, row.layout["disaggregated"]), row)
    return tuple(found.values())


def _edge(state: Search, bound: NDArray[Any]) -> NDArray[np.int64]:
    able = np.flatnonzero(bound == "")
    return able[front(axes_of(state.figures.rows(able)))] if len(able) else able


def _kept(state: Search, bound: NDArray[Any], edge: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the best candidates, of the front, and of all that a road answered; best first."""
    order = best_first(state.question.spec.objective, state.limits, state.figures)
    order = order[np.argsort(bound[order] != "", kind="stable")]
    kept = np.zeros(len(bound), dtype=np.bool_)
    kept[np.union1d(edge, np.array(sorted(state.answers), dtype=np.int64))] = True
    kept[order[:MOST_ROWS]] = True
    return order[kept[order]]


def _detail(state: Search) -> str:
    """How the numbers came about."""
    roads = [*(row.road for row in state.answers.values()), *(told.road for told in state.refused.values())]
    requests = state.question.base.workload.requests
    said = f"{state.found.judged:,} deployments judged by the closed form from {state.found.states:,} steady states of"
    said += f" their engines, {len(roads):,} estimated in full, {roads.count('simulate')} simulated"
    said += f" with {requests:,} requests"
    if state.overturned:
        said += f" ({len(state.overturned)} of which the closed form alone had within the limits)"
    return said


def _table(
    state: Search, places: NDArray[np.int64], bound: NDArray[Any], edge: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Columns of the candidates at these places, as `moesim.planner.serving_columns`."""
    chosen = [state.found.candidates[int(place)] for place in places]
    figures, hardware = state.figures.rows(places), state.question.hardware
    columns: dict[str, NDArray[Any]] = {
        "gpu": np.array([hardware[one.hardware].cluster.gpu.name for one in chosen], dtype=object),
        "fabric": np.array([hardware[one.hardware].cluster.fabric.name for one in chosen], dtype=object),
        "gpus": np.array([one.gpus for one in chosen], dtype=np.int64),
        "disaggregated": np.array([one.apart for one in chosen], dtype=np.bool_),
        **{name: np.array(values, dtype=np.int64) for name, values in _pools(chosen).items()},
        "redundant_experts": np.array([one.settings.redundant for one in chosen], dtype=np.int64),
        "token_budget": np.array([one.settings.token_budget for one in chosen], dtype=np.int64),
        "two_batch_overlap": np.array([one.settings.two_batch for one in chosen], dtype=np.bool_),
        "dispatcher_prefill": np.array([one.settings.dispatchers[0] for one in chosen], dtype=object),
        "dispatcher_decode": np.array([one.settings.dispatchers[1] for one in chosen], dtype=object),
        "time_to_first_token": _finite(figures.time_to_first_token),
        "time_per_output_token": _finite(figures.time_per_output_token),
        "request_latency": _finite(figures.request_latency),
        "output_tokens_per_second_per_gpu": figures.per_gpu,
        "fits_in_memory": figures.memory_share,
        "cost": np.where(figures.per_gpu > 0, figures.cost, np.nan),
        "dollars_per_hour": figures.hourly if state.question.priced else np.full(len(chosen), np.nan),
        "bound_by": bound[places],
        "pareto": np.isin(places, edge),
    }
    for road in ("estimate", "simulate"):
        for name in ("time_to_first_token", "time_per_output_token"):
            rows = state.answers.items()
            told = {p: row.summary[name].value for p, row in rows if row.road == road and name in row.summary}
            columns[f"{road}d_{name}"] = np.array([told.get(int(place), np.nan) for place in places])
    return columns


def _pools(chosen: list[Candidate]) -> dict[str, list[int]]:
    """Columns of the engines; those of decode are the only ones' where there is one kind."""
    found: dict[str, list[int]] = {}
    for at, part in ((0, ""), (-1, "decode_")):
        pools = [one.pools[at] for one in chosen]
        found |= {
            f"{part}instances": [pool.count for pool in pools],
            f"{part}instance_gpus": [pool.layout.gpus for pool in pools],
            f"{part}tensor": [pool.layout.tensor for pool in pools],
            f"{part}pipeline": [pool.layout.pipeline for pool in pools],
            f"{part}expert": [pool.layout.expert for pool in pools],
            f"{part}expert_tensor": [pool.layout.expert_split for pool in pools],
            f"{part}attention_data_parallel": [pool.layout.replicas for pool in pools],
        }
    return found


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.nan)
