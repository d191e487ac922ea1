"""How a group of ranks sits on a cluster: domains, NICs, leaf switches, torus.

R ranks of the group, N domains, Q shared things (NICs or leaf switches). Other groups of the same kind run beside this
one and load shared links alike, so that a link shared with GPUs outside the group counts in proportion to its members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError, UserError
from moesim.network.coefficients import Law, law
from moesim.network.torus import Torus, most_cubic, sub_torus
from moesim.provenance import Basis, worst
from moesim.specs.cluster import ClusterSpec, FabricSpec
from moesim.specs.gpu import Generation, ScaleUpKind

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupNetwork:
    """The links that a group of `ranks` GPUs sees; bandwidths in bytes/s and one direction, 0 where there is no link.

    `gpus_per_domain` GPUs and `nics_per_domain` NICs of `nic_bandwidth` each fill a domain; every `stride`-th GPU is a
    member, `ranks_per_domain` of them in one domain. On a torus `scale_up_bandwidth` is that of one link. `basis` is
    the worst of the datasheet numbers. `calibration` is the path of the cluster's own measured calibration; `laws` go
    before it (a fit tries its coefficients there).
    """

    ranks: int
    ranks_per_domain: int
    kind: ScaleUpKind
    generation: Generation
    scale_up_bandwidth: float
    nic_bandwidth: float
    gpus_per_domain: int
    nics_per_domain: int
    stride: int
    fabric: FabricSpec
    oversubscription: float
    torus: Torus | None
    basis: Basis
    calibration: str | None = None
    laws: Mapping[str, Law] = field(default_factory=dict)

    def law(self, name: str) -> Law:
        """The coefficients that hold here under `network-NAME`."""
        return self.laws.get(name) or law(name, self.calibration)

    @property
    def latency_factor(self) -> float:
        """How much longer this GPU generation's start-up latencies are than Hopper's."""
        factors = self.law("common").data["latency_factor"]
        return float(factors.get(self.generation, factors["unknown"]))

    @property
    def domains(self) -> int:
        """N."""
        return -(-self.ranks // self.ranks_per_domain)

    @cached_property
    def domain(self) -> Ints:
        """Domain [R] of each rank."""
        return np.arange(self.ranks) // self.ranks_per_domain

    @cached_property
    def index(self) -> Ints:
        """Place [R] of each rank among the members in its domain."""
        return np.arange(self.ranks) % self.ranks_per_domain

    @cached_property
    def own_nic_rate(self) -> float:
        """Bytes/s that a rank's NIC or NICs carry when it has them for itself."""
        return self.nic_bandwidth * max(1.0, self.nics_per_domain / self.gpus_per_domain)

    @cached_property
    def fair_nic_rate(self) -> float:
        """Bytes/s of NIC a rank has while all GPUs of its domain send."""
        return self.nic_bandwidth * self.nics_per_domain / self.gpus_per_domain

    @property
    def shares_nics(self) -> bool:
        """Whether a NIC serves more than one GPU."""
        return self.nics_per_domain < self.gpus_per_domain

    @cached_property
    def _local_nic(self) -> Ints:
        gpu = self.index * self.stride % self.gpus_per_domain
        return gpu * self.nics_per_domain // self.gpus_per_domain if self.shares_nics else gpu

    @cached_property
    def nic(self) -> Ints:
        """Number [R] of the NIC that each rank sends through."""
        return _renumber(self.domain * self.gpus_per_domain + self._local_nic)

    @cached_property
    def nic_capacity(self) -> Floats:
        """Bytes/s [Q] that each NIC has for its members in the group."""
        if not self.shares_nics:
            return np.full(self.ranks, self.own_nic_rate)
        place = np.arange(self.gpus_per_domain) * self.nics_per_domain // self.gpus_per_domain
        served = np.bincount(place, minlength=self.nics_per_domain)[self._local_nic]
        capacity = np.zeros(int(self.nic.max()) + 1)
        np.add.at(capacity, self.nic, self.nic_bandwidth / served)
        return capacity

    @cached_property
    def leaf(self) -> Ints | None:
        """Number [R] of the leaf switch above each rank's NIC; None where uplinks can never bind."""
        tiers = ("fat-tree", "dual-plane", "rail-optimized")
        if self.fabric.kind not in tiers or self.oversubscription <= 1.0 or self.domains == 1:
            return None
        if self.fabric.kind == "rail-optimized":
            return _renumber(self._block * self.gpus_per_domain + self._local_nic)
        return _renumber(self._block)

    @cached_property
    def _block(self) -> Ints:
        """Block [R] of `leaf_ports` neighbouring domains."""
        skip = max(1, self.stride // self.gpus_per_domain)
        return self.domain * skip // self.fabric.leaf_ports

    @cached_property
    def crosses_leaves(self) -> NDArray[np.bool_]:
        """Whether traffic between two ranks' domains climbs the uplinks, [R, R].

        On rails a message goes over the scale-up links to the GPU on the destination's rail first, where there are any.
        """
        rails_first = self.fabric.kind == "rail-optimized" and self.kind in ("nvlink", "xgmi")
        place = self._block if rails_first or self.leaf is None else self.leaf
        return np.not_equal(place[:, None], place[None, :])

    @cached_property
    def uplink_capacity(self) -> Floats:
        """Bytes/s [Q] of each leaf's uplinks for the members under it."""
        if self.leaf is None:
            return np.zeros(0)
        return np.bincount(self.leaf).astype(np.float64) * (self.fair_nic_rate / self.oversubscription)

    @cached_property
    def scale_up_rate(self) -> float:
        """Bytes/s of a rank's scale-up links in a plain transfer among the members of its domain.

        PCIe boxes fall short of the link; a full mesh has one link a peer.
        """
        if self.kind == "pcie":
            pair = self.ranks_per_domain <= 2
            return self.scale_up_bandwidth * self.law("common").assumed("pcie_pair" if pair else "pcie_many")
        if self.kind == "xgmi" and self.gpus_per_domain > 1:
            return self.scale_up_bandwidth * (self.ranks_per_domain - 1) / (self.gpus_per_domain - 1)
        return self.scale_up_bandwidth

    @property
    def port_bandwidth(self) -> float:
        """Bytes/s of all scale-up links of a rank together."""
        links = 2 * len(self.torus.shape) if self.torus else 1
        return self.scale_up_bandwidth * links

    @cached_property
    def fabric_state(self) -> float:
        """Share of the NIC's rate that the fabric passes: stated efficiency, less what size costs beyond 8 domains."""
        common = self.law("common")
        doublings = max(0.0, float(np.log2(self.domains / common.value("fabric_free_domains"))))
        return float(self.fabric.efficiency * (1 - common.value("fabric_loss_a_doubling")) ** doublings)

    @property
    def added_latency(self) -> float:
        """Seconds by which the fabric is slower than the one that the fits hold."""
        if self.domains == 1 or self.fabric.latency is None:
            return 0.0
        return max(0.0, float(self.fabric.latency) - self.law("common").assumed("fabric_latency"))


def group(cluster: ClusterSpec, ranks: int, stride: int = 1) -> GroupNetwork:
    """The network of a group whose members are every `stride`-th GPU of `cluster`, from the first on.

    Raises `UserError` where a link it needs has no bandwidth, `InfeasibleError` where there is no fabric.
    """
    gpu, fabric = cluster.gpu, cluster.fabric
    one_torus = fabric.kind == "torus"
    kind: ScaleUpKind = "torus" if one_torus else gpu.scale_up_kind
    nic = cluster.nic_bandwidth or fabric.nic_bandwidth or gpu.nic_bandwidth or 0.0
    up = cluster.scale_up_bandwidth or (gpu.scale_up_bandwidth if gpu.scale_up_kind != "none" else None) or 0.0
    if one_torus and gpu.scale_up_kind != "torus":
        up = cluster.scale_up_bandwidth or nic
    size = cluster.gpus if one_torus else cluster.gpus_per_domain
    inside = min(ranks, max(1, size // stride)) if kind != "none" else 1
    _require_links(cluster, ranks, inside, up, nic)
    return GroupNetwork(
        ranks=ranks,
        ranks_per_domain=inside,
        kind=kind,
        generation=gpu.generation,
        scale_up_bandwidth=up,
        nic_bandwidth=nic,
        gpus_per_domain=size,
        nics_per_domain=cluster.nics_per_domain or size,
        stride=stride,
        fabric=fabric,
        oversubscription=cluster.oversubscription or fabric.oversubscription,
        torus=_torus(cluster, inside) if kind == "torus" and inside > 1 else None,
        basis=_basis(cluster, ranks > inside, inside > 1),
        calibration=cluster.calibration,
    )


def _require_links(cluster: ClusterSpec, ranks: int, inside: int, up: float, nic: float) -> None:
    """Refuses a group that has no way to reach its members."""
    name = cluster.gpu.name
    if inside > 1 and not up:
        raise UserError(f"gpu {name}: {inside} ranks share a domain, but scale_up_bandwidth is not stated")
    if ranks <= inside:
        return
    if cluster.fabric.kind == "none":
        raise InfeasibleError(
            f"{ranks} ranks need more than one domain of {cluster.gpus_per_domain} GPUs, but the fabric is 'none';"
            " a fabric, or a smaller group, would relax it"
        )
    if not nic:
        raise UserError(
            f"{ranks} ranks span several domains of {cluster.gpus_per_domain} GPUs, but neither the cluster, the fabric"
            f" {cluster.fabric.name} nor the gpu {name} states nic_bandwidth"
        )


def _torus(cluster: ClusterSpec, ranks: int) -> Torus:
    """The sub-torus of `ranks` chips; without a stated shape the machine is the most nearly cubic box of its chips."""
    fabric, dimensions = cluster.fabric, cluster.gpu.torus_dimensions or 2
    chips = cluster.gpus if fabric.kind == "torus" else min(cluster.gpus, cluster.gpus_per_domain)
    machine = fabric.torus_shape or most_cubic(chips, dimensions) or (chips,)
    return sub_torus(ranks, machine, fabric.torus_wraps)


def _basis(cluster: ClusterSpec, uses_fabric: bool, uses_scale_up: bool) -> Basis:
    """The worst basis of the bandwidths in use; what the cluster itself states is the question, not a guess."""
    found: list[Basis] = []
    if uses_scale_up and cluster.scale_up_bandwidth is None:
        found.append(cluster.gpu.basis("scale_up_bandwidth"))
    if uses_fabric and cluster.nic_bandwidth is None:
        spec = cluster.fabric if cluster.fabric.nic_bandwidth is not None else cluster.gpu
        found.append(spec.basis("nic_bandwidth"))
    return worst(found)


def _renumber(labels: Ints) -> Ints:
    """The same partition with labels 0, 1, ... in ascending order."""
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
