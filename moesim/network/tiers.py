"""The links of each tier of a group, and the ways of flows over them.

R ranks, Q links, F flows. A tier numbers its own links from `start` on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.network import faults
from moesim.network.topology import GroupNetwork
from moesim.network.torus import ways

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class Links:
    """Directed links: `capacity` [Q] in bytes/s, the group's share of what it shares with others of its kind, less what
    is degraded; `names` [Q] such as "gpu3 nic out", by the GPUs of the first group; `scale_out` [Q] by tier."""

    capacity: Floats
    names: tuple[str, ...]
    scale_out: NDArray[np.bool_]


@dataclass(frozen=True)
class Piece:
    """Flows whose ways are equally long: `columns` holds the first link [F] of each flow, the second, ..."""

    source: Numbers
    target: Numbers
    size: Floats
    columns: Sequence[Numbers]


class Tier(Protocol):
    """One tier's links and ways."""

    @property
    def names(self) -> list[str]:
        """The names of its links."""

    @property
    def capacity(self) -> Floats:
        """Their bytes/s."""

    def pieces(self, traffic: Floats) -> Iterator[Piece]:
        """The flows of `traffic` [R, R]."""


@dataclass(frozen=True)
class Ports:
    """A domain whose switch never binds: a port out of each rank, and one in."""

    group: GroupNetwork
    start: int

    @cached_property
    def names(self) -> list[str]:
        """Outgoing ports, then incoming ones."""
        return [f"gpu{gpu} scale-up {way}" for way in ("out", "in") for gpu in self.group.gpu]

    @cached_property
    def capacity(self) -> Floats:
        """What a PCIe box falls short of its links counts here."""
        return np.tile(self.group.healthy_scale_up_rate * self.group.up_shares, 2)

    def pieces(self, traffic: Floats) -> Iterator[Piece]:
        """Out of one port and in at the other."""
        source, target, size = entries(traffic)
        yield Piece(source, target, size, (source + self.start, target + self.start + self.group.ranks))


@dataclass(frozen=True)
class Mesh:
    """A domain with a link between every two of its ranks."""

    group: GroupNetwork
    start: int

    @cached_property
    def _linked(self) -> NDArray[np.bool_]:
        domain = self.group.domain
        return np.asarray((domain[:, None] == domain[None, :]) & ~np.eye(len(domain), dtype=np.bool_))

    @cached_property
    def names(self) -> list[str]:
        """One a direction."""
        gpu = self.group.gpu
        return [f"gpu{gpu[here]} to gpu{gpu[there]}" for here, there in np.argwhere(self._linked)]

    @cached_property
    def capacity(self) -> Floats:
        """An equal part of a GPU's bandwidth for each peer that the domain has."""
        each = self.group.scale_up_bandwidth / (self.group.gpus_per_domain - 1)
        return np.asarray(each * self.group.up_shares[self._linked])

    @cached_property
    def _number(self) -> Numbers:
        number = np.full(self._linked.shape, -1, dtype=np.int32)
        number[self._linked] = np.arange(self.start, self.start + int(self._linked.sum()))
        return number

    def pieces(self, traffic: Floats) -> Iterator[Piece]:
        """The one link between the two."""
        source, target, size = entries(traffic)
        yield Piece(source, target, size, (self._number[source, target],))


@dataclass(frozen=True)
class TorusLinks:
    """The links of a domain's torus, also of chips beyond the last rank: messages pass them."""

    group: GroupNetwork
    start: int

    @cached_property
    def _chips(self) -> int:
        return self.group.torus.chips if self.group.torus else 0

    @cached_property
    def _exists(self) -> NDArray[np.bool_]:
        """[N, chips, dimensions, 2]."""
        if self.group.torus is None:
            return np.zeros((0, 0, 0, 0), dtype=np.bool_)
        near = self.group.torus.neighbours
        return np.broadcast_to(near >= 0, (self.group.domains, *near.shape))

    @cached_property
    def names(self) -> list[str]:
        """By chip, dimension, and up or down it."""
        places = np.argwhere(self._exists)
        return [f"gpu{domain * self._chips + chip} {'xyz'[axis]}{'+-'[way]}" for domain, chip, axis, way in places]

    @cached_property
    def capacity(self) -> Floats:
        """Of one link each."""
        return np.asarray(self.group.scale_up_bandwidth * self.group.up_shares[self._exists])

    @cached_property
    def _number(self) -> Numbers:
        number = np.full(self._exists.shape, -1, dtype=np.int32)
        number[self._exists] = np.arange(self.start, self.start + int(self._exists.sum()))
        return number.reshape(self.group.domains, -1)

    def pieces(self, traffic: Floats) -> Iterator[Piece]:
        """One flow for each of the equal ways round."""
        if self.group.torus is None:
            return
        size = self._chips
        for domain, number in enumerate(self._number):
            first, stop = domain * size, min(domain * size + size, self.group.ranks)
            block = np.zeros((size, size))
            block[: stop - first, : stop - first] = traffic[first:stop, first:stop]
            for way in ways(block, self.group.torus):
                passed = number[way.links].T
                source, target = (place.astype(np.int32) + np.int32(first) for place in (way.source, way.target))
                yield Piece(source, target, block[way.source, way.target] * way.share, tuple(passed))


