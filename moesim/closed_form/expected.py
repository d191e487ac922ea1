"""Routing without tokens: expected rows of every expert and rank, and the spread that sampling them would show.

L MoE layers, R ranks of the expert-parallel group, E experts, T tokens of a rank, K choices.

Popularity of experts is the simulation's own (same streams); what a router makes of it is its rule's closed form. An
expert's rows spread by the choices of single tokens and by the sequences' own taste; the spread is laid out as the
expected order statistics of a log-normal sample, shuffled, so that maxima are expected maxima.
Left out: what a group limit does to uneven popularity, and correlation between experts of one sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from moesim.network.demand import Demand
from moesim.network.dispatchers import PortTimes
from moesim.randomness import Streams
from moesim.routing.capacity import CapacityRule
from moesim.routing.inclusion import rates
from moesim.routing.moments import Moments
from moesim.routing.routers.base import Router
from moesim.step.draws import load_moments, shares
from moesim.step.model import StepModel
from moesim.step.offload import beside, fetched_on_average, held_on_average
from moesim.step.routed import PORT_ARRAYS, RoutedWork, padded_demand

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_PRICED_LAYERS = 8
_NORMAL = NormalDist()  # the standard library's: importing scipy.special would take longer than the estimate


@dataclass(frozen=True)
class Loads:
    """Rows [L, E] routed to and kept by each expert in one microbatch of the group; `chance` [L, E] of a token in one
    sequence."""

    routed: Floats
    kept: Floats
    chance: Floats


def expected_work(model: StepModel) -> RoutedWork | None:
    """Seconds and bytes of all routed work, one expected sample a layer."""
    if not model.scenario.model.is_moe:
        return None
    loads = expected_loads(model, load_moments(model))
    ranks = model.scenario.parallelism.expert
    computed = model.computed_rows(loads.kept).reshape(len(loads.kept), 1, ranks, -1)
    # An expert with few expected rows often has none: the chance of at least one, as of a Poisson number.
    active = np.ones_like(computed) if model.padded else -np.expm1(-computed)
    seconds = model.prices.experts(computed, None if model.padded else active)
    forward, backward, weight = beside(model, seconds, fetched_on_average(model, active))
    dispatch, combine, traffic = _exchanges(model, computed.sum(axis=-1)[:, 0, :], source_shares(model, loads.routed))
    return RoutedWork(
        dispatch=dispatch,
        combine=combine,
        forward=forward,
        backward=backward,
        weight=weight,
        rows=computed.sum(axis=-1),
        expert_routed=loads.routed[:, None, :],
        expert_kept=loads.kept[:, None, :],
        traffic=traffic,
        needed=np.full((len(loads.kept), 1), traffic.sum()),
        held=held_on_average(model, loads.chance),
    )


def expected_loads(model: StepModel, found: Moments) -> Loads:
    """Rows by expert, from the moments of the load."""
    scenario = model.scenario
    ranks = scenario.parallelism.expert
    tokens = scenario.tokens_per_rank * scenario.parallelism.expert_tensor
    streams = Streams(scenario.routing.seed)
    shared = shares(model)
    sequences = shared.replicas * shared.sequences
    # Rows that stand for a token: one, but in a soft mixture, whose slots stand for whole sequences.
    even = scenario.router.expected(np.ones(scenario.model.n_experts)).sum()
    mean = scenario.copies_per_group / even * found.chance
    group = tokens * ranks
    scores = _normal_scores(*mean.shape, scenario.routing.seed)
    if scenario.router.by_sequence:
        routed = group / sequences * _sequences_drawn(found.chance, sequences, scenario.router, streams)
    else:
        variance = group * found.within + group**2 * (found.between / sequences + found.shared)
        routed = _spread_out(mean, np.sqrt(variance), scores)
        routed *= mean.sum(axis=-1, keepdims=True) / routed.sum(axis=-1, keepdims=True)
    own = _spread_out(found.chance, np.sqrt(found.between + found.shared), scores)
    # What sources differ in about their mean: their tokens, and their sequences where these are their own.
    apart = found.within * tokens * (1 - 1 / ranks)
    single = apart + found.between * tokens**2 / shared.sequences * (1 - 1 / shared.replicas)
    rule = model.capacity_rule
    if rule is None:
        return Loads(routed, routed, own)
    if rule.per_rank:
        by_rank = routed.reshape(len(routed), ranks, -1).sum(axis=-1)
        apart = np.sqrt(single.reshape(len(routed), ranks, -1).sum(axis=-1))
        stays = _kept(rule, by_rank, apart, model, model.capacity_rows * scenario.model.n_experts / ranks) / by_rank
        return Loads(routed, routed * np.repeat(stays, scenario.model.n_experts // ranks, axis=-1), own)
    kept = _kept(rule, routed, np.sqrt(single), model, model.capacity_rows)
    if rule.overflow != "drop":
        kept = _moved(kept, routed, model.capacity_rows)
    return Loads(routed, kept, own)


def _sequences_drawn(chance: Floats, sequences: int, rule: Router, streams: Streams) -> Floats:
    """How many sequences choose each expert [L, E] where all tokens of one choose alike: too few for a law of many."""
    generator = streams.generator("routing/expected/sequences")
    several = rule.spec.tasks or sequences
    races = generator.standard_exponential((len(chance), several, rule.experts))
    first = np.argsort(races / np.maximum(rates(chance), 1e-300)[:, None, :], axis=-1)[..., : rule.top_k]
    if rule.spec.tasks:
        first = first[:, generator.integers(0, rule.spec.tasks, sequences)]
    layers = np.arange(len(chance))[:, None, None]
    counts = np.zeros(chance.shape)
    np.add.at(counts, (np.broadcast_to(layers, first.shape), first), 1.0)
    return counts


def _spread_out(mean: Floats, spread: Floats, scores: Floats) -> Floats:
    """Values of that mean and deviation, log-normal: never negative, and skewed as sequences' tastes are."""
    width = np.sqrt(np.log1p((spread / np.maximum(mean, 1e-300)) ** 2))
    return np.asarray(mean * np.exp(width * scores - width**2 / 2))


