"""What slow and failed links leave of a group's network.

R ranks, N domains of the group, G GPUs of a domain, M NICs (or sets of NICs) of a domain. A degraded link is stated by
the cluster's GPU numbers; the group simulated stands for the one that holds it, so that GPU g is its rank
`g // stride mod R`; on a torus, whose groups are boxes of neighbouring chips, it is the chip at g's place in its box.
Faults of several groups are thereby put into one: the slowest that could be. Links between GPUs of two groups carry
nothing of either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError
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

    def together(self, here: int, there: int) -> bool:
        """Whether one group has both GPUs."""
        span = self.stride * self.ranks
        return here // span == there // span and (here - there) % self.stride == 0

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


def direct_pairs(degraded: Iterable[DegradedSpec]) -> Iterator[tuple[int, int, float]]:
    """GPUs a, b of the cluster and the share left of the direct link between them, both ways."""
    for spec in degraded:
        ends = [nodes(text) for text in spec.between or ()]
        if len(ends) != 2 or not all(end.are_gpus for end in ends):
            continue
        for here in range(ends[0].first or 0, (ends[0].last or 0) + 1):
            for there in range(ends[1].first or 0, (ends[1].last or 0) + 1):
                yield here, there, spec.share


def mesh_shares(degraded: tuple[DegradedSpec, ...], members: Members) -> Floats:
    """Share [R, R] left of the link between two ranks of a full mesh: a link is as wide as its narrower end."""
    own = scale_up_shares(degraded, members)
    share = np.minimum(own[:, None], own[None, :])
    for one, other, left in direct_pairs(degraded):
        if members.together(one, other):
            here, there = members.rank(one), members.rank(other)
            share[here, there] = share[there, here] = min(share[here, there], left)
    return share


def torus_shares(degraded: tuple[DegradedSpec, ...], members: Members, torus: Torus) -> Floats:
    """Share [N, chips, dimensions, 2] left of the torus links that leave each chip, up and down each dimension."""
    near = torus.neighbours
    own: Floats = np.ones((members.domains, torus.chips))
    for spec in of_kind(degraded, "scale-up"):
        domain, _, chip = _seat(spec.gpu or 0, members, torus)
        own[domain, chip] = min(own[domain, chip], spec.share)
    share: Floats = np.where(near >= 0, np.minimum(own[:, :, None, None], own[:, near]), 1.0)
    for one, two, left in direct_pairs(degraded):
        (domain, box, chip), (_, other_box, other) = (_seat(gpu, members, torus) for gpu in (one, two))
        if box != other_box:
            continue
        for here, there in ((chip, other), (other, chip)):
            for axis, way in np.argwhere(near[here] == there):
                share[domain, here, axis, way] = min(share[domain, here, axis, way], left)
    return share


def _seat(gpu: int, members: Members, torus: Torus) -> tuple[int, tuple[int, ...], int]:
    """The domain of the group that a GPU of the cluster stands for, the box of the machines that has it, its chip."""
    machine, place = divmod(gpu, members.size)
    box, chip = torus.seat(place)
    return machine % members.domains, (machine, *box), chip


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
