"""Plain all-to-all: one copy for every (token, expert) pair, straight to its rank, no de-duplication.

The law of NCCL's kernels inside a domain and across domains; the same shape, assumed, on PCIe, xGMI and torus links.
"""

from __future__ import annotations

from moesim.network.collectives import domain_efficiency
from moesim.network.demand import Demand
from moesim.network.dispatchers.base import Kernel, Payload, PortTimes, direct_traffic, exchange
from moesim.network.dispatchers.family import LawDispatcher, Settings
from moesim.network.topology import GroupNetwork


class NcclAllToAll(LawDispatcher):
    """`nccl-all-to-all`."""

    name = "nccl-all-to-all"

    def calibration(self, group: GroupNetwork) -> str:
        """Inside one domain and across several."""
        return "nccl-fabric" if group.domains > 1 else "nccl-domain"

    def runs_on(self, group: GroupNetwork) -> str | None:
        """Everywhere."""
        return None

    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """Both directions take the same kernel."""
        kernel = across_domains(group) if group.domains > 1 else inside_domain(group)
        traffic = direct_traffic(demand, group, distinct=False)
        return exchange(traffic, group, payload, {"dispatch": kernel, "combine": kernel}, settings.network)


def inside_domain(group: GroupNetwork) -> Kernel:
    """The all-to-all among all ranks of one domain; a torus counts its diameter for the hops."""
    laws = group.law("nccl-domain")
    hops = group.torus.diameter if group.torus else group.ranks - 1
    alpha = laws.value("all_to_all_base") * laws.value("base") + laws.value("all_to_all_hop") * laws.value("hop") * hops
    eta = laws.value("eta") if group.torus else domain_efficiency(group)
    return Kernel(alpha * group.latency_factor, eta_up=eta, root=laws.value("root"))


def across_domains(group: GroupNetwork) -> Kernel:
    """The all-to-all over several domains; a fabric known to do worse at it says so itself."""
    laws, stated = group.law("nccl-fabric"), group.fabric.all_to_all_efficiency
    out = laws.value("eta_out") * group.fabric_state if stated is None else stated
    alpha = laws.value("alpha") + group.added_latency
    return Kernel(alpha, eta_up=laws.value("eta_up"), eta_out=out, root=laws.value("root"))
