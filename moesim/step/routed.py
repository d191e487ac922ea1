"""Routing turned into work: seconds of experts and exchanges by rank, for every MoE layer and routing sample.

L MoE layers, S samples, R expert-parallel ranks, E experts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.network.demand import Demand
from moesim.network.dispatchers import ExchangeTimes
from moesim.placement import place
from moesim.randomness import Streams
from moesim.routing.sampler import RoutingCounts, RoutingSampler
from moesim.step.model import StepModel

Floats = NDArray[np.float64]
Draw = Callable[[int, int], RoutingCounts]


@dataclass(frozen=True)
class Exchange:
    """One direction of the expert all-to-all: seconds a rank's sends and receives take, bytes it sends. [L, S, R]."""

    latency: float
    send: Floats
    receive: Floats
    bytes_up: Floats
    bytes_out: Floats
    received_up: Floats
    received_out: Floats

    @property
    def busiest(self) -> Floats:
        """Seconds [L, S] from a common begin to the last rank's end."""
        return self.latency + np.maximum(self.send, self.receive).max(axis=-1)

    @property
    def mean(self) -> Floats:
        """Seconds [L, S] of the mean rank's own work."""
        return self.latency + np.maximum(self.send, self.receive).mean(axis=-1)


@dataclass(frozen=True)
class RoutedWork:
    """Everything that depends on routing. Seconds and rows are [L, S, R], tokens of experts [L, S, E]."""

    dispatch: Exchange
    combine: Exchange
    forward: Floats
    backward: Floats
    weight: Floats
    rows: Floats
    expert_routed: NDArray[np.int64]
    expert_kept: NDArray[np.int64]
    traffic: Floats

    def seconds(self, place: tuple[int, int] | int, phase: str, deferred: bool) -> Floats:
        """Seconds of the experts of a MoE layer (and sample); a backward holds its weight gradients unless `deferred`."""
        if phase == "backward":
            return self.backward[place] if deferred else self.backward[place] + self.weight[place]
        return self.weight[place] if phase == "weight" else self.forward[place]

    @property
    def samples(self) -> int:
        """Routing samples a layer."""
        return int(self.rows.shape[1])


def routing_sampler(model: StepModel) -> RoutingSampler:
    """The token-level sampler of the scenario's router, load and capacity."""
    scenario, spec = model.scenario, model.scenario.model
    layout, capacity = scenario.parallelism, scenario.routing.capacity
    return RoutingSampler(
        router=spec.router,
        profile=scenario.routing.load,
        experts=spec.n_experts,
        top_k=spec.top_k,
        layers=len(model.moe_index),
        ranks=layout.expert,
        ranks_per_domain=model.mover.network.ranks_per_domain,
        tokens_per_rank=scenario.tokens_per_rank * layout.expert_tensor,
        sequences_per_rank=scenario.workload.micro_batch,
        capacity=None if capacity == "dropless" else capacity,
        placement=place(scenario.placement.strategy, spec.n_experts, layout.expert),
        streams=Streams(scenario.routing.seed),
    )


def price_layers(
    model: StepModel, draw: Draw, samples: int, report: Callable[[int], Any] | None = None
) -> RoutedWork:
    """Draws `samples` routings of every MoE layer and prices them; layers are spread over the machine's cores."""

    def one(layer: int) -> _Layer:
        return _price_layer(model, [draw(layer, sample) for sample in range(samples)])

    found: list[_Layer] = []
    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        for layer in pool.map(one, range(len(model.moe_index))):
            found.append(layer)
            if report is not None:
                report(len(found))
    return _stack(found)


@dataclass(frozen=True)
class _Layer:
    times: ExchangeTimes
    experts: tuple[Floats, Floats, Floats]
    rows: Floats
    routed: NDArray[np.int64]
    kept: NDArray[np.int64]
    traffic: Floats


def _price_layer(model: StepModel, counts: list[RoutingCounts]) -> _Layer:
    """Price of all samples of one layer."""
    demand = _demand(model, counts)
    kept = np.stack([count.expert_kept for count in counts])
    rows = model.computed_rows(kept).reshape(len(counts), model.scenario.parallelism.expert, -1)
    traffic = demand.rank_tokens.mean(axis=0) * model.mover.payload.dispatch
    np.fill_diagonal(traffic, 0.0)
    routed = np.stack([count.expert_routed for count in counts])
    return _Layer(model.mover.times(demand), model.prices.experts(rows), rows.sum(axis=-1), routed, kept, traffic)


def _demand(model: StepModel, counts: list[RoutingCounts]) -> Demand:
    """The samples' copies as one batch; an expert-tensor group's members share their column's traffic.

    A padded capacity sends its whole buffer to every expert, whatever the routing.
    """
    scenario, network = model.scenario, model.mover.network
    split, ranks = scenario.parallelism.expert_tensor, scenario.parallelism.expert
    tokens = np.full(ranks, float(scenario.tokens_per_rank))
    capacity = scenario.routing.capacity
    if capacity != "dropless" and capacity.pad:
        buffer = model.capacity_rows * scenario.model.n_experts / ranks**2 / split
        square = np.full((len(counts), ranks, ranks), buffer)
        sizes = np.diff(np.append(np.arange(0, ranks, network.ranks_per_domain), ranks))
        domains = np.broadcast_to(buffer * sizes, (len(counts), ranks, len(sizes)))
        return Demand(square, square, domains, tokens, network.ranks_per_domain)

    def batch(name: str) -> Floats:
        return np.stack([getattr(count, name) for count in counts]) / split

    return Demand(batch("copies"), batch("rank_tokens"), batch("domain_tokens"), tokens, network.ranks_per_domain)


def _stack(found: list[_Layer]) -> RoutedWork:
    """All layers side by side."""

    def exchange(direction: str) -> Exchange:
        ports = [getattr(layer.times, direction) for layer in found]
        arrays = {name: np.stack([getattr(port, name) for port in ports]) for name in _PORT_ARRAYS}
        return Exchange(float(ports[0].latency), **arrays)

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
    )


_PORT_ARRAYS = ("send", "receive", "bytes_up", "bytes_out", "received_up", "received_out")


def _cores() -> int:
    return min(8, os.cpu_count() or 1)
