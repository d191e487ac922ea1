"""How a group of ranks sits on a cluster: from the cluster's words to the network of the group, or why it cannot be."""

from __future__ import annotations

from dataclasses import replace
from math import gcd, inf, prod
from typing import NamedTuple

import numpy as np

from moesim.errors import InfeasibleError, UserError
from moesim.network.crossing import Neighbours, worst_first
from moesim.network.groups import GroupNetwork
from moesim.network.handwritten import router, wires
from moesim.network.seating import Kind, kind_of, straddling
from moesim.network.torus import Torus, most_cubic, sub_torus
from moesim.provenance import Basis, worst
from moesim.specs.cluster import ClusterSpec
from moesim.specs.gpu import ScaleUpKind
from moesim.specs.links import DegradedSpec, nodes

__all__ = ["GroupNetwork", "degraded_note", "group", "pair", "torus"]


def group(cluster: ClusterSpec, ranks: int, stride: int = 1, *, mirrored: int = 0) -> GroupNetwork:
    """The network of the worst-placed group of a kind: every `stride`-th GPU of a block of `ranks * stride`.

    All groups of a kind run at once and a step waits for the slowest. Where none straddles domains, all are as the
    first. A group that does is priced as if all its domains were as small as its smallest: the busiest NIC is there and
    has the same load, a ring passes it whole, and kernels that forward inside domains want equal ones. Its scale-up
    links have less to do so, which the two-level all-to-all shows (a fifth below a plainly placed group at most). On
    hand-written links domains are cut into the largest equal parts. `mirrored`: see `seating.Kind`. Leaf switches are
    counted from the first GPU on.
    Raises `UserError` where a link it needs has no bandwidth, `InfeasibleError` where there is no fabric.
    """
    kind, links = kind_of(cluster, ranks, stride, mirrored), _links(cluster)
    found, inside = straddling(kind), kind.inside
    if found and cluster.fabric.kind == "links":
        inside = gcd(inside, *(count for each in found for count in each.members))
    elif found:
        plain = [inside] if sum(each.groups for each in found) < kind.groups else []
        sizes = sorted({*plain, *(each.members[-1] for each in found)})
        inside = max(sizes, key=lambda size: _load(_bare(cluster, links, kind, size)))
    return _placed(cluster, links, kind, inside)


def pair(cluster: ClusterSpec, stride: int, crosses: bool) -> GroupNetwork:
    """The network of two GPUs `stride` apart, in one domain or, where it `crosses`, in two; raises as `group` does."""
    return _placed(cluster, _links(cluster), kind_of(cluster, 2, stride), 1 if crosses else 2)


def _load(network: GroupNetwork) -> tuple[float, int]:
    """Seconds for each byte of a rank's even all-to-all on its busier tier, and the domains."""
    ranks, inside, domains = network.ranks, network.ranks_per_domain, network.domains
    up = (inside - 1) / ranks / network.healthy_scale_up_rate if inside > 1 else 0.0
    if domains == 1:
        return up, domains
    nic = network.nic_bandwidth * network.nics_per_domain / network.gpus_per_domain
    leaving = (domains - 1) * inside / ranks  # from the last domain, which may be smaller
    return max(up, leaving / nic if nic else inf), domains


class _Links(NamedTuple):
    """What a cluster's words say of its links: their kind, and bytes/s of scale-up links and of NICs."""

    kind: ScaleUpKind
    up: float
    nic: float


def _links(cluster: ClusterSpec) -> _Links:
    gpu, fabric = cluster.gpu, cluster.fabric
    one_torus = fabric.kind == "torus"
    nic = cluster.nic_bandwidth or fabric.nic_bandwidth or gpu.nic_bandwidth or 0.0
    if fabric.kind == "links":
        healthy = wires(fabric.links, (), cluster.gpus)
        nic = float(healthy.gpu_rates(healthy.healthy).max())
    up = cluster.scale_up_bandwidth or (gpu.scale_up_bandwidth if gpu.scale_up_kind != "none" else None) or 0.0
    if one_torus and gpu.scale_up_kind != "torus":
        up = cluster.scale_up_bandwidth or nic
    return _Links("torus" if one_torus else gpu.scale_up_kind, up, nic)


def _placed(cluster: ClusterSpec, links: _Links, kind: Kind, inside: int) -> GroupNetwork:
    """The network of a group that has `inside` members in a domain; refuses one that cannot reach its members."""
    _require_links(cluster, kind.ranks, inside, links)
    found = _bare(cluster, links, kind, inside)
    if links.kind == "torus" and inside > 1:
        found = replace(found, torus=torus(cluster, inside))
    if cluster.fabric.kind == "links" and kind.ranks > inside:
        found = replace(found, first_gpu=_first_gpu(cluster, kind.ranks, kind.stride))
    _require_ways(found)
    return found


