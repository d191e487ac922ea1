"""What a weaker limit would bring: for each limit the candidate that it alone keeps out, by the best that is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moesim.planner.figures import best_first, better, distance, objective_of
from moesim.planner.plan import Relaxation, Row
from moesim.planner.pool import Pool
from moesim.planner.search import Search, rows_of

SLACK = 1.25
"""How far a limit may be relaxed for a better plan to be worth a word."""
NEAR = 16
"""Screened candidates a limit that are estimated: where the screening is a little off, one of them needs least."""
ROUNDS = 4
"""Candidates that may turn out to be the nearest one by one, when simulated."""


def ask_nearest(state: Search, pool: Pool) -> None:
    """Answers candidates that only one limit stands against, and simulates the nearest where the plan simulates."""
    limits = range(len(state.sieve.limits))
    known = state.answers.keys() | state.refused.keys()
    state.ask(list(dict.fromkeys(p for at in limits for p in _kept_out(state, at) if p not in known)), "estimate", pool)
    wanted = state.question.spec.simulate
    if not wanted:
        return
    few = 1 if state.feasible() else max(1, wanted // len(limits))
    near = [place for at in limits for place in _alone(state, at, estimated=True)[:few] if _promises(state, place)]
    state.ask(list(dict.fromkeys(near)), "simulate", pool)
    for _ in range(ROUNDS):
        place = nearest(state)
        if state.feasible() or place is None or state.answers[place].road == "simulate":
            break
        state.ask([place], "simulate", pool)


def relaxations(state: Search) -> tuple[Relaxation, ...]:
    """For each limit what it would have to be: the best for a little more where there is a winner, else what needs
    least more; simulated candidates go before estimated ones."""
    rows = rows_of(state)
    winner = rows[0] if rows else None
    found = []
    for at, limit in enumerate(state.sieve.limits):
        for place in _alone(state, at)[:1]:
            row = state.answers[place]
            ratio = None if winner is None else _value(state, row) / _value(state, winner)
            if ratio is None or ratio < 1.0:
                needed = row.over[limit.key] * limit.allowed
                found.append(Relaxation(limit.key, limit.allowed, needed, limit.unit, row, ratio))
    return tuple(found)


def nearest(state: Search) -> int | None:
    """The answered candidate that comes nearest to keeping all limits, None where none was answered."""

    return min(sorted(state.answers), key=lambda place: far(state.answers[place]), default=None)


def far(row: Row) -> float:
    """How far an answered candidate is from keeping all limits."""
    return float(distance(np.array([list(row.over.values())]))[0]) if row.over else 0.0


def _alone(state: Search, at: int, estimated: bool = False) -> list[int]:
    """Answered places that limit `at` alone keeps out, the most worth first; `estimated`: those not simulated yet."""
    key, figure = state.sieve.limits[at].key, state.sieve.limits[at].figure
    able = bool(state.feasible())
    places = [place for place, row in sorted(state.answers.items()) if list(row.over) == [key]]
    places = [place for place in places if not able or state.answers[place].over[key] <= SLACK]
    if figure == "memory_share":  # nobody can free more of a GPU than it has
        places = [place for place in places if state.answers[place].figures.memory_share[0] <= 1.0]
    simulated = [place for place in places if state.answers[place].road == "simulate"]
    places = [place for place in places if place not in simulated] if estimated else simulated or places
    places = state.ordered(places)
    return places if able else sorted(places, key=lambda place: state.answers[place].over[key])


def _kept_out(state: Search, at: int) -> Iterator[int]:
    """Places of screened candidates that limit `at` alone keeps out, those that would be worth most."""
    excess = state.sieve.excess
    others = np.delete(excess, at, axis=1).max(axis=1, initial=0.0) <= 1.0
    able = np.flatnonzero(others & (excess[:, at] > 1.0))
    if state.feasible():
        able = able[excess[able, at] <= SLACK]
    if state.sieve.limits[at].figure == "memory_share":
        able = able[state.sieve.figures.memory_share[able] <= 1.0]
    order = best_first(state.question.spec.objective, state.sieve.figures.rows(able))
    if not state.feasible():
        order = order[np.argsort(excess[able[order], at], kind="stable")]
    yield from (int(place) for place in able[order[: 1 if state.feasible() else NEAR]])


def _promises(state: Search, place: int) -> bool:
    """Whether a candidate is better than the best that keeps all limits, if there is one, by the screening."""
    best, figures = state.feasible("simulate")[:1], state.sieve.figures
    return not best or bool(
        better(state.question.spec.objective, *(figures.rows(np.array([p])) for p in (place, *best)))[0]
    )


def _value(state: Search, row: Row) -> float:
    """The objective of a row, to be small."""
    return float(getattr(row.figures, objective_of(state.question.spec.objective))[0])
