"""Times of the collectives of tensor, context, data and pipeline parallelism.

`sent` is the send buffer of one rank in bytes (a number or an array): for an all-gather the rank's own shard, for a
reduce-scatter and an all-reduce the whole buffer. `use` says where the collective runs: inside a training "step" beside
other kernels (the law fitted on steps), under fully sharded data parallelism ("fsdp"), or "alone" (the law fitted on
nccl-tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from moesim.network.coefficients import law
from moesim.network.portload import Traffic, busiest_port
from moesim.network.rings import ring_out_rate
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
    """Seconds until every rank holds the sum; `sent` is the whole buffer. Across domains by ring or by tree."""
    ring = ring_law(group, use, passes=2).seconds(2 * _passing(group, sent))
    if group.domains == 1:
        return _number(ring)
    return _number(np.minimum(ring, tree_law(group, use).seconds(2 * np.asarray(sent, dtype=np.float64))))


@overload
def custom_all_reduce(group: GroupNetwork, sent: float) -> float: ...
@overload
def custom_all_reduce(group: GroupNetwork, sent: Floats) -> Floats: ...
def custom_all_reduce(group: GroupNetwork, sent: float | Floats) -> float | Floats:
    """Seconds of a serving framework's own all-reduce inside a captured graph.

    The fastest of: every rank reads all buffers (one shot); its part of them and then the sums (two shots); NCCL.
    """
    found = np.asarray(all_reduce(group, np.asarray(sent, dtype=np.float64), "alone"))
    if group.domains > 1 or group.ranks == 1 or group.kind != "nvlink":
        return _number(found)
    laws, others = group.law("custom-all-reduce"), group.ranks - 1
    volumes = {"one_shot": others, "two_shots": 2 * others / group.ranks}
    for way, volume in volumes.items():
        alpha = group.latency_factor * (laws.value(way, "base") + laws.value(way, "hop") * others)
        own = RingLaw(alpha, group.scale_up_rate * laws.value(way, "eta"), 0.0)
        found = np.minimum(found, own.seconds(np.asarray(sent) * volume))
    return _number(found)


@overload
def all_to_all(group: GroupNetwork, sent: float, imbalance: float = 1.0) -> float: ...
@overload
def all_to_all(group: GroupNetwork, sent: Floats, imbalance: float = 1.0) -> Floats: ...
def all_to_all(group: GroupNetwork, sent: float | Floats, imbalance: float = 1.0) -> float | Floats:
    """Seconds of a plain all-to-all; `sent` is the send buffer of the mean rank, its own share included.

    `imbalance`: bytes of the busiest rank, sent or received, over the mean's. The way of a matrix of any shape is the
    dispatcher `nccl-all-to-all`, which is the same law.
    """
    law, ranks = all_to_all_law(group), group.ranks
    share = np.full((ranks, ranks), 1 / ranks)
    near = np.equal(group.domain[:, None], group.domain[None, :])
    loads = busiest_port(Traffic(share * (near & ~np.eye(ranks, dtype=bool)), share * ~near), group)
    up = np.maximum(loads.up_send, loads.up_receive).max() / law.eta_up
    out = np.maximum(loads.out_send, loads.out_receive).max() / law.eta_out
    wire = np.asarray(sent, dtype=np.float64) * (max(up, out) * imbalance)
    return _number(np.where(wire > 0, law.alpha + wire + law.root * np.sqrt(law.alpha * wire), 0.0))


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
    rate = ring_bandwidth(group) * laws.value("ring", use) * (1.0 if use == "alone" else _own_rings(group))
    if use == "alone":
        further = max(0.0, group.domains - laws.value("alone_domains"))
        alpha = laws.value("alone_alpha") + group.added_latency + passes * laws.assumed("ring_hop") * further
        return RingLaw(alpha, rate, laws.value("alone_root"))
    across = group.domains > 1
    alpha = laws.assumed("step_alpha_fabric") + group.added_latency if across else laws.value("step_alpha")
    return RingLaw(alpha, rate, 0.0)


def tree_law(group: GroupNetwork, use: Use) -> RingLaw:
    """The law of a double binary tree over the domains of `group`, a chain inside each: up and down again.

    Every rank passes the buffer on twice. Its latency grows with the logarithm of the domains, a ring's with them.
    """
    laws, chain = group.law("collectives"), group.law("nccl-domain")
    near = group.latency_factor * (chain.value("base") + 2 * chain.value("hop") * (group.ranks_per_domain - 1))
    far = 2 * log2(group.domains) * (laws.assumed("tree_hop") + group.added_latency)
    rate = ring_bandwidth(group) * laws.value("ring", use) * laws.assumed("tree_share")
    return RingLaw(near + far, rate, laws.value("alone_root") if use == "alone" else 0.0)


@dataclass(frozen=True)
class AllToAllLaw:
    """t = alpha + X + root sqrt(alpha X), X the busier tier's bytes over its share `eta_*` of the wire's rate."""

    alpha: float
    eta_up: float
    eta_out: float
    root: float


def all_to_all_law(group: GroupNetwork) -> AllToAllLaw:
    """The plain all-to-all among all ranks of `group`."""
    return domain_all_to_all(group, group.ranks) if group.domains == 1 else fabric_all_to_all(group)


def domain_all_to_all(group: GroupNetwork, ranks: int) -> AllToAllLaw:
    """The plain all-to-all among `ranks` ranks of one domain; a torus counts its diameter for the hops."""
    laws = group.law("nccl-domain")
    hops = group.torus.diameter if group.torus else ranks - 1
    alpha = laws.value("all_to_all_base") * laws.value("base") + laws.value("all_to_all_hop") * laws.value("hop") * hops
    eta = laws.value("eta") if group.torus else domain_efficiency(group, ranks)
    return AllToAllLaw(alpha * group.latency_factor, eta, 1.0, laws.value("root"))


def fabric_all_to_all(group: GroupNetwork) -> AllToAllLaw:
    """The plain all-to-all over several domains; a fabric known to do worse at it says so itself."""
    laws, stated = group.law("nccl-fabric"), group.fabric.all_to_all_efficiency
    out = laws.value("eta_out") * group.fabric_state if stated is None else stated
    return AllToAllLaw(laws.value("alpha") + group.added_latency, laws.value("eta_up"), out, laws.value("root"))


def _own_rings(group: GroupNetwork) -> float:
    """How much faster the cluster's own rings were measured, alone, than the catalog's: steps, fitted whole, follow."""
    if group.calibration is None:
        return 1.0
    entry, *key = ("collectives", "ring", "alone") if group.domains > 1 else ("nccl-domain", "eta")
    return group.law(entry).value(*key) / law(entry).value(*key)


def ring_bandwidth(group: GroupNetwork) -> float:
    """Bytes/s of a ring through all ranks: scale-up links, or all members' NICs together where it leaves a domain."""
    if group.torus is not None:
        inside = group.scale_up_bandwidth * group.torus.ring_links * group.slowest_up_share
    else:
        inside = group.scale_up_rate if group.ranks_per_domain > 1 else np.inf
    if group.domains == 1:
        return float(inside)
    return float(min(inside, ring_out_rate(group) * group.fabric_state))