def _moved(kept: Floats, routed: Floats, capacity: float) -> Floats:
    """Rows kept where what is too much for its expert goes to another one with room, as far as there is room."""
    homeless = (routed - kept).sum(axis=-1, keepdims=True)
    room = np.maximum(capacity - kept, 0.0)
    share = np.minimum(1.0, homeless / np.maximum(room.sum(axis=-1, keepdims=True), 1e-300))
    return np.asarray(kept + share * room)


@lru_cache(maxsize=8)
def _normal_scores(layers: int, experts: int, seed: int) -> Floats:
    # Blom's approximation of the expected order statistics of a normal sample.
    scores = np.array([_NORMAL.inv_cdf((rank + 0.625) / (experts + 0.25)) for rank in range(experts)])
    return Streams(seed).generator("routing/expected").permuted(np.tile(scores, (layers, 1)), axis=1)


def _kept(rule: CapacityRule, routed: Floats, spread: Floats, model: StepModel, room: float) -> Floats:
    """Expected rows within a capacity of `room` rows, of a normal number of rows in each of the rule's scopes."""
    ranks = model.scenario.parallelism.expert
    per_source = rule.scope == "source-rank"
    scopes = ranks if per_source else 1
    capacity = room / scopes
    mean = routed / scopes
    # The spread of the whole group is in `routed` already; what is left is that of its sources about their mean.
    sigma = np.maximum(spread if per_source else 0.0 * spread, 1e-9)
    over = (mean - capacity) / sigma
    density = np.exp(-0.5 * over**2) / np.sqrt(2 * np.pi)
    dropped = (mean - capacity) * _normal_tail(-over) + sigma * density
    kept: Floats = np.clip(mean - dropped, 0.0, np.minimum(mean, capacity)) * scopes
    return kept


