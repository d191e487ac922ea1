"""The search of one question: judge all by the closed form, estimate the best in full, simulate a few.

Every stage judges the limits by its own numbers; the order of rows depends on no clock and no worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.planner.answers import Answer, Road
from moesim.planner.pareto import front
from moesim.planner.pool import Pool
from moesim.planner.search import Progress, Refusal
from moesim.planner.serving_figures import (
    Figures,
    Limit,
    answered,
    axes_of,
    best_first,
    distance,
    excesses,
    joined,
    limits_of,
    objective_of,
)
from moesim.planner.serving_plan import Row
from moesim.planner.serving_reading import Question
from moesim.planner.serving_scan import Scan, all_figures, scan
from moesim.planner.serving_space import Candidate, scenario_of
from moesim.scenario.serving import ServingScenario
from moesim.serving.demand import demand_of

Floats = NDArray[np.float64]
DOUBT = 1.06
"""How far the scan may be off: candidates are asked in full up to so many times what a limit allows."""
BEST, OF_FRONT = 6, 12
"""Candidates that are estimated in full beside those to be simulated: the best, and some of the front."""
ROUNDS = 24
"""How often the next best are estimated, or simulated, where too few so far keep the limits."""
SLACK = 1.25
"""How far a limit may be relaxed for a better plan to be worth a word."""


@dataclass
class Search:
    """What is known of one question so far, by the place of a candidate: each is in `answers` or in `refused`, as the
    last road that was asked says. `overturned`: those that the closed form found within the limits and the simulation
    does not. `own`: what the roads say of the scenario's own deployment."""

    question: Question
    found: Scan
    limits: tuple[Limit, ...]
    figures: Figures
    excess: Floats
    answers: dict[int, Row] = field(default_factory=dict)
    refused: dict[int, Refusal] = field(default_factory=dict)
    overturned: list[int] = field(default_factory=list)
    own: Row | None = None

    def scenario(self, place: int) -> ServingScenario:
        """The whole scenario of a candidate."""
        return scenario_of(self.question, self.found.candidates[place])

    def feasible(self, road: Road | None = None) -> list[int]:
        """Places of the answered candidates (by one road) that keep all limits, best first."""
        able = [place for place, row in self.answers.items() if not row.over and road in (None, row.road)]
        return self.ordered(sorted(able))

    def ordered(self, places: list[int]) -> list[int]:
        """Answered places, best first."""
        if not places:
            return []
        figures = joined([self.answers[place].figures for place in places])
        return [places[at] for at in best_first(self.question.spec.objective, self.limits, figures)]

    def ask(self, places: list[int], road: Road, pool: Pool, progress: Progress | None = None) -> None:
        """Asks a road about candidates and takes in what it answers."""
        scenarios = [self.scenario(place) for place in places]
        what = "estimating the best" if road == "estimate" else "simulating"
        heard = (lambda done: progress(what, done / len(places))) if progress else None
        self._learn(places, scenarios, pool.answers(road, scenarios, heard))

    def _learn(self, places: Iterable[int], scenarios: Iterable[ServingScenario], told: Iterable[Answer]) -> None:
        for place, scenario, answer in zip(places, scenarios, told, strict=True):
            before = self.answers.pop(place, None)
            self.refused.pop(place, None)
            if answer.refusal is not None:
                self.refused[place] = Refusal(answer.road, answer.refusal)
            else:
                self.answers[place] = row_of(self, scenario, answer, place)
            kept = place in self.answers and not self.answers[place].over
            if answer.road == "simulate" and before is not None and not before.over and not kept:
                self.overturned.append(place)

    def value(self, row: Row) -> float:
        """What the objective compares of a row, to be small."""
        return float(objective_of(self.question.spec.objective, row.figures)[0])


def row_of(state: Search, scenario: ServingScenario, answer: Answer, place: int | None) -> Row:
    """An answered deployment; what no answer holds is what the scan says of the candidate."""
    known = state.figures.rows(np.array([0 if place is None else place]))
    if place is None:
        known = replace(known, memory_share=np.zeros(1), rate_share=np.zeros(1))
    rate = scenario.prices.gpu_hour if scenario.prices.gpu_hour is not None else 1.0
    demand = demand_of(scenario)
    pace = demand.rate * demand.output if demand.concurrency is None else None
    figures = answered(answer.summary, scenario.cluster.gpus, rate, known, pace)
    over = excesses(state.limits, figures)[0]
    broken = {limit.key: float(over[at]) for at, limit in enumerate(state.limits) if over[at] > 1.0}
    return Row(
        scenario, answer.road, answer.summary, answer.breakdown, answer.memory, answer.notes, figures, broken, place
    )


