"""How good a placement is on some load: balance of ranks by every definition, and destinations of a token.

T tokens, L layers, R ranks, E experts, P slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.placement.balance import Balance, balance
from moesim.placement.choice import replica_shares, split
from moesim.placement.coactivation import TOLERANCE
from moesim.placement.destinations import Destinations, destinations
from moesim.placement.placement import Placement
from moesim.placement.source import Half, Observed
from moesim.placement.strategies import WITH_PAIRS, Target, place

Floats = NDArray[np.float64]

MOST_TOKENS = 16_384


@dataclass(frozen=True)
class Judged:
    """A placement on a load; `destinations` None where the load does not know tokens."""

    balance: Balance
    destinations: Destinations | None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, by name."""
        return {**self.balance.as_dict(), **(self.destinations.as_dict() if self.destinations else {})}


def judge(
    placement: Placement, half: Half, planned: Half, rule: str = "uniform", ranks_per_domain: int | None = None
) -> Judged:
    """A placement on the load of `half`, replicas chosen by `rule`, where that asks for loads by those of `planned`.

    Destinations are those of at most `MOST_TOKENS` tokens, evenly taken.
    """
    shares = replica_shares(placement, rule, ranks_per_domain, planned.loads)
    loads = rank_loads(placement, half.by_source(placement.ranks), shares)
    reached = None
    if half.choices is not None and half.sequence is not None:
        some = slice(None, None, max(1, -(-len(half.choices) // MOST_TOKENS)))
        source = half.sequence[some] % placement.ranks
        domain = ranks_per_domain or placement.ranks
        reached = destinations(placement, half.choices[some], source, shares, domain)
    return Judged(balance(loads), reached)


@dataclass(frozen=True)
class Outcome:
    """A plan beside what it replaces; `judged`: before, after -> planned (what it was made from), held_out."""

    before: Placement
    plan: Placement
    judged: dict[str, dict[str, Judged]]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers: before, after -> planned, held_out -> measure -> value."""
        return {name: {half: found.as_dict() for half, found in of.items()} for name, of in self.judged.items()}


def plan_and_judge(
    observed: Observed, strategy: str, target: Target, rule: str = "uniform", tolerance: float = TOLERANCE
) -> Outcome:
    """Plans by a strategy on one half, and judges the plan on both, beside the contiguous placement.

    That holds no redundant expert, unless ranks hold equally many only with them.
    """
    known = observed.fit
    before = replace(target, redundant=target.redundant if observed.experts % target.ranks else 0)
    placements = {
        "before": place("contiguous", before, known.loads),
        "after": place(strategy, target, known.loads, known.pairs if strategy in WITH_PAIRS else None, tolerance),
    }
    halves = {"planned": known} | ({"held_out": observed.held_out} if observed.held_out else {})
    judged = {
        name: {half: judge(placement, of, known, rule, target.ranks_per_domain) for half, of in halves.items()}
        for name, placement in placements.items()
    }
    return Outcome(placements["before"], placements["after"], judged)


def rank_loads(placement: Placement, counts: NDArray[np.number], shares: Floats) -> NDArray[np.number]:
    """Copies to each rank [..., L, R] of those from each rank to each expert [..., L, R, E], replicas by `shares`."""
    by_slot = split(counts, placement, shares).sum(axis=-2)
    return np.asarray(by_slot.reshape(*by_slot.shape[:-1], placement.ranks, placement.slots).sum(axis=-1))
