"""The search of one question: enumerate, screen, keep the feasible, estimate the best and the diverse, simulate a few.

Every stage judges the limits by its own numbers; the order of rows depends on no clock and no worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from moesim.errors import UserError
from moesim.planner.answers import Answer, Road
from moesim.planner.candidate import scenario_at
from moesim.planner.figures import Figures, Limit, best_first, distance, excesses
from moesim.planner.legality import RULES
from moesim.planner.pareto import axes_of, front
from moesim.planner.plan import Row, row_figures
from moesim.planner.pool import Pool
from moesim.planner.reading import Question
from moesim.planner.sieve import Sieve, sieve
from moesim.planner.space import COLUMNS, LAYOUT, enumerate_space, own_row
from moesim.scenario.scenario import Scenario

Progress = Callable[[str, float], None]
ROADS: tuple[Road, ...] = ("estimate", "simulate")

BEST, LAYOUTS, OF_CLUSTER, OF_FRONT = 32, 32, 2, 24
"""Screened candidates that are estimated: the best; the best of so many layouts, of each cluster, of the front."""
ROUNDS = 4
"""How often the next best are estimated, or simulated, where none so far keeps the limits."""
SAMPLES, DRAWN_TOKENS = 4, 1024
"""Detail of a shortlist's simulation: routing samples a layer, and tokens drawn of a microbatch."""


class Refusal(NamedTuple):
    """Why a road has no answer for a candidate."""

    road: Road
    reason: str


@dataclass
class Search:
    """What is known of one question so far, by the place of a candidate in the sieve: each is in `answers` or in
    `refused`, as the last road that was asked says. `overturned`: those that the closed form found within the limits
    and the simulation does not. `own`: the place of the scenario's own layout; `elsewhere`: what the roads say of it
    where it stands on a cluster that is not searched."""

    question: Question
    sieve: Sieve
    rejected: dict[str, int]
    total: int
    answers: dict[int, Row] = field(default_factory=dict)
    refused: dict[int, Refusal] = field(default_factory=dict)
    overturned: list[int] = field(default_factory=list)
    own: int | None = None
    elsewhere: dict[Road, Row] = field(default_factory=dict)

    def feasible(self, road: Road | None = None) -> list[int]:
        """Places of the answered candidates (by one road) that keep all limits, best first."""
        places = [place for place, row in self.answers.items() if not row.over and road in (None, row.road)]
        return self.ordered(sorted(places))

    def ordered(self, places: list[int]) -> list[int]:
        """Answered places, best first."""
        if not places:
            return []
        figures = joined([self.answers[place].figures for place in places])
        return [places[at] for at in best_first(self.question.spec.objective, figures)]

    def scenario(self, place: int) -> Scenario:
        """The whole scenario of a candidate, with its cluster's price and a name."""
        return scenario_at(self.question, self.sieve.rows[place])

    def learn(self, places: Iterable[int], answers: Iterable[Answer]) -> None:
        """Takes in what a road answered; what another road said before no longer counts."""
        for place, answer in zip(places, answers, strict=True):
            before = self.answers.pop(place, None)
            self.refused.pop(place, None)
            if answer.refusal is not None:
                self.refused[place] = Refusal(answer.road, answer.refusal)
            else:
                step = float(self.sieve.figures.step_seconds[place])
                self.answers[place] = row_of(self.scenario(place), answer, self.sieve.limits, step)
            kept = place in self.answers and not self.answers[place].over
            if answer.road == "simulate" and before is not None and not before.over and not kept:
                self.overturned.append(place)

    def ask(self, places: list[int], road: Road, pool: Pool, progress: Progress | None = None) -> None:
        """Asks a road about candidates and takes in what it answers."""
        scenarios = [self.scenario(place) for place in places]
        if road == "simulate":
            scenarios = [quick(scenario) for scenario in scenarios]
        what = "estimating" if road == "estimate" else "simulating"
        heard = (lambda done: progress(what, done / len(places))) if progress else None
        self.learn(places, pool.answers(road, scenarios, heard))


def row_of(scenario: Scenario, answer: Answer, limits: tuple[Limit, ...], step: float) -> Row:
    """An answered candidate; `step`: seconds that the screening gave it."""
    watts = scenario.cluster.gpus * (scenario.cluster.gpu.power or 0.0)
    figures = row_figures(answer.summary, scenario.cluster.gpus, watts)
    over = excesses(limits, figures)[0]
    broken = {limit.key: float(over[at]) for at, limit in enumerate(limits) if over[at] > 1.0}
    told = (answer.summary, answer.breakdown, answer.memory, answer.notes)
    return Row(scenario, answer.road, *told, figures, step, broken)


def search(question: Question, pool: Pool, progress: Progress | None) -> Search:
    """The whole search. Raises `UserError` where no combination is legal."""
    space = enumerate_space(question)
    if not len(space.rows):
        raise UserError(_nothing_legal(question, space.rejected, space.total))
    found, rejected = sieve(question, space, progress)
    state = Search(question, found, rejected, space.total, own=_place(question, found))
    _estimate(state, pool, progress)
    _simulate(state, pool, progress)
    _compare(state, pool)
    return state


def _place(question: Question, found: Sieve) -> int | None:
    """The place of the scenario's own layout."""
    row = own_row(question)
    return None if row is None else int(np.flatnonzero((found.rows == row).all(axis=1))[0])


