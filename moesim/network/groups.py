"""The network of one group of ranks: domains, NICs, leaf switches, torus, and what is degraded of them.

R ranks of the group, N domains, Q shared things (NICs or leaf switches). Other groups of the same kind run beside this
one and load shared links alike, so that a link shared with GPUs outside the group counts in proportion to its members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.network import faults
from moesim.network.coefficients import Law, law
from moesim.network.crossing import Crossing, Neighbours, Seats, crossing
from moesim.network.handwritten import Router, router
from moesim.network.torus import Torus
from moesim.provenance import Basis
from moesim.specs.cluster import TREES, FabricSpec
from moesim.specs.gpu import Generation, ScaleUpKind
from moesim.specs.links import DegradedSpec

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupNetwork:
    """The links that a group of `ranks` GPUs sees; bandwidths in bytes/s and one direction, 0 where there is no link.

    `gpus_per_domain` GPUs and `nics_per_domain` NICs of `nic_bandwidth` each fill a domain; every `stride`-th GPU is a
    member, `ranks_per_domain` of them in one domain. On a torus `scale_up_bandwidth` is that of one link. `basis` is
    the worst of the datasheet numbers. `calibration` is the path of the cluster's own measured calibration; `laws` go
    before it (a fit tries its coefficients there). `degraded` links are stated for the cluster's GPUs: GPU g is rank
    `g // stride mod R` here, as if this group were the one that holds them all. Bandwidths are of healthy links; on
    hand-written links `nic_bandwidth` is the most that any member's links carry together. `multiprocessors` are a GPU's
    SMs. `memo` holds what other
    modules worked out once about this group.
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
    multiprocessors: int | None = None
    calibration: str | None = None
    laws: Mapping[str, Law] = field(default_factory=dict)
    degraded: tuple[DegradedSpec, ...] = ()
    cluster_gpus: int = 0
    first_gpu: int = 0
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

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
    def local(self) -> Ints:
        """Place [R] of each rank's GPU in its domain."""
        return self.index * self.stride % self.gpus_per_domain

    @cached_property
    def gpu(self) -> Ints:
        """Number [R] of each rank's GPU in the cluster, for the first group of its kind; on hand-written links for the
        group that has the degraded ones."""
        if self.fabric.kind == "links":
            return self.first_gpu + np.arange(self.ranks) * self.stride
        return self.domain * max(self.gpus_per_domain, self.stride) + self.index * self.stride

    @cached_property
    def members(self) -> faults.Members:
        """Where the ranks sit, for what is degraded."""
        return faults.Members(self.ranks, self.stride, self.gpus_per_domain, self.domain, self.local)

    @cached_property
    def router(self) -> Router:
        """The routes over hand-written links."""
        return router(self.fabric.links, self.degraded, self.cluster_gpus)

    @property
    def neighbours(self) -> Neighbours:
        """The groups of this kind in the cluster."""
        return Neighbours(self.cluster_gpus, self.ranks, self.stride, self.gpus_per_domain)

    @cached_property
    def crossing(self) -> Crossing:
        """Who carries for whom over hand-written links."""
        hand_over = self.ranks_per_domain > 1 and self.kind in ("nvlink", "xgmi", "pcie")
        return crossing(self.router, Seats(self.gpu, self.domain, hand_over))

    @cached_property
    def own_nic_rate(self) -> float:
        """Bytes/s that a rank's healthy NIC or NICs carry when it has them for itself."""
        return self.nic_bandwidth * max(1.0, self.nics_per_domain / self.gpus_per_domain) * self.plane_factor

    @cached_property
    def own_nic_rates(self) -> Floats:
        """Bytes/s [R] of the NIC or NICs that a rank sends through, as they are, without the others that share them."""
        if self.fabric.kind == "links":
            found = self.router.wires.gpu_rates(self.router.wires.left)[self.gpu[self.crossing.out]]
            return np.asarray(found.min(axis=1))
        if not self.moves_nics:
            return np.full(self.ranks, self.own_nic_rate)
        return self.own_nic_rate * self._nics.share[self.domain, self._local_nic]

    @property
    def reachable_nic_rates(self) -> Floats:
        """Bytes/s [R] of all NICs that carry for a rank: those of its domain where members pass messages on."""
        own = self.own_nic_rates
        hands_over = self.fabric.kind == "links" and (self.crossing.relays or self.crossing.takers)
        return np.asarray(np.bincount(self.domain, weights=own)[self.domain]) if hands_over else own

    @cached_property
    def fair_nic_rate(self) -> float:
        """Bytes/s of NIC that the slowest rank has while all GPUs of its domain send."""
        return self._even_nic_rate * self.slowest_nic_share

    @property
    def _even_nic_rate(self) -> float:
        """The same with healthy NICs."""
        return self.nic_bandwidth * self.nics_per_domain / self.gpus_per_domain * self.plane_factor

    @property
    def shares_nics(self) -> bool:
        """Whether a NIC serves more than one GPU by design."""
        return self.nics_per_domain < self.gpus_per_domain

    @cached_property
    def moves_nics(self) -> bool:
        """Whether some NIC is slow or has failed, so that another serves its GPUs."""
        return self.domains > 1 and self.fabric.kind != "links" and any(faults.of_kind(self.degraded, "nic"))

    @cached_property
    def planes(self) -> int:
        """Independent networks that each NIC is split over."""
        return 2 if self.fabric.kind == "dual-plane" else 1

    @cached_property
    def plane_factor(self) -> float:
        """Share of a NIC's rate that the planes which still work carry, when flows are split evenly over them."""
        return faults.plane_factor(self.degraded, self.planes)

    @cached_property
    def _nics(self) -> faults.NicPlan:
        count = self.nics_per_domain if self.shares_nics else self.gpus_per_domain
        return faults.nic_plan(self.degraded, self.members, count)

    @cached_property
    def _local_nic(self) -> Ints:
        if not (self.shares_nics or self.moves_nics):
            return self.local
        return np.asarray(self._nics.place[self.domain, self.local])

    @cached_property
    def nic(self) -> Ints:
        """Number [R] of the NIC that each rank sends through."""
        return _renumber(self.domain * self.gpus_per_domain + self._local_nic)

    @cached_property
    def nic_capacity(self) -> Floats:
        """Bytes/s [Q] that each NIC has for its members in the group, of all GPUs that send through it."""
        if not (self.shares_nics or self.moves_nics):
            return np.full(self.ranks, self.own_nic_rate)
        plan, rows = self._nics, np.arange(self.members.domains)[:, None]
        served = np.zeros(plan.share.shape)
        np.add.at(served, (rows, plan.place), 1.0)
        capacity = np.zeros(int(self.nic.max()) + 1)
        np.add.at(capacity, self.nic, self.own_nic_rates / served[self.domain, self._local_nic])
        return capacity

    @cached_property
    def slowest_nic_share(self) -> float:
        """Share of its healthy rate that is left to the rank worst off for NICs: what a ring over all of them gets."""
        if self.fabric.kind == "links" and self.domains > 1:
            served = np.bincount(self.crossing.out)[self.crossing.out]
            return float((self.own_nic_rates / served).min() / self.nic_bandwidth)
        if not self.moves_nics:
            return 1.0
        healthy = replace(self, degraded=tuple(faults.of_kind(self.degraded, "plane")))
        each, whole = (net.nic_capacity / np.bincount(net.nic) for net in (self, healthy))
        return float((each[self.nic] / whole[healthy.nic]).min())

    @cached_property
    def leaf(self) -> Ints | None:
        """Number [R] of the leaf switch above each rank's NIC; None where uplinks can never bind."""
        narrow = self.oversubscription > 1.0 or any(spec.leaf is not None for spec in self.degraded)
        return _renumber(self._leaf_label) if self._is_tree and narrow else None

    @cached_property
    def pod(self) -> Ints | None:
        """Number [R] of the pod above each rank's leaf; None in two levels or where the core never binds."""
        narrow = self.fabric.upper_oversubscription > 1.0 or any(spec.pod is not None for spec in self.degraded)
        return _renumber(self._pod_label) if self._is_tree and self.fabric.levels == 3 and narrow else None

    @property
    def _is_tree(self) -> bool:
        return self.fabric.kind in TREES and self.domains > 1

    @cached_property
    def _block(self) -> Ints:
        """Block [R] of `leaf_ports` neighbouring domains."""
        skip = max(1, self.stride // self.gpus_per_domain)
        return self.domain * skip // self.fabric.leaf_ports

    @cached_property
    def _leaf_label(self) -> Ints:
        on_rails = self.fabric.kind == "rail-optimized"
        return self._block * self.gpus_per_domain + self._local_nic if on_rails else self._block

    @property
    def _pod_label(self) -> Ints:
        return self._block // self.fabric.pod_leaves

    @property
    def leaf_place(self) -> Ints:
        """Place [R] of each rank; traffic between ranks of two such places climbs the leaves' uplinks.

        On rails a message goes over the scale-up links to the GPU on the destination's rail first, where there are any.
        """
        rails_first = self.fabric.kind == "rail-optimized" and self.kind in ("nvlink", "xgmi")
        return self._block if rails_first or self.leaf is None else self.leaf

    @property
    def pod_place(self) -> Ints:
        """The same for the core above the pods."""
        return self._pod_label

    @cached_property
    def crosses_leaves(self) -> NDArray[np.bool_]:
        """Whether traffic between two ranks' domains climbs the uplinks, [R, R]."""
        return np.not_equal(self.leaf_place[:, None], self.leaf_place[None, :])

    @cached_property
    def crosses_pods(self) -> NDArray[np.bool_]:
        """Whether traffic between two ranks goes through the core, [R, R]."""
        return np.not_equal(self.pod_place[:, None], self.pod_place[None, :])

    def _room(self, block: Ints, leaves: int) -> Floats:
        """Domains that `leaves` leaf switches are built for over those the cluster has under them, [R]; `block` [R] is
        which set of leaves a rank is under.

        A switch is cabled as a whole: where the cluster ends in the midst of one, those under it have all its uplinks.
        """
        ports = self.fabric.leaf_ports
        cluster = max(-(-self.cluster_gpus // self.gpus_per_domain), int(block.max()) * leaves * ports + 1)
        below = np.minimum(cluster - block * leaves * ports, leaves * ports)
        return np.asarray(-(-below // ports) * ports / below)

    @cached_property
    def uplink_capacity(self) -> Floats:
        """Bytes/s [Q] of each leaf's uplinks for the members under it."""
        if self.leaf is None:
            return np.zeros(0)
        stated = [(self._leaf_of(spec.leaf), spec.share) for spec in self.degraded if spec.leaf is not None]
        below = np.bincount(self.leaf, weights=self._room(self._block, 1)) * self._homes_a_rider
        return below * (self._even_nic_rate / self.oversubscription) * faults.labelled(self.leaf, stated)

    @cached_property
    def core_capacity(self) -> Floats:
        """Bytes/s [Q] of each pod's links to the core for the members under it."""
        if self.pod is None:
            return np.zeros(0)
        span = self.fabric.pod_leaves * self.fabric.leaf_ports * self.gpus_per_domain
        stated = [(self.pod[self.members.rank(s.pod * span)], s.share) for s in self.degraded if s.pod is not None]
        ratio = self.oversubscription * self.fabric.upper_oversubscription
        below = np.bincount(self.pod, weights=self._room(self._pod_label, self.fabric.pod_leaves))
        return below * (self._even_nic_rate / ratio) * faults.labelled(self.pod, stated)

    def _leaf_of(self, number: int) -> int:
        """The leaf of this group that a leaf of the cluster, counted rail by rail in each block, stands for."""
        rails = self._nics.share.shape[1] if self.fabric.kind == "rail-optimized" else 1
        block, rail = divmod(number, rails)
        first = block * self.fabric.leaf_ports * self.gpus_per_domain + -(-rail * self.gpus_per_domain // rails)
        return int(_renumber(self._leaf_label)[self.members.rank(first)])

    @cached_property
    def _homes_a_rider(self) -> Floats | float:
        """GPUs that each leaf [Q] was built for over those that send through it, since NICs that fail move some."""
        if not self.moves_nics or self.fabric.kind != "rail-optimized":
            return 1.0
        plan, blocks = self._nics, np.zeros((self.members.domains, 1), dtype=np.int64)
        blocks[self.domain, 0] = self._block
        home = np.arange(self.gpus_per_domain) * plan.share.shape[1] // self.gpus_per_domain
        here = np.unique(self._leaf_label)
        homes, riders = (
            np.bincount((blocks * self.gpus_per_domain + place).ravel())[here] for place in (home[None, :], plan.place)
        )
        return np.asarray(homes / riders, dtype=np.float64)

    @cached_property
    def scale_up_rate(self) -> float:
        """Bytes/s of the slowest rank's scale-up links in a plain transfer among the members of its domain.

        PCIe boxes fall short of the link; a full mesh has one link a peer.
        """
        return self.healthy_scale_up_rate * self.slowest_up_share

    @cached_property
    def healthy_scale_up_rate(self) -> float:
        """The same where no link is degraded."""
        if self.kind == "pcie":
            pair = self.ranks_per_domain <= 2
            return self.scale_up_bandwidth * self.law("common").assumed("pcie_pair" if pair else "pcie_many")
        if self.kind == "xgmi" and self.gpus_per_domain > 1:
            return self.scale_up_bandwidth * (self.ranks_per_domain - 1) / (self.gpus_per_domain - 1)
        return self.scale_up_bandwidth

    @cached_property
    def slows_scale_up(self) -> bool:
        """Whether a scale-up link is degraded."""
        return self.slowest_up_share < 1

    @cached_property
    def up_shares(self) -> Floats:
        """Share left of the scale-up links: [R] of a rank's port; on a mesh [R, R] of each pair's link; on a torus
        [N, chips, dimensions, 2] of the links that leave a chip."""
        if self.torus is not None:
            return faults.torus_shares(self.degraded, self.members, self.torus)
        if self.kind == "xgmi":
            return faults.mesh_shares(self.degraded, self.members)
        return faults.scale_up_shares(self.degraded, self.members)

    @cached_property
    def slowest_up_share(self) -> float:
        """Share left of the slowest scale-up link: what a ring through all members gets."""
        if self.ranks_per_domain == 1 or not self.degraded:
            return 1.0
        shares = self.up_shares
        if self.kind == "xgmi":
            shares = shares[self.domain[:, None] == self.domain[None, :]]
        return float(shares.min())

    @cached_property
    def own_up_rates(self) -> Floats:
        """Bytes/s [R] of all scale-up links of a rank together, as they are."""
        if self.torus is not None:
            lost = (1 - self.up_shares).mean(axis=(2, 3)).ravel()[: self.ranks]
        elif self.kind == "xgmi":
            peers = (self.domain[:, None] == self.domain[None, :]) & ~np.eye(self.ranks, dtype=np.bool_)
            lost = (1 - self.up_shares).sum(axis=1, where=peers) / (self.gpus_per_domain - 1)
        else:
            lost = 1 - self.up_shares
        return np.asarray(self.port_bandwidth * (1 - lost))

    @property
    def port_bandwidth(self) -> float:
        """Bytes/s of all scale-up links of a rank together, healthy."""
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


def _renumber(labels: Ints) -> Ints:
    """The same partition with labels 0, 1, ... in ascending order."""
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
