"""Two hops: a token goes once to every distinct domain, over the NIC to the GPU of the same index there, and from that
GPU over scale-up links once to every distinct rank. The way of DeepEP's normal kernels and of HybridEP.

R ranks, N domains, G members of a domain.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moesim.network.demand import Demand, Direction
from moesim.network.dispatchers.base import Kernel, message_seconds
from moesim.network.portload import Traffic
from moesim.network.topology import GroupNetwork

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def two_hop_traffic(demand: Demand, group: GroupNetwork) -> Traffic:
    """Distinct tokens [..., R, R] by tier. In a smaller last domain the index is taken modulo its members."""
    tokens = np.asarray(demand.rank_tokens, dtype=np.float64)
    up = np.zeros(tokens.shape)
    for domains in alike(group):
        members = np.flatnonzero(np.isin(group.domain, domains))
        size = len(members) // len(domains)
        forwarders = (group.index[:, None] % size == np.arange(size)[None, :]).astype(np.float64)
        gathered = forwarders.T @ tokens[..., members]
        rows = (members // group.ranks_per_domain) * group.ranks_per_domain
        up[..., rows[None, :] + np.arange(size)[:, None], members[None, :]] = gathered
    diagonal = np.arange(group.ranks)
    up[..., diagonal, diagonal] = 0.0
    if group.domains == 1:
        return Traffic(up, np.broadcast_to(0.0, tokens.shape))
    out = np.zeros(tokens.shape)
    foreign = group.domain[:, None] != np.arange(group.domains)[None, :]
    out[..., diagonal[:, None], proxies(group)] = demand.domain_tokens * foreign
    return Traffic(up, out)


def proxies(group: GroupNetwork) -> Ints:
    """The rank [R, N] that takes in what each rank sends to each domain."""
    first = np.arange(group.domains) * group.ranks_per_domain
    sizes = np.bincount(group.domain)
    return (first[None, :] + group.index[:, None] % sizes[None, :]).astype(np.int64)


def handled_copies(demand: Demand, group: GroupNetwork) -> tuple[Floats, Floats]:
    """Copies [..., R] that a rank's SMs move for its own tokens, and for tokens that come to it.

    Its own: one a distinct rank, and one a distinct domain where there are several; its own rank and domain count.
    """
    home = demand.rank_tokens.sum(axis=-1, dtype=np.float64)
    away = demand.rank_tokens.sum(axis=-2, dtype=np.float64)
    if group.domains == 1:
        return home, away
    arriving = np.zeros(home.shape)
    for index, place in enumerate(proxies(group).T):
        first, size = place.min(), int((group.domain == index).sum())
        forwarders = (place[:, None] - first == np.arange(size)[None, :]).astype(np.float64)
        arriving[..., first : first + size] = demand.domain_tokens[..., index] @ forwarders
    return home + demand.domain_tokens.sum(axis=-1, dtype=np.float64), away + arriving


def proxied(kernel: Kernel, traffic: Traffic, group: GroupNetwork, way: Direction) -> Kernel:
    """The kernel where a processor's proxy threads drive the NICs: a dear start, less of the wire, a time a message."""
    if group.domains == 1 or group.fabric.message_seconds is None:
        return kernel
    laws = group.law("proxied")
    return replace(
        kernel,
        eta_out=laws.value("eta_out") * group.fabric_state,
        tail=kernel.tail + laws.value("start"),
        send_floor=np.maximum(kernel.send_floor, message_seconds(traffic, group, way)),
    )


def alike(group: GroupNetwork) -> list[Ints]:
    """Domains grouped by their number of members."""
    sizes = np.bincount(group.domain)
    return [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