def _nothing_legal(question: Question, rejected: dict[str, int], total: int) -> str:
    meanings = {rule.code: rule.meaning for rule in RULES}
    most = sorted(rejected.items(), key=lambda item: -item[1])[:4]
    told = ", ".join(f"{code} ({count:,}: {meanings.get(code, code)})" for code, count in most)
    model = question.base.model.name
    return f"{question.spec.name}: none of {total:,} combinations is a legal layout of {model}; broken rules: {told}"


def _estimate(state: Search, pool: Pool, progress: Progress | None) -> None:
    """Estimates the shortlist, and the next best for as long as too few keep the limits; at last what comes nearest."""
    wanted, own = max(1, state.question.spec.simulate), [] if state.own is None else [state.own]
    for _ in range(ROUNDS):
        places = list(dict.fromkeys([*shortlist(state), *own]))
        state.ask(places, "estimate", pool, progress)
        own = []
        if len(state.feasible()) >= wanted or not places:
            break
    if not state.feasible():
        order = best_first(state.question.spec.objective, state.sieve.figures)
        near = order[np.argsort(distance(state.sieve.excess)[order], kind="stable")]
        known = state.answers.keys() | state.refused.keys()
        state.ask([int(place) for place in near if int(place) not in known][:BEST], "estimate", pool, progress)


def shortlist(state: Search) -> list[int]:
    """Feasible candidates, not yet answered, that are worth an estimate: the best, and the best of their kind."""
    known = np.array(sorted(state.answers.keys() | state.refused.keys()), dtype=np.int64)
    able = np.setdiff1d(np.flatnonzero(state.sieve.bound < 0), known)
    if not len(able):
        return []
    figures, rows = state.sieve.figures.rows(able), state.sieve.rows[able]
    order = best_first(state.question.spec.objective, figures)
    cluster = rows[order][:, COLUMNS.index("cluster")]
    layouts = rows[order][:, [COLUMNS.index(name) for name in ("cluster", *LAYOUT)]]
    first = np.sort(np.unique(layouts, axis=0, return_index=True)[1])[:LAYOUTS]
    each = [order[np.flatnonzero(cluster == one)[:OF_CLUSTER]] for one in np.unique(cluster)]
    edge = front(axes_of(figures))
    edge = edge[best_first(state.question.spec.objective, figures.rows(edge))]
    spread = edge[np.unique(np.linspace(0, len(edge) - 1, min(OF_FRONT, len(edge))).astype(np.int64))]
    chosen = np.concatenate([order[:BEST], order[first], *each, spread])
    return [int(place) for place in able[np.unique(chosen)]]


def _simulate(state: Search, pool: Pool, progress: Progress | None) -> None:
    """Simulates the best layouts, and the scenario's own; the next best where none of them keeps the limits."""
    wanted = state.question.spec.simulate
    own = [place for place in (state.own,) if place in state.answers and place is not None]
    for _ in range(ROUNDS if wanted else 0):
        places = distinct(state, state.feasible("estimate"))[:wanted]
        state.ask(list(dict.fromkeys([*places, *own])), "simulate", pool, progress)
        own = []
        if not places or any(place in places for place in state.feasible("simulate")):
            break


def _compare(state: Search, pool: Pool) -> None:
    """Answers the scenario's own layout by the plan's roads where it stands on a cluster that is not searched."""
    own, roads = state.question.elsewhere, ROADS[: 2 if state.question.spec.simulate else 1]
    if own is None:
        return
    for road in roads:
        answer = pool.answers(road, [own if road == "estimate" else quick(own)])[0]
        if answer.refusal is None:
            state.elsewhere[road] = row_of(own, answer, state.sieve.limits, 0.0)


def distinct(state: Search, places: list[int]) -> list[int]:
    """The places in their order, the best of each layout first: rows that differ in settings alone come later."""
    first: list[int] = []
    later: list[int] = []
    seen: set[bytes] = set()
    names = [COLUMNS.index(name) for name in ("cluster", *LAYOUT)]
    for place in places:
        layout = state.sieve.rows[place, names].tobytes()
        (later if layout in seen else first).append(place)
        seen.add(layout)
    return first + later


def quick(scenario: Scenario) -> Scenario:
    """The scenario in the detail of a shortlist: few routing samples, and of a microbatch some of its tokens."""
    tokens = scenario.tokens_per_rank * scenario.parallelism.expert_tensor
    thin = scenario.model.is_moe and scenario.routing.capacity == "dropless" and not scenario.router.evened
    drawn = max(size for size in range(1, min(tokens, DRAWN_TOKENS) + 1) if tokens % size == 0) if thin else None
    samples = min(SAMPLES, scenario.simulation.microbatch_samples)
    detail = {"microbatch_samples": samples, "sampled_tokens": drawn, "steps": 1}
    return scenario.model_copy(update={"simulation": scenario.simulation.model_copy(update=detail)})


def rows_of(state: Search) -> tuple[Row, ...]:
    """The answered candidates that keep all limits, simulated ones first, each best first; the front is marked."""
    simulated = state.feasible("simulate")
    places = [*simulated, *state.feasible("estimate")]
    if not places:
        return ()
    figures = joined([state.answers[place].figures for place in places])
    edge = set(front(axes_of(figures)).tolist())
    return tuple(replace(state.answers[place], pareto=at in edge) for at, place in enumerate(places))


def joined(figures: list[Figures]) -> Figures:
    """Figures of several candidates as one."""
    return Figures(*(np.concatenate([getattr(one, name) for one in figures]) for name in Figures.__dataclass_fields__))
