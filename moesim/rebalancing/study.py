"""The study: the same drifting loads under placements renewed every 1, 2, 5, 10 ... steps, priced with what moves.

For each interval n a step costs

    mean over steps, samples and layers of seconds(busiest rank over mean)  +  what is waited for a change / n

where placements follow loads seen before. A change stands in the way for all its seconds (a stall), or, where it
overlaps, for those that the links do not have left: `Overlap`. The net gain is counted from a placement in order that
never changes; a placement made once, from what was seen before the first step, is told beside it. The best interval is
looked for between the given ones too. Seeds draw other walks and other tokens; a range is that over the seeds.

N steps, M samples of a step, L layers, E experts, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError, shorten
from moesim.placement.balance import balance
from moesim.placement.rebalancing import (
    WITHOUT_DOMAINS,
    Change,
    Rules,
    imbalance,
    over_time,
    plans,
    rank_loads,
    renewed,
)
from moesim.placement.strategies import Target
from moesim.rebalancing.loads import History
from moesim.rebalancing.outcome import Range, Rebalancing, Row, Run
from moesim.step.migration import Cost

Progress = Callable[[str, float], None]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Seconds = Callable[[Floats], Floats]

REFINEMENTS = 6
NEVER, ONCE = "in order", "placed once"


@dataclass(frozen=True)
class Overlap:
    """What a change of placement may hide behind: the links' time that steps leave (1 - `busy`), in at most `steps`.

    Training has one: weights change with every step, so that what left before an update is of no use after it. Serving
    takes as many as there are; the old placement holds until all is there.
    """

    busy: float
    steps: float = 1.0


@dataclass(frozen=True)
class Question:
    """What is placed how, and what it costs: `seconds` of a step by the imbalance [...] of a layer's ranks, `move` the
    cost of moving experts [L, R, R]. `overlap` None: a change is a stall. `tolerance`: see `rebalancing.Rules`.
    `overhead`: seconds that each change keeps all waiting before anything moves (counts gathered, a plan made)."""

    strategy: str
    target: Target
    seconds: Seconds
    move: Callable[[Floats], Cost]
    tolerance: float | None = 0.02
    overlap: Overlap | None = None
    overhead: float = 0.0

    @property
    def rules(self) -> Rules:
        """How placements are renewed."""
        free = self.strategy in WITHOUT_DOMAINS or self.target.domains == 1
        return Rules(self.target.domain_size, free, self.tolerance)


class Seeded:
    """One seed's loads with their plans, asked for one interval after the other."""

    def __init__(self, question: Question, history: History) -> None:
        self.question, self.history = question, history
        self.planned = plans(question.strategy, question.target, history.known)
        self.found: dict[int | str, Run] = {}

    def at(self, interval: int) -> Run:
        """A placement renewed every `interval` steps."""
        if interval not in self.found:
            self.found[interval] = self._run(self.planned, interval)
        return self.found[interval]

    def never(self) -> Run:
        """Experts in order for good."""
        if NEVER not in self.found:
            even = self.question.target
            short = Target(even.ranks, even.ranks_per_domain, even.redundant if even.redundant and self._odd else 0)
            self.found[NEVER] = self._run(plans("contiguous", short, self.history.known), None)
        return self.found[NEVER]

    def once(self) -> Run:
        """Placed before the first step for good."""
        if ONCE not in self.found:
            self.found[ONCE] = self._run(self.planned, None)
        return self.found[ONCE]

    @property
    def _odd(self) -> bool:
        """Whether ranks hold equally many experts only with the redundant ones."""
        return bool(self.history.known.shape[-1] % self.question.target.ranks)

    def _run(self, planned: Integers, interval: int | None) -> Run:
        question, history = self.question, self.history
        changes = list(renewed(planned, history.known, interval, question.rules, history.warm))
        costs = [question.move(change.moves.experts) for change in changes[1:]]
        even = float(question.seconds(np.ones(1))[0])
        overlap, every = question.overlap, interval or 1
        waits = [question.overhead + exposed(cost.seconds, even, every, overlap) for cost in costs]
        if overlap is not None and overlap.steps > 1.0:
            late = [delay(cost.seconds, even, every, overlap) for cost in costs]
            changes = [changes[0], *(_later(change, steps) for change, steps in zip(changes[1:], late, strict=True))]
        loads = rank_loads(_before(changes, len(history.loads)), history.loads)
        return Run(
            loads=loads,
            balance=balance(loads),
            compute=question.seconds(imbalance(loads)).mean(axis=(1, 2)),
            wait=float(np.mean(waits)) / every if waits else 0.0,
            costs=tuple(costs),
            moved=float(np.mean([change.moves.experts.sum(axis=(1, 2)).mean() for change in changes[1:]] or [0.0])),
        )


