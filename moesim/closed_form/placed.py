"""What a placement makes of expected loads: rows of slots, and how many places a token then reaches.

L MoE layers, R ranks, which are the sources too, N domains, E experts, P slots, S sources told apart (1 where all are
alike), B layers whose exchanges are priced.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.network.demand import Demand
from moesim.placement.placed import Placed
from moesim.step.draws import drawn_tokens
from moesim.step.model import StepModel
from moesim.step.placed import PLANNED_SAMPLE, routing_sampler

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

REACH_SAMPLE = PLANNED_SAMPLE - 1
"""A sample of tokens that neither plans nor simulations look at."""
REACH_TOKENS, MOST_SOURCES = 16_384, 8
_STEPS, _WIDEST = 40, 6.0


def spread_out(mean: Floats, spread: Floats, scores: Floats) -> Floats:
    """Values of that mean and deviation, log-normal: never negative, and skewed as sequences' tastes are."""
    width = np.sqrt(np.log1p((spread / np.maximum(mean, 1e-300)) ** 2))
    return np.asarray(mean * np.exp(width * scores - width**2 / 2))


class Slotted(NamedTuple):
    """Rows routed to and kept by each slot [L, P], rank 0's slots first, and the placement that they follow from."""

    routed: Floats
    kept: Floats
    held: Placed


def slot_rows(held: Placed, routed: Floats, variance: Floats, scores: Floats) -> Floats:
    """Rows of each slot [L, P] of rows [L, E], spread by `scores` [L, P] as chance divides an expert's replicas.

    Sources that choose alike send each copy to any replica: the number is binomial. Where each has its own replica,
    what sources differ in goes with it, the `variance` [L, E] of an expert's rows.
    """
    share = held.mean_shares
    rows = held.slot_loads(routed)
    if held.placement.redundant == 0:
        return rows
    whole = np.take_along_axis(routed if held.sources_alike else variance, held.placement.physical, axis=-1)
    found = spread_out(rows, np.sqrt(share * (1.0 - share) * whole), scores)
    return np.asarray(found * rows.sum(axis=-1, keepdims=True) / found.sum(axis=-1, keepdims=True))


def source_rows(held: Placed, rows: Floats, single: Floats, copies: Floats) -> tuple[Floats, Floats]:
    """R times the rows that a source sends to each slot [L, S, P] of a slot's `rows` [L, P], and their variance, by
    the variance `single` and the mean `copies` of what one source sends to an expert [L, E]."""
    physical = held.placement.physical
    share = held.shares[:, :1] if held.sources_alike else held.shares
    mean = np.maximum(held.mean_shares, 1e-300)
    spread, each = (np.take_along_axis(of, physical, axis=-1)[:, None, :] for of in (single, copies))
    return rows[:, None, :] * (share / mean[:, None, :]), share**2 * spread + share * (1.0 - share) * each


def by_expert(held: Placed, rows: Floats) -> Floats:
    """Rows of each expert [L, E], of rows of slots [L, P]."""
    where = held.placement
    keys = where.physical + np.arange(where.layers)[:, None] * where.experts
    found: Floats = np.bincount(keys.ravel(), rows.ravel(), where.layers * where.experts).astype(np.float64)
    return found.reshape(where.layers, -1)


class Reach(NamedTuple):
    """How a placement changes where tokens go, in each of B layers: `rank` and `domain` [B] are the power that makes
    the chance to miss a place, as contiguous experts of even load have it, what drawn tokens show; `pattern` [B, R, R]
    is what each source sends to a rank, over the mean source (None where all are alike)."""

    rank: Floats
    domain: Floats
    pattern: Floats | None


def reach(model: StepModel, slots: Slotted, layers: Ints) -> Reach:
    """The reach in some MoE layers [B], from a few tokens drawn for each."""
    even, ranks, tokens = model.mover.even_demand, model.scenario.parallelism.expert, drawn_tokens(model)
    sources = min(ranks, MOST_SOURCES, max(1, REACH_TOKENS // tokens))
    chosen = np.unique(np.linspace(0, ranks - 1, sources).round().astype(int))
    sampler, starts = routing_sampler(model), np.arange(0, ranks, even.ranks_per_domain)
    by_rank, by_domain = even_chances(even)
    found = []
    for layer in layers.tolist():
        counted = sampler.reach(layer, REACH_SAMPLE, chosen.tolist())
        copies = counted.copies[chosen] / tokens
        distinct = (counted.rank_tokens[chosen] / tokens, counted.domain_tokens[chosen] / tokens)
        in_domains = np.add.reduceat(copies, starts, axis=-1)
        found.append((power(copies, *by_rank, distinct[0].sum()), power(in_domains, *by_domain, distinct[1].sum())))
    rank, domain = np.array(found).T
    return Reach(rank, domain, _pattern(slots, layers))


def even_chances(even: Demand) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Copies of a token for each rank [R] and the chance to reach it, at even load; the same for domains [N]."""
    tokens = float(np.asarray(even.tokens)[0])
    copies = even.copies[0] / tokens
    starts = np.arange(0, even.ranks, even.ranks_per_domain)
    ranks, domains = even.rank_tokens[0] / tokens, even.domain_tokens[0] / tokens
    return (copies, ranks), (np.add.reduceat(copies, starts), domains)


def hit(share: Floats, even_share: Floats, even_hit: Floats, powers: Floats | float = 1.0) -> Floats:
    """Probability that a token reaches a place: 1 - (1 - even) ^ (load over even load), never above its copies."""
    missed = np.maximum(1 - even_hit, 1e-12)
    found: Floats = np.minimum(1 - missed ** (share / even_share * powers), share)
    return found


def power(share: Floats, even_share: Floats, even_hit: Floats, distinct: float) -> float:
    """The power under which places with `share` copies a token [n, places] are hit as often as was counted in all."""
    low, high = -_WIDEST, _WIDEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        less = float(hit(share, even_share, even_hit, 2.0**middle).sum()) < distinct
        low, high = (middle, high) if less else (low, middle)
    return float(2.0**low)


def _pattern(slots: Slotted, layers: Ints) -> Floats | None:
    held = slots.held
    if held.sources_alike:
        return None
    where = held.placement
    rows = slots.kept[layers][:, None, :] * held.shares[layers] / np.maximum(held.mean_shares, 1e-300)[layers][:, None]
    sent = rows.reshape(len(layers), where.ranks, where.ranks, -1).sum(axis=-1)
    return np.asarray(sent / np.maximum(sent.mean(axis=1, keepdims=True), 1e-300))
