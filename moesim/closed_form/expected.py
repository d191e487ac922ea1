"""Routing without tokens: expected rows of every expert and rank, and the spread that sampling them would show.

L MoE layers, R ranks of the expert-parallel group, E experts, T tokens of a rank, K choices.

Popularity of experts is the simulation's own (same streams); what a router makes of it is its rule's closed form. An
expert's rows spread by the choices of single tokens and by the sequences' own taste; the spread is laid out as the
expected order statistics of a log-normal sample, shuffled, so that maxima are expected maxima.
Left out: what a group limit does to uneven popularity, and correlation between experts of one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from moesim.closed_form._tail_kernels import tails
from moesim.closed_form.placed import Reach, Slotted, by_expert, hit, reach, slot_rows, source_rows, spread_out
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
from moesim.step.placed import placement
from moesim.step.routed import PORT_ARRAYS, RoutedWork, SlotCounts, padded_demand

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_PRICED_LAYERS = 8
_NORMAL = NormalDist()  # the standard library's: importing scipy.special would take longer than the estimate


@dataclass(frozen=True)
class Loads:
    """Rows [L, E] routed to and kept by each expert in one microbatch of the group; `slots`: those of each slot, where
    experts do not stand in order, each once."""

    routed: Floats
    kept: Floats
    slots: Slotted | None = None


def expected_work(model: StepModel) -> RoutedWork | None:
    """Seconds and bytes of all routed work, one expected sample a layer."""
    if not model.scenario.model.is_moe:
        return None
    moments = load_moments(model)
    loads = expected_loads(model, moments)
    ranks = model.scenario.parallelism.expert
    slots = loads.slots
    routed, kept = (loads.routed, loads.kept) if slots is None else (slots.routed, slots.kept)
    computed = model.computed_rows(kept).reshape(len(kept), 1, ranks, -1)
    # An expert with few expected rows often has none: the chance of at least one, as of a Poisson number.
    active = np.ones_like(computed) if model.padded else -np.expm1(-computed)
    seconds = model.prices.experts(computed, None if model.padded else active)
    forward, backward, weight = beside(model, seconds, fetched_on_average(model, active))
    dispatch, combine, traffic = _exchanges(model, computed.sum(axis=-1)[:, 0, :], source_shares(model, routed), slots)
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
        held=held_on_average(model, lambda: _one_sequence(model, moments)),
        slots=None if slots is None else SlotCounts(slots.routed[:, None, :], slots.kept[:, None, :]),
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
    variance = group * found.within + group**2 * (found.between / sequences + found.shared)
    if scenario.router.by_sequence:
        routed = group / sequences * _sequences_drawn(found.chance, sequences, scenario.router, streams)
    else:
        routed = spread_out(mean, np.sqrt(variance), scores)
        routed *= mean.sum(axis=-1, keepdims=True) / routed.sum(axis=-1, keepdims=True)
    # What sources differ in about their mean: their tokens, and their sequences where these are their own.
    apart = found.within * tokens * (1 - 1 / ranks)
    single = apart + found.between * tokens**2 / shared.sequences * (1 - 1 / shared.replicas)
    rule, where = model.capacity_rule, placement(model)
    if where is not None:
        rows = slot_rows(
            where, routed, variance, _normal_scores(len(routed), scenario.expert_slots, scenario.routing.seed)
        )
        means, spreads = source_rows(where, rows, single, tokens * found.chance)
        kept = _kept_by_slot(model, rows, means, spreads)
        return Loads(routed, routed if rule is None else by_expert(where, kept), Slotted(rows, kept, where))
    if rule is None:
        return Loads(routed, routed)
    if rule.per_rank:
        by_rank = routed.reshape(len(routed), ranks, -1).sum(axis=-1)
        apart = np.sqrt(single.reshape(len(routed), ranks, -1).sum(axis=-1))
        stays = _kept(rule, by_rank, apart, model, model.capacity_rows * scenario.model.n_experts / ranks) / by_rank
        return Loads(routed, routed * np.repeat(stays, scenario.model.n_experts // ranks, axis=-1))
    kept = _kept(rule, routed, np.sqrt(single), model, model.capacity_rows)
    if rule.overflow != "drop":
        kept = _moved(kept, routed, model.capacity_rows)
    return Loads(routed, kept)


def _kept_by_slot(model: StepModel, rows: Floats, means: Floats, spreads: Floats) -> Floats:
    """Rows kept by each slot [L, P] of `rows` [L, P]; `means` [L, S, P] and `spreads` (variances) of its sources."""
    rule, ranks = model.capacity_rule, model.scenario.parallelism.expert
    if rule is None:
        return rows
    if rule.per_rank:
        mean, spread = (of.reshape(*of.shape[:2], ranks, -1).sum(axis=-1) for of in (means, spreads))
        room = model.capacity_rows * rows.shape[1] / ranks
        stays = _kept(rule, mean, np.sqrt(spread), model, room).mean(axis=1) / mean.mean(axis=1)
        return np.asarray(rows * np.repeat(stays, rows.shape[1] // ranks, axis=-1))
    if rule.scope == "source-rank":
        kept = _kept(rule, means, np.sqrt(spreads), model, model.capacity_rows).mean(axis=1)
    else:
        kept = _kept(rule, rows, np.zeros_like(rows), model, model.capacity_rows)
    return kept if rule.overflow == "drop" else _moved(kept, rows, model.capacity_rows)


def _one_sequence(model: StepModel, found: Moments) -> Floats:
    """Chances [L, E] of a token in one sequence."""
    scores = _normal_scores(*found.chance.shape, model.scenario.routing.seed)
    return spread_out(found.chance, np.sqrt(found.between + found.shared), scores)


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
    found = np.empty(values.size)
    tails(values.ravel(), found)
    return found.reshape(values.shape)


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


def _exchanges(
    model: StepModel, rank_rows: Floats, sources: Floats, slots: Slotted | None
) -> tuple[PortTimes, PortTimes, Floats]:
    """Dispatch and combine priced for evenly spaced layers; the layers between take the nearest one's."""
    chosen, nearest = priced_layers(*rank_rows.shape)
    where = None if slots is None or model.padded else reach(model, slots, chosen)
    demand = expected_demand(model, rank_rows[chosen], sources[chosen], where)
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


def expected_demand(model: StepModel, rank_rows: Floats, sources: Floats, where: Reach | None = None) -> Demand:
    """Copies and distinct tokens between ranks: `sources` [B, R] says how much of the mean each sends, and rank r gets
    `rank_rows` [B, R]; `where`: how these places are reached, if not as contiguous experts."""
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
    by_rank, by_domain = (1.0, 1.0) if where is None else (where.rank[:, None, None], where.domain[:, None, None])
    if where is not None and where.pattern is not None:
        share = share * where.pattern
    hit_rank = hit(share, even_copies, even.rank_tokens[0] / tokens, by_rank)
    domain_share, even_domain = np.add.reduceat(share, starts, axis=-1), np.add.reduceat(even_copies, starts)
    hit_domain = hit(domain_share, even_domain, even.domain_tokens[0] / tokens, by_domain)

    def spread(hits: Floats) -> Floats:
        return np.broadcast_to(tokens * hits, (len(hits), layout.expert, hits.shape[-1]))

    return Demand(spread(share), spread(hit_rank), spread(hit_domain), even.tokens, even.ranks_per_domain)