def _normal_tail(values: Floats) -> Floats:
    """Probability that a standard normal number is above each value."""
    scaled = (values / math.sqrt(2.0)).ravel().tolist()
    return 0.5 * np.fromiter(map(math.erfc, scaled), np.float64, len(scaled)).reshape(values.shape)


def source_shares(model: StepModel, routed: Floats) -> Floats:
    """Each source's kept copies over the mean's [L, R]: capacity of the whole group is filled source by source."""
    ranks, rule = model.scenario.parallelism.expert, model.capacity_rule
    if rule is None or rule.scope == "source-rank":
        return np.ones((len(routed), ranks))
    each = routed[:, None, :] / ranks
    before = each * np.arange(ranks)[None, :, None]
    kept = np.clip(model.capacity_rows - before, 0.0, each).sum(axis=-1)
    shares: Floats = kept / np.maximum(kept.mean(axis=-1, keepdims=True), 1e-12)
    return shares


def _exchanges(model: StepModel, rank_rows: Floats, sources: Floats) -> tuple[PortTimes, PortTimes, Floats]:
    """Dispatch and combine priced for evenly spaced layers; the layers between take the nearest one's."""
    chosen, nearest = priced_layers(*rank_rows.shape)
    demand = expected_demand(model, rank_rows[chosen], sources[chosen])
    times = model.mover.times(demand)

    def one(direction: str) -> PortTimes:
        port = getattr(times, direction)
        arrays = {name: getattr(port, name)[nearest][:, None, :] for name in PORT_ARRAYS}
        return PortTimes(float(port.latency), **arrays)

    traffic = demand.rank_tokens.mean(axis=0) * model.mover.payload.dispatch
    np.fill_diagonal(traffic, 0.0)
    return one("dispatch"), one("combine"), traffic


def priced_layers(layers: int, ranks: int) -> tuple[Ints, Ints]:
    """The layers whose exchanges are priced, and for each layer [L] the place among them of the nearest one."""
    count = min(layers, max(1, min(_PRICED_LAYERS, (1 << 18) // ranks**2)))
    chosen = np.unique(np.linspace(0, layers - 1, count).round().astype(int))
    return chosen, np.abs(np.arange(layers)[:, None] - chosen).argmin(axis=1)


def expected_demand(model: StepModel, rank_rows: Floats, sources: Floats) -> Demand:
    """Copies and distinct tokens between ranks: `sources` [B, R] says how much of the mean each sends, and rank r gets
    `rank_rows` [B, R]."""
    padded = padded_demand(model, len(rank_rows))
    if padded is not None:
        return padded
    scenario, even, layout = model.scenario, model.mover.even_demand, model.scenario.parallelism
    tokens = float(scenario.tokens_per_rank)
    mean_share = rank_rows / (layout.expert_tensor * tokens * layout.expert)  # copies a token to each rank
    alike = sources[:, :1] if np.all(sources == 1.0) else sources
    share = alike[:, :, None] * mean_share[:, None, :]
    starts = np.arange(0, layout.expert, even.ranks_per_domain)
    even_copies = even.copies[0] / tokens
    hit_rank = _hit(share, even_copies, even.rank_tokens[0] / tokens)
    domain_share, even_domain = np.add.reduceat(share, starts, axis=-1), np.add.reduceat(even_copies, starts)
    hit_domain = _hit(domain_share, even_domain, even.domain_tokens[0] / tokens)

    def spread(hits: Floats) -> Floats:
        return np.broadcast_to(tokens * hits, (len(hits), layout.expert, hits.shape[-1]))

    return Demand(spread(share), spread(hit_rank), spread(hit_domain), even.tokens, even.ranks_per_domain)


def _hit(share: Floats, even_share: Floats, even_hit: Floats) -> Floats:
    """Probability that a token reaches a place: 1 - (1 - even) ^ (load over even load), never above its copies."""
    missed = np.maximum(1 - even_hit, 1e-12)
    hit: Floats = np.minimum(1 - missed ** (share / even_share), share)
    return hit
