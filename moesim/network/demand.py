"""What an expert-parallel group has to move: token copies and distinct tokens between its ranks and domains.

R ranks, N domains = ceil(R / ranks_per_domain), T tokens of a rank, E experts, K choices. Leading axes `...` are a
batch (layers x samples). A rank's own share stands on the diagonal and costs nothing on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError, UnknownNameError
from moesim.network.coefficients import law
from moesim.routing.expected import hit_probabilities

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
    """Bytes of one token copy on the wire, with the scales and routing data that travel with it.

    Raises `UnknownNameError`.
    """
    layouts = law("wire").data[direction]
    if wire_format not in layouts:
        raise UnknownNameError("wire format", wire_format, layouts)
    layout = layouts[wire_format]
    return float(hidden * layout["value"] + layout.get("per_choice", 0) * top_k + layout.get("fixed", 0))


def nearest_format(name: str) -> tuple[str, str]:
    """The wire format that `name` means in other tools' words, and a note where it is only the nearest known."""
    wire = law("wire")
    word = "".join(letter for letter in name.lower().removeprefix("torch.") if letter.isalnum())
    known = {"".join(letter for letter in own if letter.isalnum()): own for own in wire.names("dispatch")}
    if word in known:
        return known[word], ""
    spellings: dict[str, str] = wire.data["spellings"]
    if word in spellings:
        return spellings[word], ""
    guess = wire.data["nearest"].get(word, wire.data["nearest"]["other"])
    return guess, f"wire format {name}: no layout of its own, answered by {guess}"


@dataclass(frozen=True)
class Choices:
    """Uniform routing: `top_k` of `experts`, or, group-limited, of `top_groups` of `groups` equal groups."""

    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1


@lru_cache(maxsize=256)
def _hits(choices: Choices, ranks: int, ranks_per_domain: int) -> tuple[Floats, Floats]:
    """Probability that a token reaches each rank [R] and each domain [N], experts spread contiguously over ranks."""
    rank = np.arange(choices.experts) * ranks // choices.experts
    groups = (choices.top_k, choices.groups, choices.top_groups)
    domains = -(-ranks // ranks_per_domain)
    return hit_probabilities(rank, ranks, *groups), hit_probabilities(rank // ranks_per_domain, domains, *groups)


def balanced_demand(choices: Choices, ranks: int, ranks_per_domain: int, tokens: float) -> Demand:
    """The expected demand [R, R] of `tokens` tokens a rank under uniform routing, experts spread evenly over ranks."""
    by_rank, by_domain = _hits(choices, ranks, ranks_per_domain)
    return Demand(
        copies=np.full((ranks, ranks), tokens * choices.top_k / ranks),
        rank_tokens=np.tile(tokens * by_rank, (ranks, 1)),
        domain_tokens=np.tile(tokens * by_domain, (ranks, 1)),
        tokens=np.full(ranks, float(tokens)),
        ranks_per_domain=ranks_per_domain,
    )
