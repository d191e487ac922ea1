"""Placement strategies by name; a new one is a function here and a line in `STRATEGIES`.

L layers, E experts, P slots, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UnknownNameError, UserError
from moesim.placement import orders
from moesim.placement.coactivation import TOLERANCE, keep_together
from moesim.placement.packing import pack_no_worse
from moesim.placement.placement import Placement, check_ranks
from moesim.placement.replication import blocks_for, replicate_by_group, replicate_globally

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
MOST_SLOTS = 65_534


@dataclass(frozen=True)
class Target:
    """What experts are placed on: `ranks` in domains of `ranks_per_domain` consecutive ones (None: one domain), with
    `redundant` slots a layer beyond one an expert; the router chooses by `groups` of contiguous experts.

    Raises `UserError` where the numbers do not fit each other.
    """

    ranks: int
    ranks_per_domain: int | None = None
    redundant: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise UserError(f"{self.ranks} ranks: there must be at least one")
        if self.redundant < 0:
            raise UserError(f"{self.redundant} redundant experts: there cannot be fewer than none")
        if self.domain_size < 1 or self.ranks % self.domain_size:
            raise UserError(f"domains of {self.domain_size} ranks do not divide {self.ranks} ranks")
        if self.groups < 1:
            raise UserError(f"{self.groups} router groups: there must be at least one")

    @property
    def domain_size(self) -> int:
        """Ranks of a domain."""
        return self.ranks if self.ranks_per_domain is None else self.ranks_per_domain

    @property
    def domains(self) -> int:
        """Number of domains."""
        return self.ranks // self.domain_size


class Known(NamedTuple):
    """What a strategy may look at: `loads` [L, E], `pairs` [L, E, E] that tokens chose together where known, and the
    load that keeping them together may cost."""

    loads: Floats
    pairs: Floats | None
    tolerance: float


Strategy = Callable[[Target, Known], Integers]


def _contiguous(target: Target, known: Known) -> Integers:
    return _alike(orders.contiguous(known.loads.shape[1], target.ranks, target.redundant), known)


def _round_robin(target: Target, known: Known) -> Integers:
    return _alike(orders.round_robin(known.loads.shape[1], target.ranks, target.redundant), known)


def _groups(target: Target, known: Known) -> Integers:
    if target.groups == 1:
        raise UserError(
            "strategy groups needs the router's groups of experts; the router has one group, or none is said"
        )
    return _by_group(target, known)


def _by_group(target: Target, known: Known) -> Integers:
    blocks = blocks_for(target.groups, target.domains)
    return replicate_by_group(known.loads, target.ranks, target.redundant, groups=target.groups, blocks=blocks)


def _greedy(target: Target, known: Known) -> Integers:
    return pack_no_worse(known.loads, target.ranks).reshape(known.loads.shape)


def _global(target: Target, known: Known) -> Integers:
    return replicate_globally(known.loads, target.ranks, target.redundant)


def _coactivation(target: Target, known: Known) -> Integers:
    if known.pairs is None:
        raise UserError(
            "strategy co-activation needs tokens' choices, from a trace or a profile: counts do not tell pairs"
        )
    return keep_together(known.pairs, known.loads, target.ranks, target.domains, known.tolerance)


def _alike(slots: Integers, known: Known) -> Integers:
    return np.tile(slots, (len(known.loads), 1))


STRATEGIES: dict[str, Strategy] = {
    "contiguous": _contiguous,
    "round-robin": _round_robin,
    "groups": _groups,
    "greedy": _greedy,
    "co-activation": _coactivation,
    "global": _global,
    "hierarchical": _by_group,
}
WITH_PAIRS = ("co-activation",)
WITHOUT_REPLICAS = ("groups", "greedy", "co-activation")


def most_redundant(experts: int, ranks: int) -> int:
    """Redundant slots beyond which some rank would hold an expert twice, or a layer more slots than are counted."""
    return max(0, min(experts * (ranks - 1), MOST_SLOTS - experts))


def place(
    strategy: str,
    target: Target,
    loads: NDArray[np.number],
    pairs: Floats | None = None,
    tolerance: float = TOLERANCE,
) -> Placement:
    """The placement of experts with loads [L, E] by a strategy of `STRATEGIES`.

    `contiguous`: in order; `round-robin`: dealt out; `groups`: router groups whole within domains, packed by load;
    `greedy`: packed by load, as many experts a rank, never worse than contiguous; `co-activation`: `pairs` [L, E, E]
    that tokens choose together into one domain, then one rank, at `tolerance` more load; `global` and `hierarchical`:
    busy experts replicated, as EPLB does. Raises `UserError` where the numbers do not fit.
    """
    if strategy not in STRATEGIES:
        raise UnknownNameError("placement strategy", strategy, STRATEGIES)
    known: Floats = np.asarray(loads, np.float64)
    if known.ndim != 2 or not np.isfinite(known).all() or known.min(initial=0.0) < 0.0:
        raise UserError(f"loads must be [layers, experts] of numbers that are not negative, not {known.shape}")
    experts = known.shape[1]
    if target.redundant and strategy in WITHOUT_REPLICAS:
        raise UserError(f"strategy {strategy} replicates nothing: redundant experts go with global or hierarchical")
    if experts % target.groups:
        raise UserError(f"{experts} experts do not fall into {target.groups} equal groups")
    if target.redundant > (most := most_redundant(experts, target.ranks)):
        raise UserError(
            f"{target.redundant:,} redundant experts are more than a copy of each expert on every rank; allowed: at"
            f" most {most:,}"
        )
    check_ranks(experts + target.redundant, target.ranks)
    physical = STRATEGIES[strategy](target, Known(known, pairs, tolerance))
    return Placement.of_slots(physical, target.ranks, experts)