@dataclass(frozen=True)
class Fabric:
    """NICs, and the switches of a tree where they can bind, on each plane that works."""

    group: GroupNetwork
    start: int

    @cached_property
    def _planes(self) -> Floats:
        """Share left of each plane that works."""
        left = faults.plane_shares(self.group.degraded, self.group.planes)
        return np.asarray(left[self._working])

    @cached_property
    def _working(self) -> Ints:
        return np.flatnonzero(faults.plane_shares(self.group.degraded, self.group.planes))

    @cached_property
    def _stages(self) -> list[tuple[str, Ints, Floats]]:
        """From the rank up: what a link is called, whose [R] it is, and its capacity [Q] over all planes."""
        group = self.group
        found = [("nic", group.nic, group.nic_capacity)]
        if group.leaf is not None:
            found.append(("leaf", group.leaf, group.uplink_capacity))
        if group.pod is not None:
            found.append(("pod", group.pod, group.core_capacity))
        return found

    @cached_property
    def names(self) -> list[str]:
        """By plane, stage, direction and number."""
        marks = [f" plane {plane}" if self.group.planes > 1 else "" for plane in self._working]
        called = [(stage, _called(stage, owner, self.group.gpu)) for stage, owner, _ in self._stages]
        return [
            f"{name}{mark} {way}"
            for mark in marks
            for stage, names in called
            for way in (("out", "in") if stage == "nic" else ("up", "down"))
            for name in names
        ]

    @cached_property
    def capacity(self) -> Floats:
        """In the order of the names."""
        whole = np.concatenate([np.tile(capacity, 2) for _, _, capacity in self._stages])
        each = whole / (self.group.planes * self.group.plane_factor)
        return np.concatenate([each * share for share in self._planes])

    def pieces(self, traffic: Floats) -> Iterator[Piece]:
        """Through a NIC, up as far as the way needs to, down and through a NIC; split evenly over planes."""
        yield from self.routed(*entries(traffic))

    def routed(self, source: Numbers, target: Numbers, size: Floats) -> Iterator[Piece]:
        """The same of flows [F] named one by one."""
        size = size / len(self._planes)
        for stages, chosen in self._heights(source, target):
            here, there, moved = source[chosen], target[chosen], size[chosen]
            for plane in range(len(self._planes)):
                yield Piece(here, there, moved, list(self._way(stages, plane, here, there)))

    def _heights(self, source: Numbers, target: Numbers) -> Iterator[tuple[list[int], NDArray[np.bool_] | slice]]:
        """The stages that flows climb, and which flows do."""
        if len(self._stages) == 1:
            yield [0], slice(None)
            return
        height = np.zeros(len(source), dtype=np.int8)
        for number, (stage, _, _) in enumerate(self._stages[1:]):
            place = self.group.leaf_place if stage == "leaf" else self.group.pod_place
            height |= (place[source] != place[target]).astype(np.int8) << number
        for code in range(1 << (len(self._stages) - 1)):
            chosen = height == code
            if chosen.any():
                yield [0, *(number + 1 for number in range(len(self._stages) - 1) if code >> number & 1)], chosen

    def _way(self, stages: list[int], plane: int, here: Numbers, there: Numbers) -> Iterator[Numbers]:
        widths = [len(capacity) for _, _, capacity in self._stages]
        base = self.start + plane * 2 * sum(widths)
        firsts = [base + 2 * sum(widths[:stage]) for stage in range(len(widths))]
        for stage in stages:
            yield (self._stages[stage][1] + firsts[stage]).astype(np.int32)[here]
        for stage in reversed(stages):
            yield (self._stages[stage][1] + firsts[stage] + widths[stage]).astype(np.int32)[there]


def entries(traffic: Floats) -> tuple[Numbers, Numbers, Floats]:
    """Row, column and value [F] of the nonzero entries of `traffic` [R, R], row by row."""
    flat = np.ascontiguousarray(traffic, dtype=np.float64).ravel()
    at = np.flatnonzero(flat)
    row = (at // traffic.shape[1]).astype(np.int32)
    return row, (at - row.astype(np.int64) * traffic.shape[1]).astype(np.int32), flat[at]


def _called(stage: str, owner: Ints, gpu: Ints) -> list[str]:
    """The names [Q] of a stage's things: NICs by the GPUs that send through them, switches by number."""
    count = int(owner.max()) + 1
    if stage != "nic":
        return [f"{stage}{number}" for number in range(count)]
    users: list[list[str]] = [[] for _ in range(count)]
    for number, user in zip(owner, gpu, strict=True):
        users[number].append(str(user))
    return [f"gpu{'+'.join(each)} nic" for each in users]
