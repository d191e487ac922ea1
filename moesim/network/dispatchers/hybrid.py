"""HybridEP, and any other tuned two-hop kernel known by datasheets alone: DeepEP's law without SM and root terms."""

from __future__ import annotations

from math import log2

from moesim.network.demand import Demand
from moesim.network.dispatchers.base import DIRECTIONS, Kernel, Payload, PortTimes, exchange
from moesim.network.dispatchers.family import LawDispatcher, Settings, needs_nvlink
from moesim.network.dispatchers.hierarchical import proxied, two_hop_traffic
from moesim.network.topology import GroupNetwork


class HybridEp(LawDispatcher):
    """`hybrid-ep`."""

    name = "hybrid-ep"

    def runs_on(self, group: GroupNetwork) -> str | None:
        """On NVLink domains; kernels of its kind are ported to xGMI ones."""
        return needs_nvlink(self.name, group, ("xgmi",))

    def unfit(self, demand: Demand, group: GroupNetwork) -> str | None:
        """Its ports to xGMI have published no times: never chosen there unless named."""
        return None if group.kind == "nvlink" else f"no kernel of its kind was measured on {group.kind}"

    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """Both directions take the same kernel, but the messages of an unequal demand."""
        laws = group.law(self.name)
        alpha = laws.value("alpha") + laws.value("alpha_doubling") * log2(group.domains)
        kernel = Kernel(
            alpha=alpha * group.latency_factor + group.added_latency,
            eta_up=laws.value("eta_up"),
            eta_out=laws.value("eta_out") * group.fabric_state,
        )
        traffic = two_hop_traffic(demand, group)
        kernels = {way: proxied(kernel, traffic, group, way) for way in DIRECTIONS}
        return exchange(traffic, group, payload, kernels, settings.network)
