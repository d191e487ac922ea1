"""Busiest port: from who sends how much to whom, to the seconds each rank's links are taken.

R ranks; `...` is a batch. Loads are seconds for each byte of payload at the full rate of the wire: token copies over
bytes/s. A rank's load is the maximum over the resources it uses; all who use a shared link see that link's load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.network.topology import GroupNetwork
from moesim.network.torus import pair_loads

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Traffic:
    """Token copies [..., R, R] on the wire, from row to column, by tier; nothing on the diagonals."""

    up: Floats
    out: Floats

    def reversed(self) -> Traffic:
        """The same flows the other way."""
        return Traffic(np.swapaxes(self.up, -1, -2), np.swapaxes(self.out, -1, -2))


@dataclass(frozen=True)
class PortLoads:
    """Seconds for each byte of payload [..., R] that a rank's sends and receives take on each tier."""

    up_send: Floats
    up_receive: Floats
    out_send: Floats
    out_receive: Floats


NetworkModel = Callable[[Traffic, GroupNetwork], PortLoads]


def busiest_port(traffic: Traffic, group: GroupNetwork) -> PortLoads:
    """Every port and every shared link: NVLink or PCIe ports, mesh and torus links, NICs, leaf uplinks."""
    up_send, up_receive = _scale_up(traffic.up, group)
    if group.domains == 1:
        nothing = np.zeros(traffic.up.shape[:-1])
        return PortLoads(up_send, up_receive, nothing, nothing)
    sent, received = traffic.out.sum(axis=-1), traffic.out.sum(axis=-2)
    out_send, out_receive = sent / group.own_nic_rate, received / group.own_nic_rate
    if group.shares_nics:
        out_send = np.maximum(out_send, _shared(sent, group.nic, group.nic_capacity))
        out_receive = np.maximum(out_receive, _shared(received, group.nic, group.nic_capacity))
    if group.leaf is not None:
        crossing = traffic.out * group.crosses_leaves
        out_send = np.maximum(out_send, _shared(crossing.sum(axis=-1), group.leaf, group.uplink_capacity))
        out_receive = np.maximum(out_receive, _shared(crossing.sum(axis=-2), group.leaf, group.uplink_capacity))
    return PortLoads(up_send, up_receive, out_send, out_receive)


def own_port(traffic: Traffic, group: GroupNetwork) -> PortLoads:
    """The ideal network: a rank's own bytes at its own links' full rate; nothing is shared."""

    def seconds(copies: Floats, rate: float) -> Floats:
        return copies / rate if rate else np.zeros(copies.shape)

    up, out = group.port_bandwidth, group.own_nic_rate
    return PortLoads(
        seconds(traffic.up.sum(axis=-1), up),
        seconds(traffic.up.sum(axis=-2), up),
        seconds(traffic.out.sum(axis=-1), out),
        seconds(traffic.out.sum(axis=-2), out),
    )


NETWORKS: dict[str, NetworkModel] = {"port-load": busiest_port, "ideal": own_port}


def _scale_up(copies: Floats, group: GroupNetwork) -> tuple[Floats, Floats]:
    """Send and receive seconds a byte on the scale-up tier."""
    if group.ranks_per_domain == 1:
        nothing = np.zeros(copies.shape[:-1])
        return nothing, nothing
    if group.torus is not None:
        return _torus(copies, group)
    rate = group.scale_up_bandwidth if group.kind == "xgmi" else group.scale_up_rate
    send, receive = copies.sum(axis=-1) / rate, copies.sum(axis=-2) / rate
    if group.kind == "xgmi":
        link = rate / (group.gpus_per_domain - 1)
        send = np.maximum(send, copies.max(axis=-1) / link)
        receive = np.maximum(receive, copies.max(axis=-2) / link)
    return send, receive


def _torus(copies: Floats, group: GroupNetwork) -> tuple[Floats, Floats]:
    """Seconds of the busiest link among those that a rank's messages pass, domain by domain."""
    if group.torus is None:
        raise ValueError("not a torus")
    shape = copies.shape[:-1]
    send, receive = np.zeros(shape), np.zeros(shape)
    size = group.ranks_per_domain
    for first in range(0, group.ranks, size):
        place = slice(first, min(first + size, group.ranks))
        block = np.zeros((*shape[:-1], size, size))
        members = place.stop - place.start
        block[..., :members, :members] = copies[..., place, place]
        seconds = np.where(block > 0, pair_loads(block, group.torus), 0.0) / group.scale_up_bandwidth
        send[..., place] = seconds.max(axis=-1)[..., :members]
        receive[..., place] = seconds.max(axis=-2)[..., :members]
    return send, receive


def _shared(load: Floats, owner: Ints, capacity: Floats) -> Floats:
    """Seconds a byte [..., R] of the shared thing that each rank uses; 0 for a rank that sends nothing through it."""
    members = (owner[:, None] == np.arange(len(capacity))[None, :]).astype(np.float64)
    seconds = (load @ members) / capacity
    return np.where(load > 0, seconds[..., owner], 0.0)
