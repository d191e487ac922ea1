"""Routing turned into work: seconds of experts and exchanges by rank, for every MoE layer and routing sample.

L MoE layers, S samples, R expert-parallel ranks, E experts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, fields
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.network.demand import Demand
from moesim.network.dispatchers import ExchangeTimes, PortTimes
from moesim.routing.counts import PlacedCounts, RoutingCounts
from moesim.step.model import StepModel
from moesim.step.offload import beside, fetched_in_turn, fetched_on_average

Floats = NDArray[np.float64]
Draw = Callable[[int, int], RoutingCounts]
_BY_SLOT = ("slot_routed", "slot_kept")
PORT_ARRAYS = tuple(field.name for field in fields(PortTimes) if field.name != "latency")


@dataclass(frozen=True)
class SlotCounts:
    """Copies `routed` to and `kept` by the slots of all ranks [L, S, P], rank 0's first."""

    routed: NDArray[Any]
    kept: NDArray[Any]


@dataclass(frozen=True)
class RoutedWork:
    """Everything that depends on routing. Exchanges, seconds and rows are [L, S, R], tokens of experts [L, S, E].

    `needed`: bytes [L, S] that a dispatch must bring to other ranks, one copy a (token, rank); `layers_alike`: all
    layers and samples are the same; `held`: share of a token's experts found in GPU memory, tokens coming one by one,
    where experts are off-loaded; `slots`: where experts do not stand in order, each once.
    """

    dispatch: PortTimes
    combine: PortTimes
    forward: Floats
    backward: Floats
    weight: Floats
    rows: Floats
    expert_routed: NDArray[Any]
    expert_kept: NDArray[Any]
    traffic: Floats
    needed: Floats
    layers_alike: bool = False
    held: float | None = None
    slots: SlotCounts | None = None

    def seconds(self, place: tuple[int, int] | slice, phase: str, deferred: bool) -> Floats:
        """Seconds of a MoE layer's experts (and sample); a backward holds its weight gradients unless `deferred`."""
        if phase == "backward":
            return self.backward[place] if deferred else self.backward[place] + self.weight[place]
        return self.weight[place] if phase == "weight" else self.forward[place]

    @property
    def samples(self) -> int:
        """Routing samples a layer."""
        return int(self.rows.shape[1])


def price_layers(model: StepModel, draw: Draw, samples: int, report: Callable[[int], Any] | None = None) -> RoutedWork:
    """Draws `samples` routings of every MoE layer and prices them; layers are spread over the machine's cores."""

    stop = Event()

    def counts(layer: int) -> Iterator[RoutingCounts]:
        for sample in range(samples):
            if stop.is_set():
                raise CancelledError
            yield draw(layer, sample)

    def one(layer: int) -> _Layer:
        return _price_layer(model, list(counts(layer)))

    found: list[_Layer] = []
    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        try:
            for layer in pool.map(one, range(len(model.moe_index))):
                found.append(layer)
                if report is not None:
                    report(len(found))
        except BaseException:
            # Ctrl-C, or a layer that failed: the others need not finish.
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return _stack(found)


@dataclass(frozen=True)
class _Layer:
    times: ExchangeTimes
    experts: tuple[Floats, Floats, Floats]
    rows: Floats
    routed: NDArray[Any]
    kept: NDArray[Any]
    slots: tuple[NDArray[Any], NDArray[Any]] | None
    traffic: Floats
    needed: Floats


def _price_layer(model: StepModel, counts: list[RoutingCounts]) -> _Layer:
    """Price of all samples of one layer."""
    demand = _demand(model, counts)
    each = model.scenario.tokens_stood_for
    kept = each * np.stack([count.expert_kept for count in counts])
    slots = _slot_counts(counts, each)
    by_slot = kept if slots is None else slots[1]
    rows = model.computed_rows(by_slot).reshape(len(counts), model.scenario.parallelism.expert, -1)
    _require_all_copies(model, counts)
    share = each / model.scenario.parallelism.expert_tensor * model.mover.payload.dispatch
    bytes_between = share * np.stack([count.rank_tokens for count in counts]) * (1.0 - np.eye(demand.ranks))
    routed = each * np.stack([count.expert_routed for count in counts])
    seconds = beside(model, model.prices.experts(rows), fetched_in_turn(model, rows))
    times, traffic = model.mover.times(demand), bytes_between.mean(axis=0)
    return _Layer(times, seconds, rows.sum(axis=-1), routed, kept, slots, traffic, bytes_between.sum(axis=(-2, -1)))


