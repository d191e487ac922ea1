"""Two-sided kernels inside a single NVLink domain: counts and places are agreed on in a prepare kernel, then a rank
sends one copy of a token to every distinct rank through buffers that both sides watch.

X is the larger of the NVLink port's and the SMs' seconds; the SMs spend a time on every token and move every copy, the
rank's own too, at a rate. A combine in fewer than 2 bytes a value takes another kernel, which converts on the way.
"""

from __future__ import annotations

from dataclasses import replace
from math import log2

from moesim.network.demand import Demand, Direction
from moesim.network.dispatchers.base import DIRECTIONS, Kernel, Payload, PortTimes, direct_traffic, exchange
from moesim.network.dispatchers.family import LawDispatcher, Settings, needs_one_rack
from moesim.network.topology import GroupNetwork


class TwoSidedNvl(LawDispatcher):
    """`two-sided-nvl`."""

    name = "two-sided-nvl"

    def runs_on(self, group: GroupNetwork) -> str | None:
        """Where NVLink reaches every rank."""
        return needs_one_rack(self.name, group)

    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """The prepare kernel stands on the stream before the dispatch."""
        laws = group.law(self.name)
        copies = demand.rank_tokens.sum(axis=-1), demand.rank_tokens.sum(axis=-2)
        kernels: dict[Direction, Kernel] = {}
        for way in DIRECTIONS:
            part = "dispatch" if way == "dispatch" else _combine_kernel(payload)
            tokens = demand.home_tokens * laws.value(part, "token")
            each = payload.of(way) / laws.value("copy_rate")
            floors = [tokens + each * moved for moved in (copies if way == "dispatch" else copies[::-1])]
            alpha = laws.value(part, "alpha") + laws.value(part, "alpha_doubling") * log2(group.ranks)
            kernels[way] = Kernel(alpha, laws.value(part, "eta"), send_floor=floors[0], receive_floor=floors[1])
        if settings.notify:
            prepare = prepare_seconds(float(demand.home_tokens.max()), group)
            kernels["dispatch"] = replace(kernels["dispatch"], tail=prepare)
        traffic = direct_traffic(demand, group, distinct=True)
        return exchange(traffic, group, payload, kernels, settings.network)


def prepare_seconds(tokens: float, group: GroupNetwork) -> float:
    """Seconds of the prepare kernel for `tokens` tokens of a rank."""
    laws = group.law(TwoSidedNvl.name)
    alpha = laws.value("prepare", "alpha") + laws.value("prepare", "alpha_doubling") * log2(group.ranks)
    return alpha + tokens * laws.value("prepare", "token")


def _combine_kernel(payload: Payload) -> str:
    """Which of the two combines carries this payload."""
    low = payload.hidden is not None and payload.combine < 2 * payload.hidden
    return "combine_low_precision" if low else "combine"
