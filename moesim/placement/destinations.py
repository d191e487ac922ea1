"""How many places a token is sent to under a placement.

T tokens, L layers, K choices, R ranks, P slots.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.placement.choice import slot_of_copies
from moesim.placement.placement import Placement

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Destinations:
    """Distinct domains and ranks that hold a token's experts, and `other_domains` without the token's own: means over
    tokens and layers."""

    domains: float
    ranks: float
    other_domains: float

    def as_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)


def destinations(
    placement: Placement, choices: NDArray[np.integer], source: Integers, shares: Floats, ranks_per_domain: int
) -> Destinations:
    """Of choices [T, L, K] (names from E upwards: none) by tokens of ranks `source` [T], replicas by `shares`
    [L, R, P] of `replica_shares`."""
    own = source // ranks_per_domain
    totals = np.zeros(3)
    for layer in range(placement.layers):
        slots = slot_of_copies(placement, layer, choices[:, layer], source, shares[layer])
        rank = np.where(slots >= 0, slots // placement.slots, -1)
        domain = np.where(rank >= 0, rank // ranks_per_domain, -1)
        reached = distinct(domain)
        totals += [reached.mean(), distinct(rank).mean(), (reached - (domain == own[:, None]).any(axis=1)).mean()]
    domains, ranks, others = (totals / placement.layers).tolist()
    return Destinations(domains, ranks, others)


def distinct(places: Integers) -> Integers:
    """How many different places each row [T, K] names [T]; -1 is none."""
    ordered = np.sort(places, axis=-1)
    new = np.diff(ordered, axis=-1, prepend=-1) != 0
    return np.asarray(new.sum(axis=-1), np.int64)
