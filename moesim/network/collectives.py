"""Times of the collectives of tensor, context, data and pipeline parallelism.

`sent` is the send buffer of one rank in bytes (a number or an array): for an all-gather the rank's own shard, for a
reduce-scatter and an all-reduce the whole buffer. `use` says where the collective runs: inside a training "step" beside
other kernels (the law fitted on steps), under fully sharded data parallelism ("fsdp"), or "alone" (the law fitted on
nccl-tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from moesim.network.topology import GroupNetwork

Floats = NDArray[np.float64]
Use = Literal["step", "fsdp", "alone"]


@dataclass(frozen=True)
class RingLaw:
    """t = alpha + X + root sqrt(alpha X), X = bytes / rate."""

    alpha: float
    rate: float
    root: float

    def seconds(self, volume: float | Floats) -> Floats:
        """Time of `volume` bytes through each rank; no bytes take no time."""
        wire = np.asarray(volume, dtype=np.float64) / self.rate
        return np.where(wire > 0, self.alpha + wire + self.root * np.sqrt(self.alpha * wire), 0.0)


@overload
def all_gather(group: GroupNetwork, sent: float, use: Use = "step") -> float: ...
@overload
def all_gather(group: GroupNetwork, sent: Floats, use: Use = "step") -> Floats: ...
def all_gather(group: GroupNetwork, sent: float | Floats, use: Use = "step") -> float | Floats:
    """Seconds until every rank holds all ranks' shards; `sent` is one shard."""
    return _number(ring_law(group, use).seconds(np.asarray(sent) * (group.ranks - 1)))


@overload
def reduce_scatter(group: GroupNetwork, sent: float, use: Use = "step") -> float: ...
@overload
def reduce_scatter(group: GroupNetwork, sent: Floats, use: Use = "step") -> Floats: ...
def reduce_scatter(group: GroupNetwork, sent: float | Floats, use: Use = "step") -> float | Floats:
    """Seconds until every rank holds its shard of the sum; `sent` is the whole buffer."""
    return _number(ring_law(group, use).seconds(_passing(group, sent)))


@overload
def all_reduce(group: GroupNetwork, sent: float, use: Use = "step") -> float: ...
@overload
def all_reduce(group: GroupNetwork, sent: Floats, use: Use = "step") -> Floats: ...
def all_reduce(group: GroupNetwork, sent: float | Floats, use: Use = "step") -> float | Floats:
    """Seconds until every rank holds the sum; `sent` is the whole buffer."""
    return _number(ring_law(group, use, passes=2).seconds(2 * _passing(group, sent)))


@overload
def point_to_point(group: GroupNetwork, sent: float) -> float: ...
@overload
def point_to_point(group: GroupNetwork, sent: Floats) -> Floats: ...
def point_to_point(group: GroupNetwork, sent: float | Floats) -> float | Floats:
    """Seconds of a message to the next rank of the group, over scale-up links where all of it is in one domain."""
    laws = group.law("collectives")
    if group.ranks == 1:
        return _number(np.zeros(np.shape(sent)))
    if group.domains > 1:
        alpha = laws.assumed("message_alpha_fabric") + group.added_latency
        rate = group.fair_nic_rate * group.fabric_state * group.law("nccl-fabric").value("eta_out")
    else:
        alpha = laws.assumed("message_alpha") * group.latency_factor
        rate = group.scale_up_rate * group.law("nccl-domain").value("eta")
    return _number(RingLaw(alpha, rate, 0.0).seconds(sent))


def ring_law(group: GroupNetwork, use: Use, passes: int = 1) -> RingLaw:
    """The law of a ring collective on `group` in `passes` rounds of R - 1 steps."""
    if group.ranks == 1:
        return RingLaw(0.0, 1.0, 0.0)
    if use == "alone" and group.domains == 1:
        return _alone_in_domain(group, passes)
    laws = group.law("collectives")
    rate = ring_bandwidth(group) * laws.value("ring", use)
    if use == "alone":
        return RingLaw(laws.value("alone_alpha") + group.added_latency, rate, laws.value("alone_root"))
    across = group.domains > 1
    alpha = laws.assumed("step_alpha_fabric") + group.added_latency if across else laws.value("step_alpha")
    return RingLaw(alpha, rate, 0.0)


def ring_bandwidth(group: GroupNetwork) -> float:
    """Bytes/s of a ring through all ranks: scale-up links, or all members' NICs together where it leaves a domain."""
    if group.torus is not None:
        inside = group.scale_up_bandwidth * group.torus.ring_links
    else:
        inside = group.scale_up_rate if group.ranks_per_domain > 1 else np.inf
    if group.domains == 1:
        return float(inside)
    out = group.fair_nic_rate * group.ranks_per_domain * group.fabric_state
    if group.leaf is not None:
        # A ring leaves each leaf once, so the uplinks of all domains under it carry one domain's flow.
        below = min(group.domains, group.fabric.leaf_ports)
        out = min(out, out * below / group.oversubscription)
    return float(min(inside, out))


def domain_efficiency(group: GroupNetwork) -> float:
    """Share of the wire rate that a ring or all-to-all of all ranks of one domain reaches."""
    laws = group.law("nccl-domain")
    return laws.value("eta") / (1 + laws.value("eta_small") / (group.ranks - 1))


def _alone_in_domain(group: GroupNetwork, passes: int) -> RingLaw:
    laws = group.law("nccl-domain")
    hops = group.torus.diameter if group.torus else group.ranks - 1
    alpha = group.latency_factor * (laws.value("base") + passes * laws.value("hop") * hops)
    rate = ring_bandwidth(group) * domain_efficiency(group)
    if passes == 2 and group.kind == "nvlink" and group.generation in laws.names("in_switch", "generations"):
        rate *= laws.value("in_switch", "factor")
    return RingLaw(alpha, rate, laws.value("root"))


def _passing(group: GroupNetwork, sent: float | Floats) -> Floats:
    """Bytes of a whole buffer that pass each rank once round the ring."""
    return np.asarray(sent, dtype=np.float64) * ((group.ranks - 1) / group.ranks)


def _number(seconds: Floats) -> float | Floats:
    return float(seconds) if seconds.ndim == 0 else seconds
