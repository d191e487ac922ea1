"""Plain all-to-all: one copy for every (token, expert) pair, straight to its rank, no de-duplication.

The law of NCCL's kernels inside a domain and across domains; the same shape, assumed, on PCIe, xGMI and torus links.
"""

from __future__ import annotations

from moesim.network.collectives import all_to_all_law
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

    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """Both directions take the same kernel."""
        found = all_to_all_law(group)
        kernel = Kernel(found.alpha, found.eta_up, found.eta_out, found.root)
        traffic = direct_traffic(demand, group, distinct=False)
        return exchange(traffic, group, payload, {"dispatch": kernel, "combine": kernel}, settings.network)