def _slot_counts(counts: list[RoutingCounts], each: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Copies routed to and kept by each slot [S, P]; None where experts stand in order."""
    placed = [count for count in counts if isinstance(count, PlacedCounts)]
    if not placed:
        return None
    routed, kept = (each * np.stack([getattr(count, name) for count in placed]) for name in _BY_SLOT)
    return routed, kept


def _require_all_copies(model: StepModel, counts: list[RoutingCounts]) -> None:
    """Every kept copy is on its way to exactly one rank, and stands in the books of exactly one expert."""
    for count in counts:
        moved, kept = int(count.copies.sum()), int(count.expert_kept.sum())
        if moved != kept:
            raise InternalError(f"routing: {moved} copies are moved, {kept} are computed")


def even_work(model: StepModel) -> RoutedWork | None:
    """The same work at perfectly balanced routing: every expert gets the same rows, every token the expected places."""
    scenario, spec = model.scenario, model.scenario.model
    if not spec.is_moe:
        return None
    layers, ranks, copies = len(model.moe_index), scenario.parallelism.expert, scenario.copies_per_group
    even_slots = np.full(scenario.expert_slots, copies / scenario.expert_slots)
    by_slot = np.minimum(even_slots, model.capacity_rows)
    rows = model.computed_rows(by_slot).reshape(ranks, -1)
    demand = padded_demand(model, 1)
    share = float(by_slot.sum() / even_slots.sum())
    routed = np.full(spec.n_experts, copies / spec.n_experts)
    kept = routed * share if scenario.placement.redundant_experts else by_slot
    if demand is None and share < 1.0:
        even = model.mover.even_demand
        places = (even.copies * share, even.rank_tokens * share, even.domain_tokens * share)
        demand = Demand(*places, even.tokens, even.ranks_per_domain)
    times = model.mover.even if demand is None else model.mover.times(demand)

    def every(values: Floats) -> Floats:
        return np.broadcast_to(values.reshape(1, 1, -1), (layers, 1, values.size))

    def exchange(direction: str) -> PortTimes:
        port = getattr(times, direction)
        return PortTimes(float(port.latency), **{name: every(getattr(port, name)) for name in PORT_ARRAYS})

    fetched = fetched_on_average(model, -np.expm1(-rows))
    forward, backward, weight = map(every, beside(model, model.prices.experts(rows), fetched))
    traffic = (demand or model.mover.even_demand).rank_tokens.reshape(ranks, ranks) * model.mover.payload.dispatch
    traffic = traffic * (1.0 - np.eye(ranks))
    sums = every(rows.sum(axis=-1))
    there, back = exchange("dispatch"), exchange("combine")
    needed = np.full((layers, 1), traffic.sum())
    return RoutedWork(there, back, forward, backward, weight, sums, every(routed), every(kept), traffic, needed, True)


def padded_demand(model: StepModel, batch: int) -> Demand | None:
    """What a padded capacity moves, whatever the routing: its whole buffer to every expert. None without padding."""
    scenario, network = model.scenario, model.mover.network
    if not model.padded:
        return None
    ranks = scenario.parallelism.expert
    buffer = model.capacity_rows * scenario.expert_slots / ranks**2 / scenario.parallelism.expert_tensor
    square = np.full((batch, ranks, ranks), buffer)
    sizes = np.diff(np.append(np.arange(0, ranks, network.ranks_per_domain), ranks))
    domains = np.broadcast_to(buffer * sizes, (batch, ranks, len(sizes)))
    return Demand(square, square, domains, _home_tokens(model), network.ranks_per_domain)


def _demand(model: StepModel, counts: list[RoutingCounts]) -> Demand:
    """The samples' copies as one batch; an expert-tensor group's members share their column's traffic."""
    share = model.scenario.tokens_stood_for / model.scenario.parallelism.expert_tensor
    padded = padded_demand(model, len(counts))
    if padded is not None:
        own_buffers = model.capacity_rule is None or model.capacity_rule.scope == "source-rank"
        return padded if own_buffers else _filled_up(padded, share * np.stack([count.copies for count in counts]))

    def batch(name: str) -> Floats:
        return share * np.stack([getattr(count, name) for count in counts])

    places = (batch("copies"), batch("rank_tokens"), batch("domain_tokens"))
    return Demand(*places, _home_tokens(model), model.mover.network.ranks_per_domain)


def _filled_up(padded: Demand, copies: NDArray[Any]) -> Demand:
    """Buffers that the whole group shares: a rank sends its own copies [S, R, R], all ranks alike the padding."""
    free = padded.copies.sum(axis=-2, keepdims=True) - copies.sum(axis=-2, keepdims=True)
    square = copies + free / padded.ranks
    domains = np.add.reduceat(square, np.arange(0, padded.ranks, padded.ranks_per_domain), axis=-1)
    return Demand(square, square, domains, padded.tokens, padded.ranks_per_domain)


def _home_tokens(model: StepModel) -> Floats:
    """Rows that a rank has to offer: its tokens, or the slots that stand for them."""
    return np.asarray(model.mover.even_demand.tokens)


def _stack(found: list[_Layer]) -> RoutedWork:
    """All layers side by side."""

    def exchange(direction: str) -> PortTimes:
        ports = [getattr(layer.times, direction) for layer in found]
        arrays = {name: np.stack([getattr(port, name) for port in ports]) for name in PORT_ARRAYS}
        return PortTimes(float(ports[0].latency), **arrays)

    forward, backward, weight = (np.stack(parts) for parts in zip(*(layer.experts for layer in found), strict=True))
    return RoutedWork(
        dispatch=exchange("dispatch"),
        combine=exchange("combine"),
        forward=forward,
        backward=backward,
        weight=weight,
        rows=np.stack([layer.rows for layer in found]),
        expert_routed=np.stack([layer.routed for layer in found]).astype(np.int64),
        expert_kept=np.stack([layer.kept for layer in found]).astype(np.int64),
        traffic=np.mean([layer.traffic for layer in found], axis=0),
        needed=np.stack([layer.needed for layer in found]),
        slots=_stack_slots(found),
    )


def _stack_slots(found: list[_Layer]) -> SlotCounts | None:
    slots = [layer.slots for layer in found if layer.slots is not None]
    if not slots:
        return None
    routed, kept = (np.stack(side).astype(np.int64) for side in zip(*slots, strict=True))
    return SlotCounts(routed, kept)


def _cores() -> int:
    """Cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, allowed)
