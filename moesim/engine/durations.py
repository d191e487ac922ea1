"""How long each operation takes on each rank of the group: prices, routing samples, jitter, stragglers.

R ranks of the expert-parallel group, P pipeline ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moesim.engine.contention import Wire, wire
from moesim.network.dispatchers import PortTimes
from moesim.randomness import Streams
from moesim.scenario.scenario import Scenario
from moesim.step.groups import expert_place
from moesim.step.model import StepModel
from moesim.step.operations import EXCHANGES, Operation
from moesim.step.routed import RoutedWork
from moesim.step.schedules import Slot

Floats = NDArray[np.float64]


_BLOCK = 256


class Durations:
    """Seconds of every operation of one simulated step."""

    def __init__(self, model: StepModel, routed: RoutedWork | None, step: int, streams: Streams) -> None:
        scenario = model.scenario
        self.model, self.routed = model, routed
        self.ranks = scenario.parallelism.expert
        self.hop = model.prices.hop
        self.jitter = scenario.simulation.jitter
        self.noise = _noise(self.jitter, self.ranks, streams.generator(f"jitter/step{step}"))
        self.slowdown = _slowdowns(scenario)
        self.stage_of = _stages(model) if len(self.slowdown) > 1 else {}
        self.even = self.jitter == 0 and not scenario.simulation.stragglers
        self.sample_of = _sample_plan(model, routed, step, streams)
        self.whole = {} if routed is None else {kind: _whole(getattr(routed, kind)) for kind in EXCHANGES}
        self._samples = self.sample_of.tolist()
        self.tensor_group = _tensor_group(scenario.parallelism.tensor // scenario.parallelism.expert_tensor, self.ranks)

    def together(self, operation: Operation, begin: Floats) -> Floats:
        """Begin of an operation whose collectives hold a tensor-parallel group together."""
        if self.tensor_group == 1 or operation.kind in EXCHANGES:
            return begin
        latest = begin.reshape(-1, self.tensor_group).max(axis=1)
        return np.repeat(latest, self.tensor_group)

    def run(
        self, slot: Slot, operation: Operation, begin: Floats, late: tuple[Floats, Floats] | None = None
    ) -> tuple[Floats, Floats | float]:
        """End [R] of an operation begun at `begin` [R], and each rank's own seconds without waiting for peers.

        `late`: seconds [R] by which sends and receives of an exchange take longer than alone.
        """
        if operation.kind in EXCHANGES:
            return self._exchange(slot, operation, begin, late)
        seconds = self._compute(slot, operation)
        if not self.even:
            seconds = seconds * self.slowdown[self.stage_of[slot] if self.stage_of else 0]
            seconds = seconds * next(self.noise) if self.jitter else seconds
        return begin + seconds, seconds

    def place(self, slot: Slot, operation: Operation) -> tuple[int, int]:
        """(MoE layer, routing sample) of a routed operation."""
        work = getattr(slot, operation.side)
        layer = self.model.moe_index[operation.layer]
        return layer, self._samples[layer][work.microbatch]

    def wire(self, slot: Slot, operation: Operation, leaves_domain: bool) -> Wire:
        """What an exchange asks of the ports that it shares."""
        exchange: PortTimes = getattr(self.routed, operation.kind)
        asked = wire(exchange, self.place(slot, operation), leaves_domain)
        return asked if operation.share == 1.0 else asked.times(operation.share)

    def _exchange(
        self, slot: Slot, operation: Operation, begin: Floats, late: tuple[Floats, Floats] | None
    ) -> tuple[Floats, Floats]:
        """Own sends out, and everything meant for the rank arrived from the group's slowest begin."""
        exchange: PortTimes = getattr(self.routed, operation.kind)
        place = self.place(slot, operation)
        if late is None and operation.share == 1.0:
            sends, works, all_receive = self.whole[operation.kind]
            sent = begin + sends[place]
            arrived = exchange.receive[place] + (exchange.latency + np.maximum.reduce(begin))
            end = np.maximum(sent, arrived)
            if not all_receive:
                end = np.where(exchange.receive[place] > 0, end, sent)
            return end, works[place]
        send, receive, own, latency = (
            exchange.send[place],
            exchange.receive[place],
            exchange.own[place],
            exchange.latency,
        )
        if operation.share != 1.0:
            send, receive, own, latency = (operation.share * whole for whole in (send, receive, own, latency))
        if late is not None:
            send, receive, own = send + late[0], receive + late[1], own + np.maximum(*late)
        sent = begin + (latency + send)
        arrived = receive + (latency + np.maximum.reduce(begin))
        end = np.where(receive > 0, np.maximum(sent, arrived), sent)
        return end, own + latency

    def _compute(self, slot: Slot, operation: Operation) -> Floats | float:
        """Seconds of compute: forward, backward with or without its weight gradients, or those alone."""
        deferred = self.model.work(slot).deferred
        seconds: Floats | float
        if operation.kind == "experts" and self.routed is not None:
            layer, sample = self.place(slot, operation)
            seconds = self.routed.seconds((layer, sample), operation.phase, deferred)
        else:
            seconds = self.model.prices.seconds(operation.kind, operation.layer, operation.phase, deferred)
        return seconds if operation.share == 1.0 else operation.share * seconds


def _whole(exchange: PortTimes) -> tuple[Floats, Floats, bool]:
    """Seconds [L, S, R] of an undivided exchange's sends and own work, latency included; whether every rank receives
    something in all of them."""
    return exchange.latency + exchange.send, exchange.own + exchange.latency, bool((exchange.receive > 0).all())


def _noise(jitter: float, ranks: int, draw: np.random.Generator) -> Iterator[Floats]:
    """Each operation's factor of every rank [R], drawn in blocks: a draw an operation takes as long as its pricing."""
    while True:
        yield from np.exp(jitter * draw.standard_normal((_BLOCK, ranks)))


def _slowdowns(scenario: Scenario) -> Floats:
    """How many times as long each rank's compute takes [P, R], or [1, R] where all pipeline ranks are alike."""
    stragglers, layout = scenario.simulation.stragglers or (), scenario.parallelism
    alone = [straggler for straggler in stragglers if straggler.gpu is not None]
    slowdown = np.ones((layout.pipeline if alone else 1, layout.expert))
    for straggler in stragglers:
        if straggler.rank is not None:
            slowdown[:, straggler.rank] = straggler.slowdown
    for straggler in alone:
        place = expert_place(scenario, straggler.gpu or 0)
        slowdown[place] = max(float(slowdown[place]), straggler.slowdown)
    return slowdown


def _stages(model: StepModel) -> dict[Slot, int]:
    """The pipeline rank of every slot."""
    return {slot: stage for stage, slots in enumerate(model.order) for slot in slots}


def _sample_plan(model: StepModel, routed: RoutedWork | None, step: int, streams: Streams) -> NDArray[np.int64]:
    """Which routing sample each microbatch uses in each MoE layer [L, M]: every sample equally often, shuffled."""
    batches = model.scenario.microbatches
    if routed is None:
        return np.zeros((0, batches), dtype=np.int64)
    shuffle = streams.generator(f"samples/step{step}")
    plan = np.tile(np.arange(batches) % routed.samples, (len(model.moe_index), 1))
    return shuffle.permuted(plan, axis=1)


def _tensor_group(tensor: int, ranks: int) -> int:
    """Consecutive expert-parallel ranks that share a tensor-parallel group."""
    size = max(1, min(tensor, ranks))
    return size if ranks % size == 0 else 1
