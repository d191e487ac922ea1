"""Which rank holds which expert, and which of an expert's replicas a token is sent to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UnknownNameError, UserError
from moesim.placement.balance import Balance, balance
from moesim.placement.choice import RULES, replica_shares, split
from moesim.placement.placement import Placement
from moesim.placement.strategies import STRATEGIES, Target, place

BLIND = ("contiguous", "round-robin")
"""Strategies that look at no load."""


def expert_rank(experts: int, ranks: int, strategy: str = "contiguous") -> NDArray[np.int64]:
    """The expert-parallel rank [E] that holds each expert; raises UserError where that takes loads to tell."""
    if strategy not in STRATEGIES:
        raise UnknownNameError("placement strategy", strategy, STRATEGIES)
    if strategy not in BLIND:
        raise UserError(f"strategy {strategy} needs the experts' loads; without them there are {' and '.join(BLIND)}")
    ranks_of: NDArray[np.int64] = place(strategy, Target(ranks), np.ones((1, experts))).rank_of[0]
    return ranks_of


__all__ = [
    "RULES",
    "STRATEGIES",
    "Balance",
    "Placement",
    "Target",
    "balance",
    "expert_rank",
    "place",
    "replica_shares",
    "split",
]
