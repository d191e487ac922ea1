"""A placement with its replica choice: from loads of experts to loads of slots and ranks.

L layers, R ranks, which are the sources too, E experts, P slots; leading axes `...` are batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.placement.balance import Balance, balance
from moesim.placement.choice import replica_shares
from moesim.placement.placement import Placement
from moesim.placement.strategies import Target, place
from moesim.specs.workload import PlacementSpec

Floats = NDArray[np.float64]

BY_DOMAIN = ("groups", "co-activation", "hierarchical")
"""Strategies that look at scale-up domains."""
BY_LOAD = ("groups", "greedy", "co-activation", "global", "hierarchical")
"""Strategies that look at loads."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A placement, and the `shares` [L, R, P] of a source rank's copies of an expert that go to each slot."""

    placement: Placement
    shares: Floats

    @property
    def mean_shares(self) -> Floats:
        """Share of an expert's copies that each slot gets where sources have equally many [L, P]."""
        return np.asarray(self.shares[:, 0] if self.sources_alike else self.shares.mean(axis=1))

    @property
    def sources_alike(self) -> bool:
        """Whether all source ranks choose replicas alike."""
        return self.shares.strides[1] == 0

    def slot_loads(self, loads: NDArray[np.number]) -> Floats:
        """Load of each slot [..., L, P] of loads [..., L, E] that come from all ranks alike."""
        index = np.broadcast_to(self.placement.physical, (*loads.shape[:-1], self.placement.physical.shape[1]))
        return np.asarray(np.take_along_axis(loads, index, axis=-1) * self.mean_shares)

    def rank_loads(self, loads: NDArray[np.number]) -> Floats:
        """Load of each rank [..., L, R] of loads [..., L, E] that come from all ranks alike."""
        slots = self.slot_loads(loads)
        return np.asarray(slots.reshape(*slots.shape[:-1], self.placement.ranks, -1).sum(axis=-1))

    def balance(self, loads: NDArray[np.number]) -> Balance:
        """How even ranks are under loads [..., L, E], by every definition."""
        return balance(self.rank_loads(loads))


def target_of(spec: PlacementSpec, ranks: int, ranks_per_domain: int, groups: int = 1) -> Target:
    """What a placement is planned for: `ranks` in domains of `ranks_per_domain`, for a router of so many groups.

    Domains count for the strategies that look at them. Raises `UserError` where the numbers do not fit.
    """
    domain = min(ranks, ranks_per_domain) if spec.strategy in BY_DOMAIN else None
    return Target(ranks, domain, spec.redundant_experts, groups)


def placed(
    spec: PlacementSpec,
    target: Target,
    loads: NDArray[np.number],
    pairs: Floats | None = None,
    ranks_per_domain: int | None = None,
) -> Placed:
    """The placement that a spec asks for where experts have loads [L, E] and are chosen together as `pairs` [L, E, E].

    `ranks_per_domain`: within which a replica is near (all ranks where None). It needs no scenario: loads in, and
    `Placed.balance` of any loads out. Raises `UserError` where the numbers do not fit, or pairs are not known.
    """
    placement = place(spec.strategy, target, loads, pairs)
    return Placed(placement, replica_shares(placement, spec.replica_choice, ranks_per_domain, loads))
