"""Two collectives on one rank's ports at a time: the gradient reduction and the exchanges of the last backward.

Under `simulation.network: max-min` a pipeline rank's reduction begins with its last backward slot and shares the ports
of its ranks, max-min fairly, with the dispatches and combines that run meanwhile. A port carries one second of work a
second, and a transfer's size is the seconds that it would have the port for itself. R ranks of the group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.engine.fluid import FluidNetwork
from moesim.network.dispatchers import PortTimes
from moesim.step.model import StepModel

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Wire:
    """Seconds [R] that an exchange has a rank's shared ports, outward and inward, and those that its other links take
    meanwhile: a delay shorter than the difference is not felt."""

    send: Floats
    receive: Floats
    send_elsewhere: Floats
    receive_elsewhere: Floats

    def times(self, share: float) -> Wire:
        """A part of it."""
        there, elsewhere = (self.send, self.receive), (self.send_elsewhere, self.receive_elsewhere)
        return Wire(*(share * whole for whole in (*there, *elsewhere)))


def shares_ports(model: StepModel, stage: int) -> bool:
    """Whether a pipeline rank's gradient reduction and its exchanges meet on the same tier of links."""
    scenario, once = model.scenario, model.data_parallel[stage]
    beside = scenario.overlap.data_parallel and once.reduce > 0.0 and once.wire > 0.0
    if scenario.simulation.network != "max-min" or not scenario.model.is_moe or not beside:
        return False
    return model.mover.network.domains > 1 if once.leaves_domain else scenario.parallelism.expert > 1


def wire(exchange: PortTimes, place: tuple[int, int], leaves_domain: bool) -> Wire:
    """The wire time of one layer's and sample's exchange; the shared tier is the one between domains, or inside."""
    near = exchange.up_send[place], exchange.up_receive[place]
    far = exchange.out_send[place], exchange.out_receive[place]
    return Wire(*far, *near) if leaves_domain else Wire(*near, *far)


def reduction_wire(model: StepModel, stage: int) -> Floats:
    """Seconds [R] that the gradient reduction has each rank's port: all carry alike, the slowest the longest."""
    once, group = model.data_parallel[stage], model.mover.network
    rates = np.broadcast_to(group.own_nic_rates if once.leaves_domain else group.own_up_rates, group.ranks)
    return np.asarray(once.wire * rates.min() / rates)


class SharedPorts:
    """The ports of one pipeline rank's group while its gradients are on the wire."""

    def __init__(self, env: simpy.Environment, reduction: Floats) -> None:
        ranks = len(reduction)
        self.env, self.ranks, self.alone = env, ranks, reduction
        self.network = FluidNetwork(env, np.ones(2 * ranks))
        self.began = env.now
        both = np.arange(2 * ranks, dtype=np.int32).reshape(2, ranks).T.ravel()
        self.reduction = self.network.start(2 * np.arange(ranks + 1), both, reduction)

    @property
    def busy(self) -> bool:
        """Whether gradients are still under way."""
        return not self.reduction.triggered

    @property
    def delay(self) -> float:
        """Seconds by which exchanges held the reduction up."""
        return max(0.0, float(np.max(np.asarray(self.reduction.value) - self.alone)) - self.began)

    def exchange(self, asked: Wire) -> simpy.Event:
        """Begins an exchange; its event's value goes to `delays`."""
        ports = np.arange(2 * self.ranks, dtype=np.int32)
        return self.network.start(np.arange(2 * self.ranks + 1), ports, np.concatenate([asked.send, asked.receive]))

    def delays(self, asked: Wire, began: float, ends: Floats) -> tuple[Floats, Floats]:
        """Seconds [R] by which each rank's sends and receives end later than alone."""
        late = np.maximum(0.0, ends - began - np.concatenate([asked.send, asked.receive]))
        felt = (
            late[: self.ranks] - np.maximum(0.0, asked.send_elsewhere - asked.send),
            late[self.ranks :] - np.maximum(0.0, asked.receive_elsewhere - asked.receive),
        )
        return np.maximum(0.0, felt[0]), np.maximum(0.0, felt[1])
