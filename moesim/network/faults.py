"""What slow and failed links leave of a group's network.

R ranks, N domains of the group, G GPUs of a domain, M NICs (or sets of NICs) of a domain. A degraded link is stated by
the cluster's GPU numbers; the group simulated stands for the one that holds it, so that GPU g is its rank
`g // stride mod R`. Faults of several groups are thereby put into one: the slowest that could be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError, UserError
from moesim.network.torus import Torus
from moesim.specs.links import DegradedKind, DegradedSpec, nodes

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Members:
    """Where the ranks of a group sit: `local` [R] is the place of a rank's GPU in its domain of `size` GPUs."""

    ranks: int
    stride: int
    size: int
    domain: Ints
    local: Ints

    def rank(self, gpu: int) -> int:
        """The rank that a GPU of the cluster stands for."""
        return gpu // self.stride % self.ranks

    @property
    def domains(self) -> int:
        """N."""
        return int(self.domain[-1]) + 1


@dataclass(frozen=True)
class NicPlan:
    """The NIC `place` [N, G] that each GPU of a domain sends through, and the `share` [N, M] left of each NIC."""

    place: Ints
    share: Floats


def of_kind(degraded: Iterable[DegradedSpec], kind: DegradedKind) -> Iterator[DegradedSpec]:
    """Those that degrade links of `kind`."""
    return (spec for spec in degraded if spec.link == kind)


def nic_plan(degraded: Iterable[DegradedSpec], members: Members, nics: int) -> NicPlan:
    """Every GPU sends through its own NIC, or, where that has failed, through the one of its domain with most to spare.

    Raises `InfeasibleError` where a domain has no NIC left.
    """
    home = np.arange(members.size) * nics // members.size
    place, share = np.tile(home, (members.domains, 1)), np.ones((members.domains, nics))
    for spec in of_kind(degraded, "nic"):
        rank = members.rank(spec.gpu or 0)
        own = members.domain[rank], home[members.local[rank]]
        share[own] = min(share[own], spec.share)
    for domain in np.flatnonzero((share == 0).any(axis=1)):
        _move_riders(place[domain], share[domain], int(domain))
    return NicPlan(place, share)


def _move_riders(place: Ints, share: Floats, domain: int) -> None:
    """Gives the GPUs of failed NICs others: the least loaded for its share, of those the nearest."""
    alive = np.flatnonzero(share > 0)
    if not len(alive):
        raise InfeasibleError(
            f"domain {domain} of the group has no NIC left (share 0 for all {len(share)}) and cannot reach the others;"
            " a share above 0 for one of them, or a group inside one domain, would relax it"
        )
    for gpu in np.flatnonzero(share[place] == 0):
        load = (np.bincount(place, minlength=len(share))[alive] + 1) / share[alive]
        place[gpu] = alive[np.lexsort((alive, np.abs(alive - place[gpu]), load))[0]]


def scale_up_shares(degraded: Iterable[DegradedSpec], members: Members) -> Floats:
    """Share [R] left of each rank's scale-up links."""
    share = np.ones(members.ranks)
    for spec in of_kind(degraded, "scale-up"):
        rank = members.rank(spec.gpu or 0)
        share[rank] = min(share[rank], spec.share)
    return share


def direct_pairs(degraded: Iterable[DegradedSpec], members: Members) -> Iterator[tuple[int, int, float]]:
    """Ranks a, b and the share left of the direct links between GPUs, both ways."""
    for spec in degraded:
        ends = [nodes(text) for text in spec.between or ()]
        if len(ends) != 2 or not all(end.are_gpus for end in ends):
            continue
        for here in range(ends[0].first or 0, (ends[0].last or 0) + 1):
            for there in range(ends[1].first or 0, (ends[1].last or 0) + 1):
                yield members.rank(here), members.rank(there), spec.share


def mesh_shares(degraded: tuple[DegradedSpec, ...], members: Members) -> Floats:
    """Share [R, R] left of the link between two ranks of a full mesh: a link is as wide as its narrower end."""
    own = scale_up_shares(degraded, members)
    share = np.minimum(own[:, None], own[None, :])
    for here, there, left in direct_pairs(degraded, members):
        share[here, there] = share[there, here] = min(share[here, there], left)
    return share


def torus_shares(degraded: tuple[DegradedSpec, ...], members: Members, torus: Torus) -> Floats:
    """Share [N, chips, dimensions, 2] left of the torus links that leave each chip, up and down each dimension.

    Raises `UserError` where `between` names two chips that are no neighbours.
    """
    per, near = torus.chips, torus.neighbours
    share: Floats = np.ones((members.domains, *near.shape))
    ends = np.ones(members.domains * per)
    ends[: members.ranks] = scale_up_shares(degraded, members)
    own: Floats = ends.reshape(members.domains, per)
    reached = np.where(near >= 0, own[:, near], 1.0)
    share = np.where(near >= 0, np.minimum(own[:, :, None, None], reached), share)
    for here, there, left in direct_pairs(degraded, members):
        domain, chip, other = here // per, here % per, there % per
        found = np.argwhere(near[chip] == other), np.argwhere(near[other] == chip)
        if there // per != domain or not len(found[0]):
            raise UserError(f"cluster.degraded: ranks {here} and {there} are no neighbours on the torus {torus.shape}")
        for place, ways in ((chip, found[0]), (other, found[1])):
            for axis, way in ways:
                share[domain, place, axis, way] = min(share[domain, place, axis, way], left)
    return share


def plane_factor(degraded: Iterable[DegradedSpec], planes: int) -> float:
    """Share of a NIC's rate that is left when its flows are split evenly over the planes that still work.

    Raises `InfeasibleError` where none does.
    """
    left = plane_shares(degraded, planes)
    alive = left[left > 0]
    if not len(alive):
        raise InfeasibleError(f"all {planes} planes of the fabric have failed; a share above 0 for one would relax it")
    return float(alive.min() * len(alive) / planes)


def plane_shares(degraded: Iterable[DegradedSpec], planes: int) -> Floats:
    """Share left of each plane."""
    left = np.ones(planes)
    for spec in of_kind(degraded, "plane"):
        if (spec.plane or 0) < planes:
            left[spec.plane or 0] = min(left[spec.plane or 0], spec.share)
    return left


def labelled(labels: Ints, degraded: Iterable[tuple[int, float]]) -> Floats:
    """Share [Q] left by label, from (label, share)."""
    share = np.ones(int(labels.max()) + 1)
    for label, left in degraded:
        share[label] = min(share[label], left)
    return share
