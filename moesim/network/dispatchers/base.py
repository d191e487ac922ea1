"""What every dispatcher law is made of: its interface, its result, and the law t = alpha + X + root sqrt(alpha X).

R ranks; `...` is a batch of routing samples. Rank r of a dispatch or combine ends at the later of begin_r + latency +
send_r and, over all ranks s, begin_s + latency + receive_r. The root term grows with X, so each rank's share of it
stands in its own seconds, and latency + the busiest rank's seconds is the law's t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.network.demand import Demand, Direction, payload_bytes
from moesim.network.fidelities import NETWORKS
from moesim.network.portload import PortLoads, Traffic
from moesim.network.topology import GroupNetwork
from moesim.provenance import Basis
from moesim.specs.workload import WireFormat

Floats = NDArray[np.float64]
DIRECTIONS: tuple[Direction, Direction] = ("dispatch", "combine")


@dataclass(frozen=True)
class Payload:
    """Bytes of one token copy in each direction; the shape it came from, where known, tells whether a law holds.

    `experts` is the model's number of experts, of all ranks together.
    """

    dispatch: float
    combine: float
    hidden: int | None = None
    top_k: int | None = None
    experts: int | None = None

    def of(self, direction: Direction) -> float:
        """Bytes of one copy."""
        return self.dispatch if direction == "dispatch" else self.combine


def payload(
    dispatch: WireFormat | str, combine: WireFormat | str, hidden: int, top_k: int, experts: int | None = None
) -> Payload:
    """The payload of tokens of width `hidden` in the given wire formats."""
    there = payload_bytes(dispatch, hidden, top_k, "dispatch")
    return Payload(there, payload_bytes(combine, hidden, top_k, "combine"), hidden, top_k, experts)


@dataclass(frozen=True)
class PortTimes:
    """One direction: common `latency` and, by rank [..., R], seconds until its sends and its receives are over, seconds
    of its `own` ports' work without waiting for others' flows, seconds that each tier's links are taken at full rate,
    bytes sent and received by tier."""

    latency: float
    send: Floats
    receive: Floats
    own: Floats
    up_send: Floats
    up_receive: Floats
    out_send: Floats
    out_receive: Floats
    bytes_up: Floats
    bytes_out: Floats
    received_up: Floats
    received_out: Floats

    @property
    def busiest(self) -> Floats:
        """Seconds [...] from a common begin to the last rank's end."""
        return np.asarray(self.latency + np.maximum(self.send, self.receive).max(axis=-1))

    @property
    def mean(self) -> Floats:
        """Seconds [...] of the mean rank's own work."""
        return np.asarray(self.latency + self.own.mean(axis=-1))


@dataclass(frozen=True)
class ExchangeTimes:
    """Both directions, how far to trust them (relative range and why), and the SMs taken from compute meanwhile."""

    dispatch: PortTimes
    combine: PortTimes
    basis: Basis
    relative: float
    notes: tuple[str, ...]
    multiprocessors: int


class Dispatcher(Protocol):
    """A library that moves tokens to experts and back."""

    @property
    def name(self) -> str:
        """Its name in a scenario."""

    @property
    def default_multiprocessors(self) -> int:
        """SMs it takes unless told otherwise."""

    @property
    def settable(self) -> bool:
        """Whether its library lets a user state its SMs."""

    def multiprocessors(self, stated: int | None) -> int:
        """SMs it takes where a scenario states so many; None for the default."""

    def runs_on(self, group: GroupNetwork) -> str | None:
        """Why it cannot run on this group; None where it can."""

    def unfit(self, demand: Demand, group: GroupNetwork) -> str | None:
        """Why it is not meant for this demand, though it runs; None where it is."""

    def times(
        self,
        demand: Demand,
        group: GroupNetwork,
        payload: Payload,
        multiprocessors: int | None = None,
        network: str = "port-load",
        notify: bool = True,
    ) -> ExchangeTimes:
        """Seconds by rank of dispatch and combine under the named network model.

        `notify` adds what stands on the stream beside the kernel itself (agreeing on counts), where the law knows it.
        """