def _bare(cluster: ClusterSpec, links: _Links, kind: Kind, inside: int) -> GroupNetwork:
    """The same without its place on a torus or on hand-written links."""
    gpu, fabric = cluster.gpu, cluster.fabric
    size = cluster.gpus if fabric.kind == "torus" else cluster.gpus_per_domain
    return GroupNetwork(
        ranks=kind.ranks,
        ranks_per_domain=inside,
        kind=links.kind,
        generation=gpu.generation,
        scale_up_bandwidth=links.up,
        nic_bandwidth=links.nic,
        gpus_per_domain=size,
        nics_per_domain=cluster.nics_per_domain or fabric.nics_per_domain or size,
        stride=kind.stride,
        fabric=fabric,
        oversubscription=cluster.oversubscription or fabric.oversubscription,
        torus=None,
        basis=_basis(cluster, kind.ranks > inside, inside > 1),
        multiprocessors=gpu.multiprocessors,
        calibration=cluster.calibration,
        degraded=_slower(cluster),
        cluster_gpus=cluster.gpus,
    )


def _first_gpu(cluster: ClusterSpec, ranks: int, stride: int) -> int:
    """Where the group begins that has the first degraded link, or that loads degraded links most."""
    groups = Neighbours(cluster.gpus, ranks, stride, cluster.gpus_per_domain)
    degraded = _slower(cluster)
    named = [spec.gpu for spec in degraded if spec.gpu is not None]
    named += [end.first or 0 for spec in degraded for end in map(nodes, spec.between or ()) if end.are_gpus]
    if named or not degraded:
        return groups.holding(named[0]) if named else 0
    found = wires(cluster.fabric.links, degraded, cluster.gpus)
    healthy = router(cluster.fabric.links, (), cluster.gpus)
    return worst_first(healthy, groups, np.flatnonzero(found.left < found.healthy))


def _slower(cluster: ClusterSpec) -> tuple[DegradedSpec, ...]:
    """What is degraded and not at its full share."""
    return tuple(spec for spec in cluster.degraded if spec.share < 1)


def _require_ways(network: GroupNetwork) -> None:
    """Refuses a group that failed links cut apart."""
    if network.fabric.kind == "links" and network.domains > 1:
        _ = network.crossing  # raises where hand-written links leave ranks cut apart
    if not network.degraded:
        return
    relax = "a share above 0, or a group that leaves it out, would relax it"
    if network.ranks_per_domain > 1 and network.slowest_up_share == 0:
        raise InfeasibleError(f"a scale-up link that the group of {network.ranks} ranks needs has failed; {relax}")
    if network.domains == 1 or network.fabric.kind == "links":
        return
    for tier, capacity, crossed in (
        ("leaf's uplinks", network.uplink_capacity, network.crosses_leaves),
        ("pod's links to the core", network.core_capacity, network.crosses_pods),
    ):
        if len(capacity) and crossed.any() and capacity.min() == 0:
            raise InfeasibleError(f"a {tier} that the group of {network.ranks} ranks needs have failed; {relax}")
    _ = network.fair_nic_rate  # raises where a domain has no NIC left, or the fabric no plane


def degraded_note(network: GroupNetwork) -> str | None:
    """What an answer says about its degraded links; None where there are none."""
    if not network.degraded:
        return None
    stated = ", ".join(f"{spec.words} at {spec.share:.0%}" for spec in network.degraded[:4])
    more = f" and {len(network.degraded) - 4} more" if len(network.degraded) > 4 else ""
    return f"degraded: {stated}{more}; the group simulated is taken to be the one that holds them"


def _require_links(cluster: ClusterSpec, ranks: int, inside: int, links: _Links) -> None:
    """Refuses a group that has no way to reach its members."""
    name = cluster.gpu.name
    if inside > 1 and not links.up:
        raise UserError(f"gpu {name}: {inside} ranks share a domain, but scale_up_bandwidth is not stated")
    if ranks <= inside:
        return
    if cluster.fabric.kind == "none":
        raise InfeasibleError(
            f"{ranks} ranks need more than one domain of {cluster.gpus_per_domain} GPUs, but the fabric is 'none';"
            " a fabric, or a smaller group, would relax it"
        )
    if not links.nic:
        raise UserError(
            f"{ranks} ranks span several domains of {cluster.gpus_per_domain} GPUs, but neither the cluster, the fabric"
            f" {cluster.fabric.name} nor the gpu {name} states nic_bandwidth"
        )


def torus(cluster: ClusterSpec, ranks: int | None = None) -> Torus:
    """The sub-torus of `ranks` chips, or of all that a torus of the cluster has.

    Without a stated shape the machine is the most nearly cubic box of its chips.
    """
    fabric, dimensions = cluster.fabric, cluster.gpu.torus_dimensions or 2
    chips = cluster.gpus if fabric.kind == "torus" else min(cluster.gpus, cluster.gpus_per_domain)
    machine = fabric.torus_shape or most_cubic(chips, dimensions) or (chips,)
    return sub_torus(ranks or prod(machine), machine, fabric.torus_wraps)


def _basis(cluster: ClusterSpec, uses_fabric: bool, uses_scale_up: bool) -> Basis:
    """The worst basis of the bandwidths in use; what the cluster itself states is the question, not a guess."""
    found: list[Basis] = []
    if uses_scale_up and cluster.scale_up_bandwidth is None:
        found.append(cluster.gpu.basis("scale_up_bandwidth"))
    if uses_fabric and cluster.nic_bandwidth is None:
        spec = cluster.fabric if cluster.fabric.nic_bandwidth is not None else cluster.gpu
        found.append(spec.basis("nic_bandwidth") if not cluster.fabric.links else cluster.fabric.basis("links"))
    return worst(found)
