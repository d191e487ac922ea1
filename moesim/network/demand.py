"""What an expert-parallel group has to move: token copies and distinct tokens between its ranks and domains.

R ranks, N domains = ceil(R / ranks_per_domain), T tokens of a rank, E experts, K choices. Leading axes `...` are a
batch (layers x samples). A rank's own share stands on the diagonal and costs nothing on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import expm1, lgamma
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.network.coefficients import law

Floats = NDArray[np.float64]
Direction = Literal["dispatch", "combine"]


@dataclass(frozen=True)
class Demand:
    """Tokens between ranks: `copies` [..., R, R] counts every (token, expert) pair, `rank_tokens` [..., R, R] distinct
    tokens of a (source, destination) rank, `domain_tokens` [..., R, N] distinct tokens of a (source rank, domain);
    `tokens` [R] or [..., R] are the tokens at home on a rank."""

    copies: Floats
    rank_tokens: Floats
    domain_tokens: Floats
    tokens: Floats
    ranks_per_domain: int

    def __post_init__(self) -> None:
        ranks, domains = self.ranks, -(-self.ranks // self.ranks_per_domain)
        batch = self.copies.shape[:-2]
        if self.copies.shape != (*batch, ranks, ranks) or self.rank_tokens.shape != self.copies.shape:
            raise InternalError(f"demand: copies {self.copies.shape}, rank tokens {self.rank_tokens.shape}")
        if self.domain_tokens.shape != (*batch, ranks, domains):
            raise InternalError(f"demand: domain tokens {self.domain_tokens.shape}, not {(*batch, ranks, domains)}")

    @property
    def ranks(self) -> int:
        """R."""
        return int(self.copies.shape[-1])

    @property
    def home_tokens(self) -> Floats:
        """`tokens` with the batch axes, [..., R]."""
        return np.broadcast_to(np.asarray(self.tokens, dtype=np.float64), self.copies.shape[:-1])


def reverse(demand: Demand) -> Demand:
    """The way back: what a rank received it now sends. Partial results of one token stay apart until they are home, so
    distinct tokens to a domain are those to its ranks together."""
    back = np.swapaxes(demand.rank_tokens, -1, -2)
    starts = np.arange(0, demand.ranks, demand.ranks_per_domain)
    return Demand(
        copies=np.swapaxes(demand.copies, -1, -2),
        rank_tokens=back,
        domain_tokens=np.add.reduceat(back, starts, axis=-1),
        tokens=demand.tokens,
        ranks_per_domain=demand.ranks_per_domain,
    )


def payload_bytes(wire_format: str, hidden: int, top_k: int, direction: Direction) -> float:
    """Bytes of one token copy on the wire, with the scales and routing data that travel with it."""
    layout = law("wire").data[direction][wire_format]
    return float(hidden * layout["value"] + layout.get("per_choice", 0) * top_k + layout.get("fixed", 0))


@dataclass(frozen=True)
class Choices:
    """Uniform routing: `top_k` of `experts`, or, group-limited, of `top_groups` of `groups` equal groups."""

    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1


@lru_cache(maxsize=1024)
def distinct_places(choices: Choices, places: float) -> float:
    """Expected number of distinct places a token goes to when the experts lie on `places` equal places."""
    limited = choices.groups > 1 and choices.top_groups < choices.groups
    if not limited:
        return _hit(choices.experts, choices.top_k, places)
    if places <= choices.groups:
        return _hit(choices.groups, choices.top_groups, places)
    inside = _hit(choices.experts / choices.groups, choices.top_k / choices.top_groups, places / choices.groups)
    return min(float(choices.top_k), choices.top_groups * inside)


def _hit(things: float, drawn: float, places: float) -> float:
    """Distinct places hit by `drawn` of `things` things without repetition: P (1 - C(E - E/P, k) / C(E, k))."""
    elsewhere = things - things / places
    if elsewhere < drawn:
        return places
    return -places * expm1(_log_choose(elsewhere, drawn) - _log_choose(things, drawn))


def _log_choose(things: float, drawn: float) -> float:
    return lgamma(things + 1) - lgamma(drawn + 1) - lgamma(things - drawn + 1)


def balanced_demand(choices: Choices, ranks: int, ranks_per_domain: int, tokens: float) -> Demand:
    """The expected demand [R, R] of `tokens` tokens a rank under uniform routing, experts spread evenly over ranks."""
    sizes = np.diff(np.append(np.arange(0, ranks, ranks_per_domain), ranks))
    hits = [distinct_places(choices, ranks / size) * size / ranks for size in sizes.tolist()]
    square = np.ones((ranks, ranks))
    return Demand(
        copies=square * (tokens * choices.top_k / ranks),
        rank_tokens=square * (tokens * distinct_places(choices, ranks) / ranks),
        domain_tokens=np.tile(tokens * np.array(hits), (ranks, 1)),
        tokens=np.full(ranks, float(tokens)),
        ranks_per_domain=ranks_per_domain,
    )
