"""Busiest port: from who sends how much to whom, to the seconds each rank's links are taken.

R ranks, Q links; `...` is a batch. Loads are seconds for each byte of payload at the full rate of the wire: token
copies over bytes/s. A rank's load is the maximum over the resources it uses; all who use a shared link see that link's
load. A rank's sends wait for the links of the first half of their ways, its receives for those of the second (on a
torus both for all), so that the busiest link stands at some rank in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.network.links import Flows, flows, links
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
    """Every port and every shared link: NVLink or PCIe ports, mesh and torus links, NICs, uplinks, written ones."""
    up = _scale_up(traffic.up, group)
    if group.domains == 1:
        nothing = np.zeros(traffic.up.shape[:-1])
        return PortLoads(*up, nothing, nothing)
    out = tier_by_links(traffic.out, group, True) if group.fabric.kind == "links" else _scale_out(traffic.out, group)
    return PortLoads(*up, *out)


def own_port(traffic: Traffic, group: GroupNetwork) -> PortLoads:
    """The ideal network: a rank's own bytes at its own links' full rate; nothing is shared."""

    def seconds(copies: Floats, rate: Floats | float) -> Floats:
        return copies / rate if np.any(rate) else np.zeros(copies.shape)

    up = group.own_up_rates if group.slows_scale_up else group.port_bandwidth
    out = group.reachable_nic_rates if group.domains > 1 else group.own_nic_rate
    return PortLoads(
        seconds(traffic.up.sum(axis=-1), up),
        seconds(traffic.up.sum(axis=-2), up),
        seconds(traffic.out.sum(axis=-1), out),
        seconds(traffic.out.sum(axis=-2), out),
    )


def _scale_out(copies: Floats, group: GroupNetwork) -> tuple[Floats, Floats]:
    """Send and receive seconds a byte on NICs and the uplinks above them."""
    sent, received = copies.sum(axis=-1), copies.sum(axis=-2)
    if group.shares_nics or group.moves_nics:
        send, receive = (_shared(load, group.nic, group.nic_capacity) for load in (sent, received))
    else:
        send, receive = sent / group.own_nic_rate, received / group.own_nic_rate
    for owner, capacity, name in (
        (group.leaf, group.uplink_capacity, "crosses_leaves"),
        (group.pod, group.core_capacity, "crosses_pods"),
    ):
        if owner is not None:
            # einsum is several times as fast on numbers as on truth values.
            crosses = group.memo.setdefault(name, getattr(group, name).astype(np.float64))
            climbing, falling = (np.einsum(how, copies, crosses) for how in ("...ij,ij->...i", "...ij,ij->...j"))
            send = np.maximum(send, _shared(climbing, owner, capacity))
            receive = np.maximum(receive, _shared(falling, owner, capacity))
    return send, receive


def _scale_up(copies: Floats, group: GroupNetwork) -> tuple[Floats, Floats]:
    """Send and receive seconds a byte on the scale-up tier."""
    if group.ranks_per_domain == 1:
        nothing = np.zeros(copies.shape[:-1])
        return nothing, nothing
    if group.torus is not None:
        return _torus(copies, group)
    if group.kind == "xgmi":
        link = group.scale_up_bandwidth / (group.gpus_per_domain - 1)
        widest = copies / group.up_shares if group.slows_scale_up else copies
        return widest.max(axis=-1) / link, widest.max(axis=-2) / link
    rate: Floats | float = group.healthy_scale_up_rate
    if group.slows_scale_up:
        rate = rate * group.up_shares
    return copies.sum(axis=-1) / rate, copies.sum(axis=-2) / rate


def _torus(copies: Floats, group: GroupNetwork) -> tuple[Floats, Floats]:
    """Seconds of the busiest link among those that a rank's messages pass, domain by domain."""
    if group.torus is None:
        raise ValueError("not a torus")
    shape = copies.shape[:-1]
    send, receive = np.zeros(shape), np.zeros(shape)
    size = group.ranks_per_domain
    for domain, first in enumerate(range(0, group.ranks, size)):
        place = slice(first, min(first + size, group.ranks))
        block = np.zeros((*shape[:-1], size, size))
        members = place.stop - place.start
        block[..., :members, :members] = copies[..., place, place]
        left = group.up_shares[domain] if group.slows_scale_up else None
        seconds = np.where(block > 0, pair_loads(block, group.torus, left), 0.0) / group.scale_up_bandwidth
        send[..., place] = seconds.max(axis=-1)[..., :members]
        receive[..., place] = seconds.max(axis=-2)[..., :members]
    return send, receive


def _shared(load: Floats, owner: Ints, capacity: Floats) -> Floats:
    """Seconds a byte [..., R] of the shared thing that each rank uses; 0 for a rank that sends nothing through it."""
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(len(capacity)))
    seconds = np.add.reduceat(load[..., order], starts, axis=-1) / capacity
    return np.where(load > 0, seconds[..., owner], 0.0)


@dataclass(frozen=True)
class _Ways:
    """A tier's flows at one copy a pair, with which of their links their source and their target wait for."""

    flows: Flows
    hop_flow: Ints
    sends: NDArray[np.bool_]
    receives: NDArray[np.bool_]


def tier_by_links(copies: Floats, group: GroupNetwork, scale_out: bool) -> tuple[Floats, Floats]:
    """Send and receive seconds a byte on one tier of any network, from each link's capacity and each flow's way."""
    send = np.zeros(copies.shape[:-1])
    receive = np.zeros(copies.shape[:-1])
    if not np.any(copies):
        return send, receive
    ways, capacity = _ways(group, scale_out), links(group).capacity
    for sample in np.ndindex(copies.shape[:-2]):
        send[sample], receive[sample] = _waits(copies[sample], ways, capacity)
    return send, receive


def _waits(copies: Floats, ways: _Ways, capacity: Floats) -> tuple[Floats, Floats]:
    """Seconds a byte [R] of the busiest link that each rank's sends and receives wait for."""
    found = ways.flows
    size = found.size * copies[found.source, found.target]
    load = np.bincount(found.links, weights=size[ways.hop_flow], minlength=len(capacity))
    seconds = (load / capacity)[found.links] * (size > 0)[ways.hop_flow]
    result = []
    for waits, ends in ((ways.sends, found.source), (ways.receives, found.target)):
        busiest = np.zeros(len(copies))
        np.maximum.at(busiest, ends, np.maximum.reduceat(np.where(waits, seconds, 0.0), found.first[:-1]))
        result.append(busiest)
    return result[0], result[1]


def _ways(group: GroupNetwork, scale_out: bool) -> _Ways:
    """Every pair of ranks of a tier, worked out once for a group."""
    key = f"ways {scale_out}"
    if key not in group.memo:
        same = group.domain[:, None] == group.domain[None, :]
        pairs = (~same if scale_out else same & ~np.eye(group.ranks, dtype=np.bool_)).astype(np.float64)
        none = np.zeros(pairs.shape)
        found = flows(none, pairs, group) if scale_out else flows(pairs, none, group)
        hops = np.diff(found.first)
        hop_flow = np.repeat(np.arange(len(hops)), hops)
        place, length = np.arange(len(hop_flow)) - found.first[hop_flow], hops[hop_flow]
        whole = group.torus is not None and not scale_out
        group.memo[key] = _Ways(found, hop_flow, whole | (2 * place < length), whole | (2 * place + 1 >= length))
    ways: _Ways = group.memo[key]
    return ways
