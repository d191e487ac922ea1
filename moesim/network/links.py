"""The links of a group, and the way of every flow over them.

R ranks, Q directed links, F flows. Links that can never be the narrowest on a way (the switches of a domain, the
uplinks of a non-blocking tree) are left out until one of them is degraded. A message that a fast link inside a domain
hands to a neighbour first, to change rails or because its own NIC has failed, counts on the scale-out links alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.network.link_checks import problems
from moesim.network.tiers import Fabric, Links, Mesh, Piece, Ports, Tier, TorusLinks
from moesim.network.topology import GroupNetwork
from moesim.network.written import Written

__all__ = ["Flows", "Links", "flows", "links", "problems"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]

_NOBODY: Numbers = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class Flows:
    """Flows and their ways: the links of flow f, in order, are `links[first[f]:first[f + 1]]`. `size` [F] in the unit
    of the traffic, `source` and `target` [F] ranks, `scale_out` [F] the tier of the traffic it came from."""

    first: Ints
    links: Numbers
    size: Floats
    source: Numbers
    target: Numbers
    scale_out: NDArray[np.bool_]


@dataclass(frozen=True)
class _Plan:
    links: Links
    scale_up: Tier | None
    scale_out: Tier | None


def links(group: GroupNetwork) -> Links:
    """The links of `group`; worked out once."""
    return _plan(group).links


def flows(up: Floats, out: Floats, group: GroupNetwork) -> Flows:
    """One flow for each nonzero entry of `up` and `out` [R, R], or one for each of the equal ways that it is split
    over: half-way round a torus, over planes, over equal routes of hand-written links."""
    plan = _plan(group)
    near, far = (
        list(tier.pieces(traffic)) if tier else _none(traffic)
        for tier, traffic in ((plan.scale_up, up), (plan.scale_out, out))
    )
    pieces = [*near, *far]
    count, hops = [len(piece.size) for piece in pieces], [len(piece.columns) for piece in pieces]
    first = np.zeros(sum(count) + 1, dtype=np.int64)
    np.cumsum(np.repeat(np.array(hops, dtype=np.int64), count), out=first[1:])
    passed, at = np.empty(int(first[-1]), dtype=np.int32), 0
    for piece, number, length in zip(pieces, count, hops, strict=True):
        block = passed[at : at + number * length].reshape(number, length)
        for place, column in enumerate(piece.columns):
            block[:, place] = column
        at += number * length
    return Flows(
        first=first,
        links=passed,
        size=np.concatenate([np.zeros(0), *(piece.size for piece in pieces)]),
        source=np.concatenate([_NOBODY, *(piece.source for piece in pieces)]),
        target=np.concatenate([_NOBODY, *(piece.target for piece in pieces)]),
        scale_out=np.arange(len(first) - 1) >= sum(count[: len(near)]),
    )


def _none(traffic: Floats) -> list[Piece]:
    if np.any(traffic):
        raise InternalError("traffic on a tier that the group does not have")
    return []


def _plan(group: GroupNetwork) -> _Plan:
    if "links" not in group.memo:
        group.memo["links"] = _work_out(group)
    found: _Plan = group.memo["links"]
    return found


def _work_out(group: GroupNetwork) -> _Plan:
    up: Tier | None = None
    if group.ranks_per_domain > 1:
        kind: type[TorusLinks | Mesh | Ports] = TorusLinks if group.torus else Mesh if group.kind == "xgmi" else Ports
        up = kind(group, 0)
    start = len(up.names) if up else 0
    out: Tier | None = None
    if group.domains > 1:
        out = Written(group, start) if group.fabric.kind == "links" else Fabric(group, start)
    tiers = [tier for tier in (up, out) if tier]
    joined = Links(
        capacity=np.concatenate([np.zeros(0), *(tier.capacity for tier in tiers)]),
        names=tuple(name for tier in tiers for name in tier.names),
        scale_out=np.repeat(np.array([tier is out for tier in tiers], dtype=np.bool_), [len(t.names) for t in tiers]),
    )
    return _Plan(joined, up, out)
