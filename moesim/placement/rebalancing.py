"""A new placement every so many steps, from the loads seen before it and never from those to come.

Ranks of a new plan are named so that least moves (`placement.migration`). What is placed at step t has seen steps up to
t - 1: `seen` is that view for every step at once, plans are made from it in one go, and a schedule picks those of the
steps at which it places anew.

N steps, M samples of a step, L layers, E experts, R ranks, P slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.placement.balance import Balance, balance
from moesim.placement.migration import Moves, moves, relabelled
from moesim.placement.placement import Placement
from moesim.placement.strategies import Target, place
from moesim.placement.swaps import mended
from moesim.traces import measures

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WITHOUT_DOMAINS = ("contiguous", "round-robin", "greedy", "global")
"""Strategies whose ranks may be named anew across domains: nothing in them asks which domain holds an expert."""
_ROWS = 4096


@dataclass(frozen=True)
class Memory:
    """What a placement remembers of the loads before it: the mean of the last `window` steps, or, where `half_life` is
    stated, an average in which a step counts half as much as one `half_life` steps later."""

    window: int = 10
    half_life: float | None = None

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"a window of {self.window} steps: it must hold at least one")
        if self.half_life is not None and not self.half_life > 0.0:
            raise UserError(f"a half-life of {self.half_life:g} steps: it must be above 0")

    @property
    def words(self) -> str:
        """It in words."""
        if self.half_life is not None:
            return f"an exponential average of half-life {self.half_life:g} steps"
        return f"the mean of the last {self.window} steps"


def seen(loads: NDArray[np.number], memory: Memory) -> Floats:
    """What is known before each step [N+1, L, E] of loads [N, L, E]; before step 0 nothing: all alike."""
    found = np.ones((len(loads) + 1, *loads.shape[1:]))
    if memory.half_life is not None:
        keeps, total, weight = 0.5 ** (1.0 / memory.half_life), np.zeros(loads.shape[1:]), 0.0
        for step, load in enumerate(loads):
            total, weight = keeps * total + load, keeps * weight + 1.0
            found[step + 1] = total / weight
        return found
    upto = np.concatenate([np.zeros((1, *loads.shape[1:])), np.cumsum(loads, axis=0, dtype=np.float64)])
    for step in range(1, len(found)):
        first = max(0, step - memory.window)
        found[step] = (upto[step] - upto[first]) / (step - first)
    return found


def plans(strategy: str, target: Target, known: Floats) -> Integers:
    """The placement that each view of the loads [N, L, E] asks for: expert of each slot [N, L, R, slots of a rank]."""
    rows = known.reshape(-1, known.shape[-1])
    parts = [
        place(strategy, target, rows[first : first + _ROWS]).expert_of_slot for first in range(0, len(rows), _ROWS)
    ]
    slots = np.concatenate(parts)
    return slots.reshape(*known.shape[:2], *slots.shape[1:])


def placed_loads(expert_of_slot: Integers, loads: NDArray[np.number]) -> Floats:
    """Load of each rank [..., L, R] of loads [..., L, E] under a placement [L, R, slots], replicas used alike."""
    layers, ranks, slots = expert_of_slot.shape
    counts = Placement(expert_of_slot, loads.shape[-1]).replica_counts
    each = (loads / counts)[..., np.arange(layers)[:, None], expert_of_slot.reshape(layers, -1)]
    return np.asarray(each.reshape(*each.shape[:-1], ranks, slots).sum(axis=-1))


@dataclass(frozen=True)
class Change:
    """A placement [L, R, slots] in force from `step` on, and what moved to get there."""

    step: int
    expert_of_slot: Integers
    moves: Moves


@dataclass(frozen=True)
class Rules:
    """How placements are renewed: `domain` ranks a domain; `free`: ranks may be named anew, and experts change places,
    across domains; `tolerance`: of load above the plan's busiest rank, that a placement may keep. Where that is None
    the plan itself is put in force."""

    domain: int
    free: bool
    tolerance: float | None = None


def renewed(planned: Integers, known: Floats, interval: int | None, rules: Rules, first: int = 0) -> Iterator[Change]:
    """The placements in force from step `first` on, a new one every `interval` steps (None: the first for good).

    `planned` [N, L, R, slots] are `plans` of what was `known` [N, L, E] before each step.
    """
    now = planned[first]
    yield Change(first, now, moves(now, now, known.shape[-1], rules.domain))
    for step in range(first + interval, len(planned), interval) if interval else ():
        wanted = _next(now, planned[step], known[step], rules)
        yield Change(step, wanted, moves(now, wanted, known.shape[-1], rules.domain))
        now = wanted


def _next(now: Integers, planned: Integers, known: Floats, rules: Rules) -> Integers:
    """The placement after `now` [L, R, slots]: the plan, or, within the tolerance, what is nearer to `now`."""
    goal = placed_loads(planned, known).max(axis=-1)
    limit, kept = goal, now
    if rules.tolerance is not None:
        limit = (1.0 + rules.tolerance) * goal
        kept = mended(now, known, limit) if rules.free else now
    wanted = kept.copy()
    # What cannot be mended, or need not be, follows the plan.
    late = placed_loads(kept, known).max(axis=-1) > limit * (1.0 + 1e-12)
    if late.any():
        wanted[late] = relabelled(now[late], planned[late], known.shape[-1], rules.domain, rules.free)
    return wanted


def rank_loads(changes: list[Change], loads: NDArray[np.number], first: int = 0) -> Floats:
    """Load of each rank [N - first, ..., L, R] of loads [N, ..., L, E] under the placements in force."""
    ends = [*(change.step for change in changes[1:]), len(loads)]
    parts = [
        placed_loads(change.expert_of_slot, loads[change.step : end]) for change, end in zip(changes, ends, strict=True)
    ]
    return np.concatenate(parts)


def over_time(loads: Floats) -> tuple[Balance, ...]:
    """The balance of each step [N] of rank loads [N, M, L, R], by every definition."""
    return tuple(balance(step) for step in loads)


def imbalance(loads: Floats) -> Floats:
    """Busiest rank over the mean [...] of rank loads [..., R]: what seconds follow."""
    return measures.max_over_mean(loads)