def search(question: Question, pool: Pool, progress: Progress | None) -> Search:
    """The whole search. Raises `UserError` where no combination is legal."""
    found, limits = scan(question, progress), limits_of(question)
    if not found.candidates:
        told = ", ".join(f"{code} ({count:,})" for code, count in found.rejected.most_common(4)) or "no size fits"
        raise UserError(f"{question.spec.name}: no deployment of {question.base.model.name} is legal; rules: {told}")
    figures = all_figures(found)
    state = Search(question, found, limits, figures, excesses(limits, figures))
    _estimate(state, pool, progress)
    _simulate(state, pool, progress)
    _compare(state, pool)
    return state


def ranked(state: Search) -> NDArray[np.int64]:
    """Places of the candidates that the scan finds within the limits or at their edge, best first."""
    order = best_first(state.question.spec.objective, state.limits, state.figures)
    return order[(state.excess[order] <= DOUBT).all(axis=1)]


def _estimate(state: Search, pool: Pool, progress: Progress | None) -> None:
    """Estimates the best until enough keep the limits; then some of the front; without any, what comes nearest."""
    wanted, order = BEST + state.question.spec.simulate, [int(place) for place in ranked(state)]
    for first in range(0, min(len(order), ROUNDS * wanted), wanted):
        state.ask(order[first : first + wanted], "estimate", pool, progress)
        if len(state.feasible()) >= wanted:
            break
    able = np.flatnonzero((state.excess <= 1.0).all(axis=1))
    if len(able):
        edge = able[front(axes_of(state.figures.rows(able)))]
        edge = edge[best_first(state.question.spec.objective, state.limits, state.figures.rows(edge))]
        spread = edge[np.unique(np.linspace(0, len(edge) - 1, min(OF_FRONT, len(edge))).astype(np.int64))]
        state.ask([int(place) for place in spread if int(place) not in state.answers], "estimate", pool, progress)
    if not state.feasible():
        near = np.argsort(distance(state.excess), kind="stable")
        state.ask([int(p) for p in near if int(p) not in state.answers][:BEST], "estimate", pool, progress)


def _simulate(state: Search, pool: Pool, progress: Progress | None) -> None:
    """Simulates the best of different layouts; where none keeps the limits, the safest that cost more, step by step."""
    wanted = state.question.spec.simulate
    if not wanted:
        return
    places = _distinct(state, state.feasible("estimate"))[:wanted]
    state.ask(places, "simulate", pool, progress)
    for _ in range(ROUNDS):
        if state.feasible("simulate") or not places:
            return
        places = _safer(state, wanted)
        state.ask([place for place in places if place not in state.answers], "estimate", pool)
        places = [place for place in places if place in state.answers and not state.answers[place].over]
        state.ask(places, "simulate", pool, progress)


def _safer(state: Search, wanted: int) -> list[int]:
    """The best of each next higher value of the objective than those simulated so far."""
    known = state.answers.keys() | state.refused.keys()
    tried = [place for place in known if _road(state, place) == "simulate"]
    values = np.asarray(objective_of(state.question.spec.objective, state.figures))
    worst = max((values[place] for place in tried), default=-np.inf)
    found: list[int] = []
    for place in ranked(state):
        last = values[found[-1]] if found else worst
        if values[place] > last * (1.0 + 1e-3 * np.sign(last)) and int(place) not in tried:
            found.append(int(place))
        if len(found) == wanted:
            break
    if found:
        return found
    return [int(place) for place in ranked(state) if int(place) not in tried][:wanted]


def _road(state: Search, place: int) -> Road:
    return state.answers[place].road if place in state.answers else state.refused[place].road


def _compare(state: Search, pool: Pool) -> None:
    """Answers the scenario's own deployment by the plan's roads."""
    own = state.question.own
    if own is None:
        return
    for road in ("estimate", "simulate") if state.question.spec.simulate else ("estimate",):
        answer = pool.answers(road, [own])[0]
        if answer.refusal is None:
            state.own = row_of(state, own, answer, None)


def _distinct(state: Search, places: list[int]) -> list[int]:
    """The places in their order, the best of each layout first: those that differ in settings alone come later."""
    first: list[int] = []
    later: list[int] = []
    seen = set()
    for place in places:
        shape = state.found.candidates[place].shape
        (later if shape in seen else first).append(place)
        seen.add(shape)
    return first + later


def rows_of(state: Search) -> tuple[Row, ...]:
    """The answered candidates that keep all limits, simulated ones first, each best first; the front is marked."""
    places = [*state.feasible("simulate"), *state.feasible("estimate")]
    if not places:
        return ()
    edge = set(front(axes_of(joined([state.answers[place].figures for place in places]))).tolist())
    return tuple(replace(state.answers[place], pareto=at in edge) for at, place in enumerate(places))


def nearest(state: Search) -> Row | None:
    """The answered candidate that comes nearest to keeping all limits."""
    if not state.answers:
        return None
    return min((state.answers[place] for place in sorted(state.answers)), key=far)


def far(row: Row) -> float:
    """How far an answered candidate is from keeping all limits."""
    return float(distance(np.array([list(row.over.values())]))[0]) if row.over else 0.0


__all__ = ["Candidate", "Search", "far", "nearest", "ranked", "row_of", "rows_of", "search"]
