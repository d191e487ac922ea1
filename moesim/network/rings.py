"""Rings across domains: what leaves each domain while a ring a member runs through its likes in the other domains.

R ranks, N domains, Q links. A ring has R edges, from each rank to its like in the next domain; only they are followed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.network.tiers import Fabric, Piece
from moesim.network.topology import GroupNetwork
from moesim.network.written import Written

Floats = NDArray[np.float64]
Numbers = NDArray[np.int32]


def ring_out_rate(group: GroupNetwork) -> float:
    """Bytes/s that leave a domain over all members' rings at once; without bound for a group inside one domain.

    Rings are as slow as the busiest link on them, a slow or a shared one perhaps. An uplink is shared with the GPUs
    beside the group's under its switch, whose groups run rings of their own. The ways into a last domain of fewer
    members do not count.
    """
    if group.domains == 1:
        return float("inf")
    if not _meets_others(group):
        return group.ranks_per_domain * group.own_nic_rate
    if "ring out" not in group.memo:
        group.memo["ring out"] = group.ranks_per_domain / _busiest(group, *ring_edges(group))
    return float(group.memo["ring out"])


def _meets_others(group: GroupNetwork) -> bool:
    """Whether an edge has more on its way than NICs of its own."""
    switched = group.leaf is not None or group.pod is not None
    return switched or group.fabric.kind == "links" or group.shares_nics or group.moves_nics


def ring_edges(group: GroupNetwork) -> tuple[Numbers, Numbers]:
    """The ranks [R] that each edge leaves and reaches; in a smaller domain the index is taken modulo its members."""
    ahead, sizes = (group.domain + 1) % group.domains, np.bincount(group.domain)
    target = ahead * group.ranks_per_domain + group.index % sizes[ahead]
    return np.arange(group.ranks, dtype=np.int32), target.astype(np.int32)


def _busiest(group: GroupNetwork, source: Numbers, target: Numbers) -> float:
    """Seconds a byte of the busiest link that ranks of whole domains wait for."""
    tier = Written(group, 0) if group.fabric.kind == "links" else Fabric(group, 0)
    pieces = list(tier.routed(source, target, np.ones(len(source))))
    capacity = tier.capacity
    load = np.zeros(len(capacity))
    for piece in pieces:
        for column in piece.columns:
            load += np.bincount(column, weights=piece.size, minlength=len(load))
    seconds = np.divide(load, capacity, out=np.zeros(len(load)), where=load > 0)
    whole = np.bincount(group.domain)[group.domain] == group.ranks_per_domain
    return max(float(seconds[passed].max(initial=0.0)) for passed in _waited_for(pieces, whole))


def _waited_for(pieces: Sequence[Piece], whole: NDArray[np.bool_]) -> list[Numbers]:
    """Links that a `whole` source waits for, up to the middle of the way, and a `whole` target, from there on."""
    found = []
    for piece in pieces:
        for place, column in enumerate(piece.columns):
            leaving, arriving = 2 * place < len(piece.columns), 2 * place + 1 >= len(piece.columns)
            found.append(column[(leaving & whole[piece.source]) | (arriving & whole[piece.target])])
    return found
