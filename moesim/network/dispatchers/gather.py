"""All-gather of every rank's tokens before the experts, reduce-scatter of their outputs after. Rings.

Every rank gets every token, wanted or not: what it costs does not depend on routing.
"""

from __future__ import annotations

import numpy as np

from moesim.network.collectives import ring_law
from moesim.network.demand import Demand
from moesim.network.dispatchers.base import Floats, Payload, PortTimes
from moesim.network.dispatchers.family import LawDispatcher, Settings
from moesim.network.topology import GroupNetwork


class AllGatherReduceScatter(LawDispatcher):
    """`all-gather-reduce-scatter`."""

    name = "all-gather-reduce-scatter"

    def calibration(self, group: GroupNetwork) -> str:
        """Inside one domain and across several."""
        return "collectives" if group.domains > 1 else "nccl-domain"

    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """The same ring both ways."""
        foreign, out = _passing_tokens(demand, group)
        ring = _ideal_ring if settings.network == "ideal" else _ring
        return ring(foreign, out, payload.dispatch, group), ring(foreign, out, payload.combine, group)


def _passing_tokens(demand: Demand, group: GroupNetwork) -> tuple[Floats, Floats]:
    """Tokens [..., R] that pass each rank on the ring, and those of other domains that pass its NIC."""
    tokens = demand.home_tokens
    total = tokens.sum(axis=-1, keepdims=True)
    inside = np.add.reduceat(tokens, np.arange(0, group.ranks, group.ranks_per_domain), axis=-1)
    members = np.bincount(group.domain)
    return total - tokens, ((total - inside) / members)[..., group.domain]


def _ring(foreign: Floats, out: Floats, copy: float, group: GroupNetwork) -> PortTimes:
    """A rank sends on what it receives, so that both take the same time."""
    law = ring_law(group, "alone")
    wire = foreign * copy / law.rate
    seconds = wire + law.root * np.sqrt(law.alpha * wire)
    return PortTimes(law.alpha, seconds, seconds, seconds, *_moved(foreign, out, copy, group))


def _ideal_ring(foreign: Floats, out: Floats, copy: float, group: GroupNetwork) -> PortTimes:
    """The same bytes at the full rate of a rank's own links."""
    seconds = foreign * (copy / group.port_bandwidth) if group.ranks_per_domain > 1 else np.zeros(foreign.shape)
    if group.domains > 1:
        seconds = np.maximum(seconds, out * (copy / group.own_nic_rate))
    return PortTimes(0.0, seconds, seconds, seconds, *_moved(foreign, out, copy, group))


def _moved(foreign: Floats, out: Floats, copy: float, group: GroupNetwork) -> tuple[Floats, ...]:
    """Seconds of links and bytes by tier: on a ring a rank receives as much as it sends."""
    up, over = foreign * copy, out * copy
    near = up / group.port_bandwidth if group.port_bandwidth else up
    far = over / group.own_nic_rate if group.domains > 1 else over
    return near, near, far, far, up, over, up, over
