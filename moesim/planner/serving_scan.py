"""All candidates of a plan of serving, judged by the closed form.

With one kind of engine every deployment is a candidate by itself. Where prompts and outputs have engines of their own,
every pair of pools is judged, and of the pairs with the same engines' sizes, counts and settings the best are kept: the
first token depends on one pool alone and further tokens on the other. P and D pools, L limits, C candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.planner.serving_fields import Part
from moesim.planner.serving_figures import (
    Figures,
    Limit,
    best_first,
    binding,
    distance,
    excesses,
    joined,
    limits_of,
    priced,
)
from moesim.planner.serving_reading import Question, Settings
from moesim.planner.serving_screen import Screen, State
from moesim.planner.serving_space import Candidate, Engines, Pooled, engines, phases
from moesim.serving.demand import Demand, demand_of
from moesim.specs.serving import InstanceSpec

Floats = NDArray[np.float64]
Progress = Callable[[str, float], None]
KEPT = 3
"""Pairs kept of a group that differs in layouts alone."""


@dataclass
class Scan:
    """What the closed form says. `rejected`: combinations that no scenario may have, by rule; `bound`: candidates by
    the limit that binds ("" none), whether kept here or not; `states`: steady states that were worked out."""

    candidates: list[Candidate] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    bound: Counter[str] = field(default_factory=Counter)
    states: int = 0

    @property
    def judged(self) -> int:
        """Candidates that the closed form judged."""
        return sum(self.bound.values())


def scan(question: Question, progress: Progress | None = None) -> Scan:
    """Every candidate of a question."""
    found, limits = Scan(), limits_of(question)
    count = sum(len(each.counts) for each in question.hardware)
    done = 0
    for place in range(len(question.hardware)):
        one = _Kind(question, place, limits, found)
        for gpus in question.hardware[place].counts:
            one.add(gpus)
            done += 1
            if progress is not None:
                progress("estimating", done / count)
        found.states += one.screen.asked
    return found


class _Kind:
    """The candidates on one kind of hardware."""

    def __init__(self, question: Question, place: int, limits: tuple[Limit, ...], found: Scan) -> None:
        self.question, self.place, self.limits, self.found = question, place, limits, found
        self.hardware, self.screen = question.hardware[place], Screen(question, place)
        self.demand: Demand = demand_of(self.hardware.base)
        self.engines: dict[tuple[int, Part | None], Engines] = {}

    def add(self, gpus: int) -> None:
        """The candidates on a cluster of so many GPUs."""
        kinds = [apart for apart in self.question.apart if not apart or self.demand.concurrency is None]
        for apart in kinds:
            if apart:
                self._apart(gpus)
            else:
                self._alike(gpus)

    def _of(self, gpus: int, part: Part | None) -> Engines:
        if (gpus, part) not in self.engines:
            self.engines[gpus, part] = engines(self.question, self.hardware, gpus, part)
        return self.engines[gpus, part]

    def _alike(self, gpus: int) -> None:
        """Deployments of one kind of engine."""
        phase = phases(self.hardware.base, False)[0]
        chosen: list[Candidate] = []
        states: list[State] = []
        for size in self.hardware.sizes[None]:
            if gpus % size:
                continue
            space = self._of(size, None)
            for setting, layouts in space.legal.items():
                self.found.rejected.update(space.rejected[setting])
                for layout in layouts:
                    state = self.screen.state(layout, gpus // size, setting, phase)
                    if state is None:
                        self.found.rejected["fabric"] += 1
                        continue
                    chosen.append(Candidate(self.place, gpus, (Pooled(layout, gpus // size),), setting))
                    states.append(state)
        if chosen:
            table = np.array(states)
            self._keep(chosen, self._figures(gpus, table, table), np.arange(len(chosen)))

    def _apart(self, gpus: int) -> None:
        """Deployments whose prompts and outputs have engines of their own."""
        for first, many, then, rest in self._splits(gpus):
            for setting in self.question.settings:
                self._pairs(gpus, (first, many), (then, rest), setting)

    def _splits(self, gpus: int) -> Iterator[tuple[int, int, int, int]]:
        """GPUs of an engine and engines, of prefill and of decode, that make up the cluster."""
        values = self.question.wanted.values
        for first in self.hardware.sizes["prefill"]:
            for then in self.hardware.sizes["decode"]:
                for many in values.get("disaggregated.prefill.instances", range(1, gpus // first + 1)):
                    left = gpus - many * first
                    wanted = values.get("disaggregated.decode.instances")
                    if left > 0 and left % then == 0 and (wanted is None or left // then in wanted):
                        yield first, many, then, left // then

    def _pool(
        self, size: int, count: int, setting: Settings, part: Part
    ) -> tuple[list[InstanceSpec], Floats, Counter[str]]:
        """The layouts of a pool that are legal under a setting, their states [P, 7], and the others by rule."""
        space = self._of(size, part)
        states = [(layout, self.screen.state(layout, count, setting, part)) for layout in space.legal[setting]]
        told = [(layout, state) for layout, state in states if state is not None]
        rejected = space.rejected[setting] + Counter({"fabric": len(states) - len(told)})
        table = np.array([state for _, state in told]).reshape(-1, len(State._fields))
        return [layout for layout, _ in told], table, rejected

    def _pairs(self, gpus: int, first: tuple[int, int], then: tuple[int, int], setting: Settings) -> None:
        """Judges every pair of pools and keeps the best."""
        firsts, ahead, neither = self._pool(*first, setting, "prefill")
        thens, behind, nor = self._pool(*then, setting, "decode")
        others = len(thens) + sum(nor.values())
        for code, count in neither.items():
            self.found.rejected[code] += count * others
        for code, count in nor.items():
            self.found.rejected[code] += count * len(firsts)
        if not firsts or not thens:
            return
        left, right = (index.ravel() for index in np.indices((len(firsts), len(thens))))
        figures = self._figures(gpus, ahead[left], behind[right])
        places = self._worth(figures)
        chosen = [
            Candidate(
                self.place, gpus, (Pooled(firsts[left[at]], first[1]), Pooled(thens[right[at]], then[1])), setting
            )
            for at in places
        ]
        self._keep(chosen, figures, places)

    def _worth(self, figures: Figures) -> NDArray[np.int64]:
        """Places of the pairs worth keeping: the best of those that keep all limits, what comes nearest otherwise, and
        for each limit what it alone keeps out."""
        excess = excesses(self.limits, figures)
        order = best_first(self.question.spec.objective, self.limits, figures)
        able = order[(excess[order] <= 1.0).all(axis=1)][:KEPT]
        near = [order[np.argsort(distance(excess)[order], kind="stable")][:1]]
        for at in range(len(self.limits)):
            others = np.delete(excess, at, axis=1).max(axis=1, initial=0.0) <= 1.0
            alone = order[(others & (excess[:, at] > 1.0))[order]]
            near.append(alone[np.argsort(excess[alone, at], kind="stable")][:1])
        return np.unique(np.concatenate([able, *near]))

    def _figures(self, gpus: int, ahead: Floats, behind: Floats) -> Figures:
        """Figures of deployments whose prompts `ahead` [C, 7] and outputs `behind` [C, 7] are worked by these pools."""
        many = np.full(len(ahead), float(gpus))
        own, other = (dict(zip(State._fields, table.T, strict=True)) for table in (ahead, behind))
        first = own["first"] + own["moved"] + other["seat"]
        times = {
            "time_to_first_token": first,
            "time_per_output_token": other["each"],
            "request_latency": first + other["each"] * max(self.demand.output - 1.0, 0.0),
        }
        shares = np.maximum(own["memory"], other["memory"]), np.maximum(own["rate"], other["rate"])
        return priced(many * self.hardware.rate, many, other["tokens"], shares, times)

    def _keep(self, chosen: list[Candidate], figures: Figures, places: NDArray[np.int64]) -> None:
        """Counts all by the limit that binds, and keeps those at `places`."""
        bound = binding(excesses(self.limits, figures))
        keys = [limit.key for limit in self.limits]
        for place, count in zip(*np.unique(bound, return_counts=True), strict=True):
            self.found.bound["" if place < 0 else keys[place]] += int(count)
        self.found.candidates += chosen
        self.found.figures.append(figures.rows(places))


def all_figures(found: Scan) -> Figures:
    """The figures of all kept candidates."""
    return joined(found.figures)
