"""DeepEP's low-latency kernels, for decoding: one message for every (token, expert) pair, no de-duplication.

Every GPU writes straight to the expert's rank. The start grows with the number of experts, whose messages each are
polled for, and with the share of them that is far away. X is the largest of the NIC's, the NVLink port's, the SMs' and,
where a processor drives the NIC, the messages' seconds.
"""

from __future__ import annotations

from math import ceil

import numpy as np

from moesim.network.demand import Demand, Direction
from moesim.network.dispatchers.base import (
    DIRECTIONS,
    Kernel,
    Payload,
    PortTimes,
    direct_traffic,
    exchange,
    message_seconds,
)
from moesim.network.dispatchers.family import LawDispatcher, Settings
from moesim.network.topology import GroupNetwork


class DeepEpLowLatency(LawDispatcher):
    """`deepep-low-latency`."""

    name = "deepep-low-latency"
    settable = False

    def runs_on(self, group: GroupNetwork) -> str | None:
        """Where NVLink or a NIC reaches every rank."""
        if group.ranks_per_domain > 1 and group.kind != "nvlink":
            return f"{self.name} needs NVLink between the GPUs of a domain, this group has {group.kind}"
        return None

    def unfit(self, demand: Demand, group: GroupNetwork) -> str | None:
        """Its buffers hold a decoding batch."""
        most, tokens = group.law(self.name).assumed("most_tokens"), float(demand.home_tokens.mean())
        if tokens <= most:
            return None
        return f"{self.name} is meant for decoding, up to {most:.0f} tokens a rank, this moves {tokens:.0f}"

    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """The SMs spend a time on every byte of a token, whatever the number of its copies."""
        laws, traffic = group.law(self.name), direct_traffic(demand, group, distinct=False)
        experts = payload.experts or int(laws.assumed("experts"))
        # The kernel takes what SMs there are: the library has no setting for it.
        senders = _senders(experts, group.multiprocessors or int(laws.assumed("multiprocessors")))
        far = 1 - 1 / group.domains
        kernels: dict[Direction, Kernel] = {}
        for way in DIRECTIONS:
            near = laws.value("alpha", way) + laws.value("alpha_expert", way) * experts
            busy = demand.home_tokens * (payload.of(way) / laws.value("rate", way) / senders)
            kernels[way] = Kernel(
                alpha=near * group.latency_factor + laws.value("alpha_far", way) * far + group.added_latency,
                eta_up=laws.value("eta_up", way),
                eta_out=laws.value("eta_out", way) * group.fabric_state,
                send_floor=np.maximum(busy, message_seconds(traffic, group, way)),
                receive_floor=busy,
            )
        return exchange(traffic, group, payload, kernels, settings.network)


def _senders(experts: int, multiprocessors: int) -> int:
    """SMs that work: each serves equally many experts."""
    return ceil(experts / ceil(experts / multiprocessors))