@dataclass(frozen=True)
class Kernel:
    """Coefficients of one direction: `eta_*` shares of the tiers' wire rates, `*_floor` the seconds [..., R] that a
    rank's SMs or proxies need, `tail` seconds and `stretch` factor on everything, beside the kernel itself. Tiers work
    at once, or, where `serial`, one after the other."""

    alpha: float
    eta_up: float = 1.0
    eta_out: float = 1.0
    root: float = 0.0
    send_floor: Floats | float = 0.0
    receive_floor: Floats | float = 0.0
    tail: float = 0.0
    stretch: float = 1.0
    serial: bool = False


IDEAL = Kernel(alpha=0.0)


def exchange(
    traffic: Traffic,
    group: GroupNetwork,
    payload: Payload,
    kernels: Mapping[Direction, Kernel],
    network: str,
    back: Traffic | None = None,
) -> tuple[PortTimes, PortTimes]:
    """Dispatch along `traffic` and combine against it, or along `back`."""
    flows = {"dispatch": traffic, "combine": traffic.reversed() if back is None else back}
    dispatch, combine = (
        _port_times(flows[way], group, payload.of(way), IDEAL if network == "ideal" else kernels[way], network)
        for way in DIRECTIONS
    )
    return dispatch, combine


def _port_times(traffic: Traffic, group: GroupNetwork, copy: float, kernel: Kernel, network: str) -> PortTimes:
    ports = NETWORKS["ideal" if network == "ideal" else "port-load"](traffic, group)
    own = _seconds(ports, copy, kernel)
    send, receive = (
        own if network in ("ideal", "port-load") else _seconds(NETWORKS[network](traffic, group), copy, kernel)
    )
    return PortTimes(
        latency=kernel.alpha * kernel.stretch + kernel.tail,
        send=send,
        receive=receive,
        own=np.maximum(*own),
        up_send=ports.up_send * copy,
        up_receive=ports.up_receive * copy,
        out_send=ports.out_send * copy,
        out_receive=ports.out_receive * copy,
        bytes_up=traffic.up.sum(axis=-1) * copy,
        bytes_out=traffic.out.sum(axis=-1) * copy,
        received_up=traffic.up.sum(axis=-2) * copy,
        received_out=traffic.out.sum(axis=-2) * copy,
    )


def _seconds(loads: PortLoads, copy: float, kernel: Kernel) -> tuple[Floats, Floats]:
    """Seconds [..., R] of sends and of receives, by the kernel's law."""
    up, out = copy / kernel.eta_up, copy / kernel.eta_out
    both = np.add if kernel.serial else np.maximum
    send = np.maximum(both(loads.up_send * up, loads.out_send * out), kernel.send_floor)
    receive = np.maximum(both(loads.up_receive * up, loads.out_receive * out), kernel.receive_floor)
    return _with_root(send, kernel), _with_root(receive, kernel)


def _with_root(seconds: Floats, kernel: Kernel) -> Floats:
    return (seconds + kernel.root * np.sqrt(kernel.alpha * seconds)) * kernel.stretch


def nothing(demand: Demand) -> tuple[PortTimes, PortTimes]:
    """A group of one rank: nothing to send."""
    zero = np.zeros(demand.copies.shape[:-1])
    none = PortTimes(0.0, *[zero] * 11)
    return none, replace(none)


def direct_traffic(demand: Demand, group: GroupNetwork, distinct: bool) -> Traffic:
    """Every copy straight to its rank; one copy a (token, rank) where `distinct`."""
    copies = np.asarray(demand.rank_tokens if distinct else demand.copies, dtype=np.float64)
    same_domain = group.domain[:, None] == group.domain[None, :]
    up = copies * (same_domain & ~np.eye(group.ranks, dtype=bool))
    return Traffic(up, np.broadcast_to(0.0, copies.shape) if group.domains == 1 else copies * ~same_domain)


def message_seconds(traffic: Traffic, group: GroupNetwork, way: Direction) -> Floats:
    """Seconds [..., R] that a rank's proxy thread needs for the messages it sends to other domains, one a copy; 0 where
    the GPU drives the NIC itself. `traffic` is the dispatch's."""
    each = group.fabric.message_seconds or 0.0
    return np.asarray(traffic.out.sum(axis=-1 if way == "dispatch" else -2) * each)
