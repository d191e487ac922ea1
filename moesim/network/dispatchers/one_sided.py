"""One-sided stores inside a single NVLink domain: a rank writes one copy of a token to every distinct rank."""

from __future__ import annotations

from math import log2

from moesim.network.demand import Demand, Direction
from moesim.network.dispatchers.base import DIRECTIONS, Kernel, Payload, PortTimes, direct_traffic, exchange
from moesim.network.dispatchers.family import LawDispatcher, Settings, needs_one_rack
from moesim.network.topology import GroupNetwork


class OneSidedNvl(LawDispatcher):
    """`one-sided-nvl`."""

    name = "one-sided-nvl"

    def runs_on(self, group: GroupNetwork) -> str | None:
        """Where NVLink reaches every rank."""
        return needs_one_rack(self.name, group)

    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """A rank spends a time on each of its tokens, on the way there and on the way back."""
        laws, kernels = group.law(self.name), dict[Direction, Kernel]()
        for way in DIRECTIONS:
            floor = demand.home_tokens * laws.value(way, "token")
            alpha = laws.value(way, "alpha") + laws.value(way, "alpha_doubling") * log2(group.ranks)
            kernels[way] = Kernel(alpha, eta_up=laws.value(way, "eta"), send_floor=floor, receive_floor=floor)
        traffic = direct_traffic(demand, group, distinct=True)
        return exchange(traffic, group, payload, kernels, settings.network)
