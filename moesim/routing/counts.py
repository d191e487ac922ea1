"""What routing amounts to for the network and the experts: counts, not tokens.

T tokens of a source rank, E experts, K choices, R ranks, N domains, P slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.number[Any]]


@dataclass(frozen=True)
class RoutingCounts:
    """Where the tokens of one layer and one microbatch go: whole numbers, or expectations where it is a law's mean.

    `tokens` [R] of each source rank. `copies` [R_src, R_dst]: kept token-expert pairs, not de-duplicated.
    `rank_tokens` [R_src, R_dst] and `domain_tokens` [R_src, N]: distinct tokens with a kept copy there.
    `expert_routed` [E]: pairs that the router chose; `expert_kept` [E]: those left after drops.
    """

    tokens: Counts
    copies: Counts
    rank_tokens: Counts
    domain_tokens: Counts
    expert_routed: Counts
    expert_kept: Counts


@dataclass(frozen=True)
class PlacedCounts(RoutingCounts):
    """The same where experts are held in slots: `slot_routed` and `slot_kept` [P], rank 0's slots first."""

    slot_routed: Counts
    slot_kept: Counts
