"""DeepEP's normal kernels: two hops, one copy a distinct place, moved by a fixed number of SMs.

X is the largest of the NIC's, the NVLink port's and the SMs' seconds; the SMs spend a time on every token and move
every copy at a rate each.
"""

from __future__ import annotations

from math import log2

from moesim.network.coefficients import Law
from moesim.network.demand import Demand, Direction
from moesim.network.dispatchers.base import DIRECTIONS, Floats, Kernel, Payload, PortTimes, exchange
from moesim.network.dispatchers.family import LawDispatcher, Settings, needs_nvlink
from moesim.network.dispatchers.hierarchical import handled_copies, proxied, two_hop_traffic
from moesim.network.topology import GroupNetwork


class DeepEpNormal(LawDispatcher):
    """`deepep-normal`."""

    name = "deepep-normal"

    def runs_on(self, group: GroupNetwork) -> str | None:
        """On NVLink domains."""
        return needs_nvlink(self.name, group)

    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """SMs handle the same copies in both directions, but send what they received."""
        laws, (home, away) = group.law(self.name), handled_copies(demand, group)
        traffic, kernels = two_hop_traffic(demand, group), dict[Direction, Kernel]()
        for way in DIRECTIONS:
            sent, received = (home, away) if way == "dispatch" else (away, home)
            copy = payload.of(way)
            busy = [_sm_seconds(laws, way, group, demand.home_tokens, part * copy, copy) for part in (sent, received)]
            floors = (busy[0] / settings.multiprocessors, busy[1] / settings.multiprocessors)
            kernels[way] = proxied(_kernel(laws, way, group, copy, floors, settings.notify), traffic, group, way)
        return exchange(traffic, group, payload, kernels, settings.network)


def _sm_seconds(laws: Law, way: Direction, group: GroupNetwork, tokens: Floats, moved: Floats, copy: float) -> Floats:
    """SM-seconds [..., R] of moving `moved` bytes, and of merging a rank's own tokens when they come back."""
    rate = laws.value("rate_fabric" if group.domains > 1 else "rate", way)
    merged = laws.value("combine_copies") * copy if way == "combine" else 0.0
    return tokens * (laws.value("token") + merged / rate) + moved / rate


def _kernel(
    laws: Law, way: Direction, group: GroupNetwork, copy: float, floors: tuple[Floats, Floats], notify: bool
) -> Kernel:
    doublings = log2(group.domains)
    alpha = laws.value(f"alpha_{way}") + laws.value("alpha_doubling") * doublings
    if way == "combine":
        alpha += copy / laws.value("alpha_combine_rate")
    stretched = notify and way == "combine" and doublings > 0
    return Kernel(
        alpha=alpha * group.latency_factor + group.added_latency,
        eta_up=laws.value("eta_up"),
        eta_out=laws.value("eta_out") * group.fabric_state,
        root=laws.value("root"),
        send_floor=floors[0],
        receive_floor=floors[1],
        tail=laws.value("notify_doubling") * doublings if notify else 0.0,
        stretch=1.0 + laws.value("notify_combine") if stretched else 1.0,
    )
