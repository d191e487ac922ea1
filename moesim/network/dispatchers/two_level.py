"""Two-level (2DH) all-to-all: first inside each domain, gathering what goes to the same place of any domain, then over
the NICs between GPUs of the same place. No de-duplication; the second level waits for the first.

Messages are fewer and larger than the plain all-to-all's, at the price of moving nearly every copy over scale-up links
first. R ranks; the place of a rank is its index in its domain.
"""

from __future__ import annotations

import numpy as np

from moesim.network.collectives import domain_all_to_all, fabric_all_to_all
from moesim.network.demand import Demand
from moesim.network.dispatchers.base import Floats, Kernel, Payload, PortTimes, exchange
from moesim.network.dispatchers.family import LawDispatcher, Settings
from moesim.network.dispatchers.hierarchical import alike, proxies
from moesim.network.portload import Traffic
from moesim.network.topology import GroupNetwork


class Hierarchical(LawDispatcher):
    """`hierarchical`."""

    name = "hierarchical"

    def calibration(self, group: GroupNetwork) -> str:
        """Composed of the laws of its two levels, never measured as a whole."""
        return self.name

    def runs_on(self, group: GroupNetwork) -> str | None:
        """Where there are two levels."""
        if group.ranks > 1 and (group.domains == 1 or group.ranks_per_domain == 1):
            shape = f"{group.domains} x {group.ranks_per_domain}"
            return f"{self.name} needs several domains of several ranks, this group has {shape}"
        return None

    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """Both directions take the same kernel, scale-up links first."""
        inside, across = domain_all_to_all(group, group.ranks_per_domain), fabric_all_to_all(group)
        kernel = Kernel(
            alpha=inside.alpha + across.alpha,
            eta_up=inside.eta_up,
            eta_out=across.eta_out,
            root=across.root,
            serial=True,
        )
        there, back = (two_level_traffic(each, group) for each in (demand.copies, np.swapaxes(demand.copies, -1, -2)))
        return exchange(there, group, payload, {"dispatch": kernel, "combine": kernel}, settings.network, back)


def two_level_traffic(copies: Floats, group: GroupNetwork) -> Traffic:
    """Copies [..., R, R] by tier. In a smaller domain the place is taken modulo its members."""
    sent, ranks = np.asarray(copies, dtype=np.float64), np.arange(group.ranks)
    up, out = np.zeros(sent.shape), np.zeros(sent.shape)
    first = group.domain * group.ranks_per_domain
    for domains in alike(group):
        members = np.flatnonzero(np.isin(group.domain, domains))
        places = np.arange(len(members) // len(domains))
        in_place = (group.index[:, None] % len(places) == places[None, :]).astype(np.float64)
        up[..., members[:, None], first[members, None] + places] = sent[..., members, :] @ in_place
    up[..., ranks, ranks] = 0.0
    gathered = np.add.reduceat(sent, np.arange(0, group.ranks, group.ranks_per_domain), axis=-2)
    foreign = np.arange(group.domains)[:, None] != group.domain[None, :]
    out[..., proxies(group).T, ranks[None, :]] = gathered * foreign
    return Traffic(up, out)