def domain_efficiency(group: GroupNetwork, ranks: int) -> float:
    """Share of the wire rate that a ring or all-to-all of `ranks` ranks of one domain reaches."""
    laws = group.law("nccl-domain")
    return laws.value("eta") / (1 + laws.value("eta_small") / (ranks - 1)) if ranks > 1 else laws.value("eta")


def _alone_in_domain(group: GroupNetwork, passes: int) -> RingLaw:
    laws = group.law("nccl-domain")
    hops = group.torus.diameter if group.torus else group.ranks - 1
    alpha = group.latency_factor * (laws.value("base") + passes * laws.value("hop") * hops)
    rate = ring_bandwidth(group) * domain_efficiency(group, group.ranks)
    if passes == 2 and group.kind == "nvlink" and group.generation in laws.names("in_switch", "generations"):
        rate *= laws.value("in_switch", "factor")
    return RingLaw(alpha, rate, laws.value("root"))


def _passing(group: GroupNetwork, sent: float | Floats) -> Floats:
    """Bytes of a whole buffer that pass each rank once round the ring."""
    return np.asarray(sent, dtype=np.float64) * ((group.ranks - 1) / group.ranks)


def _number(seconds: Floats) -> float | Floats:
    return float(seconds) if seconds.ndim == 0 else seconds