def exposed(seconds: float, step: float, interval: int, overlap: Overlap | None) -> float:
    """Seconds that a change of placement keeps everybody waiting."""
    if overlap is None:
        return seconds
    return max(0.0, seconds - (1.0 - overlap.busy) * step * min(overlap.steps, interval))


def delay(seconds: float, step: float, interval: int, overlap: Overlap) -> int:
    """Steps for which the old placement still holds while the new one arrives."""
    free = (1.0 - overlap.busy) * step
    return interval if free <= 0.0 else min(interval, ceil(seconds / free))


def _later(change: Change, steps: int) -> Change:
    return Change(change.step + steps, change.expert_of_slot, change.moves)


def _before(changes: Iterable[Change], end: int) -> list[Change]:
    """Those that come into force before the end, the last of each step."""
    by_step = {change.step: change for change in changes if change.step < end}
    return [by_step[step] for step in sorted(by_step)]


def study(
    question: Question, histories: Sequence[History], intervals: Iterable[int], progress: Progress | None = None
) -> Rebalancing:
    """The net gain at each interval and at the best one found, over all `histories`, one a seed.

    Raises `UserError` where an interval is longer than half the steps: too few changes to tell.
    """
    asked = sorted(set(intervals))
    steps = len(histories[0].loads) - histories[0].warm
    if not asked or asked[0] < 1 or asked[-1] > steps // 2:
        raise UserError(
            f"intervals must lie between 1 and {steps // 2}, half of the {steps} steps, not {shorten(asked)}"
        )
    seeds = [Seeded(question, history) for history in histories]
    best = _refined(seeds, asked, steps // 2, progress or _unheard)
    tried = sorted(key for key in seeds[0].found if isinstance(key, int))
    rows = [_row(None, NEVER, seeds, [seed.never() for seed in seeds])]
    rows += [_row(None, ONCE, seeds, [seed.once() for seed in seeds])]
    rows += [
        _row(n, f"every {n} steps" if n > 1 else "every step", seeds, [seed.at(n) for seed in seeds]) for n in tried
    ]
    by_interval = {row.interval: row for row in rows if row.interval is not None}
    winner = by_interval[best]
    worth = winner.gain.value > max(0.0, rows[1].gain.value)
    run = seeds[0].at(best)
    return Rebalancing(
        even=float(question.seconds(np.ones(1))[0]),
        rows=tuple(rows),
        best=winner if worth else None,
        best_by_seed=tuple(min(tried, key=lambda n: seed.at(n).total) for seed in seeds),
        over_time={NEVER: over_time(seeds[0].never().loads), winner.name: over_time(run.loads)},
    )


def _unheard(what: str, share: float) -> None:
    """Nobody listens."""


def _refined(seeds: Sequence[Seeded], asked: Sequence[int], most: int, progress: Progress) -> int:
    """The best interval: of those asked, then of whole numbers halfway, by ratio, to its neighbours tried so far."""

    def total(interval: int) -> float:
        return float(np.mean([seed.at(interval).total for seed in seeds]))

    # One interval takes as long as it has changes.
    work = np.cumsum([1.0 / interval for interval in asked])
    tried = {}
    for interval, done in zip(asked, work / work[-1], strict=True):
        tried[interval] = total(interval)
        progress("intervals asked for", float(done))
    best = min(tried, key=lambda n: tried[n])
    for number in range(REFINEMENTS):
        progress("intervals near the best", number / REFINEMENTS)
        below = max((n for n in tried if n < best), default=1)
        above = min((n for n in tried if n > best), default=most)
        between = {round(sqrt(best * other)) for other in (below, above)} - set(tried)
        if not between:
            break
        tried |= {interval: total(interval) for interval in sorted(between)}
        best = min(tried, key=lambda n: tried[n])
    progress("intervals near the best", 1.0)
    return best


def _row(interval: int | None, name: str, seeds: Sequence[Seeded], runs: Sequence[Run]) -> Row:
    base = [seed.never().total for seed in seeds]
    costs = [cost for run in runs for cost in run.costs]

    def mean(values: Iterable[float]) -> float:
        found = list(values)
        return float(np.mean(found)) if found else 0.0

    return Row(
        interval=interval,
        name=name,
        step=Range.of([run.total for run in runs]),
        saved=Range.of([was - float(run.compute.mean()) for was, run in zip(base, runs, strict=True)]),
        waited=Range.of([run.wait for run in runs]),
        gain=Range.of([was - run.total for was, run in zip(base, runs, strict=True)]),
        balance={key: Range.of([run.balance.as_dict()[key] for run in runs]) for key in runs[0].balance.as_dict()},
        moved=mean(run.moved for run in runs),
        migration=mean(cost.seconds for cost in costs),
        bytes_up=mean(cost.up for cost in costs),
        bytes_out=mean(cost.out for cost in costs),
        staged=max((cost.staged for cost in costs), default=0.0),
    )
