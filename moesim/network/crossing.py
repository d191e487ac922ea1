"""How a group crosses links written by hand: who carries for whom, and what other groups leave of shared links.

R ranks, Q links, A places where GPUs hang.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError
from moesim.network.handwritten import Route, Router

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seats:
    """Where a group's ranks sit: GPU [R] and domain [R], and whether the members of a domain can pass messages on to
    each other."""

    gpu: Ints
    domain: Ints
    hand_over: bool


@dataclass(frozen=True)
class Crossing:
    """Ranks that carry for others: `out` and `into` [R] for a rank whose own links have failed, else itself.

    Where no links lead from a rank to a place (networks of rails alone), `relays` by (rank, place) are the members of
    its domain whose links do; where it has no such, `takers` by (place, rank) are members of the receiver's domain.
    """

    out: Ints
    into: Ints
    relays: dict[tuple[int, int], tuple[int, ...]]
    takers: dict[tuple[int, int], tuple[int, ...]]


def crossing(router: Router, seats: Seats) -> Crossing:
    """Who carries for whom. Raises `InfeasibleError` where two ranks of different domains are cut apart."""
    out, into = (_carriers(links, way, seats) for links, way in zip(router.own, ("out of", "into"), strict=True))
    found = Crossing(out, into, {}, {})
    place = router.place[seats.gpu]
    for here, there in np.argwhere(_pairs(place[out], place[into], seats.domain) > 0):
        if not router.routes(int(here), int(there)):
            _relay(int(here), int(there), found, router, seats)
    return found


def _carriers(links: list[list[int]], way: str, seats: Seats) -> Ints:
    """Each rank itself, or, where it has no link left one `way`, the nearest member of its domain that carries for
    fewest."""
    found = np.arange(len(seats.gpu))
    for rank in found[[not links[gpu] for gpu in seats.gpu]]:
        near = [r for r in np.flatnonzero(seats.domain == seats.domain[rank]) if links[seats.gpu[r]]]
        if not near or not seats.hand_over:
            _cut_off(f"gpu{seats.gpu[rank]} has no link left that leads {way} it, and no neighbour to stand in")
        found[rank] = min(near, key=lambda r: (int((found == r).sum()), abs(int(r - rank)), int(r)))
    return found


def _relay(here: int, there: int, found: Crossing, router: Router, seats: Seats) -> None:
    """Finds who passes on what ranks at one place have for ranks at another."""
    place = router.place[seats.gpu]
    senders, receivers = (np.flatnonzero(place[side] == at) for side, at in ((found.out, here), (found.into, there)))
    for rank in senders:
        far = receivers[seats.domain[receivers] != seats.domain[rank]]
        if not len(far):
            continue
        peers = _nearest(int(rank), seats, lambda peer: router.routes(int(place[peer]), there))
        if peers:
            found.relays[int(found.out[rank]), there] = peers
            continue
        for other in far:
            takers = _nearest(int(other), seats, lambda peer: router.routes(here, int(place[peer])))
            if not takers:
                _cut_off(f"gpu{seats.gpu[rank]} has no way to gpu{seats.gpu[other]}")
            found.takers[here, int(found.into[other])] = takers


def _nearest(rank: int, seats: Seats, routes: Callable[[int], list[Route]]) -> tuple[int, ...]:
    """The members of a rank's domain with routes, of those the ones with the shortest; none where nothing is handed."""
    if not seats.hand_over:
        return ()
    ways = {int(peer): routes(int(peer)) for peer in np.flatnonzero(seats.domain == seats.domain[rank])}
    lengths = {peer: len(found[0].between) for peer, found in ways.items() if found}
    return tuple(peer for peer, length in lengths.items() if length == min(lengths.values()))


def _cut_off(what: str) -> None:
    raise InfeasibleError(
        f"{what} over the hand-written links; one more link, a share above 0 for a failed one, or a group without it"
        " would relax it"
    )


def _pairs(out: Ints, into: Ints, domain: Ints) -> Floats:
    """How many pairs of ranks of different domains have their ends at two places, [A, A]."""
    count = int(max(out.max(), into.max())) + 1
    by_domain = np.zeros((2, int(domain.max()) + 1, count))
    for table, place in zip(by_domain, (out, into), strict=True):
        np.add.at(table, (domain, place), 1.0)
    return np.asarray(np.outer(*by_domain.sum(axis=1)) - by_domain[0].T @ by_domain[1])


def uniform_load(router: Router, seats: Seats) -> Floats:
    """Messages [Q] on each link between places while every rank sends one to each rank of another domain."""
    place = router.place[seats.gpu]
    return _load(router, _pairs(place, place, seats.domain))


def _load(router: Router, pairs: Floats) -> Floats:
    load = np.zeros(len(router.wires.left))
    for here, there in np.argwhere(pairs > 0):
        found = router.routes(int(here), int(there))
        for route in found:
            load[list(route.between)] += pairs[here, there] / len(found)
    return load


@dataclass(frozen=True)
class Neighbours:
    """The groups of a kind that fill a cluster: `ranks` each of every `stride`-th GPU, domains of `size` GPUs."""

    gpus: int
    ranks: int
    stride: int
    size: int

    @property
    def span(self) -> int:
        """GPUs from the first of a block of groups, one for each step of the stride, to the first of the next."""
        return self.ranks * self.stride

    def seats(self, first: int) -> Seats:
        """Where the group that begins at a GPU sits, as far as the cluster goes."""
        gpu = np.arange(first, min(first + self.span, self.gpus), self.stride)
        return Seats(gpu, (gpu - gpu[0]) // self.size if self.size > 1 else np.arange(len(gpu)), True)

    def firsts(self) -> Iterator[int]:
        """The first GPU of each."""
        for block in range(0, self.gpus, self.span):
            yield from range(block, min(block + self.stride, self.gpus))

    def holding(self, gpu: int) -> int:
        """The first GPU of the whole group that holds a GPU, or of the last that is whole."""
        blocks = max(1, self.gpus // self.span)
        return min(gpu // self.span, blocks - 1) * self.span + gpu % self.stride


def group_shares(router: Router, groups: Neighbours, first: int) -> Floats:
    """Share [Q] of each link that is the group's own, while all groups of its kind load the network alike."""
    key = ("shares", groups, first)
    if key not in router.memo:
        ours, everyone = np.zeros((1, 1)), np.zeros((1, 1))
        for begin in groups.firsts():
            seats = groups.seats(begin)
            place = router.place[seats.gpu]
            pairs = _pairs(place, place, seats.domain)
            ours = _sum(ours, pairs) if begin == first else ours
            everyone = _sum(everyone, pairs)
        mine, whole = _load(router, ours), _load(router, everyone)
        router.memo[key] = np.divide(mine, whole, out=np.ones(len(mine)), where=mine > 0)
    return router.memo[key]


def _sum(one: Floats, other: Floats) -> Floats:
    size = max(len(one), len(other))
    found = np.zeros((size, size))
    found[: len(one), : len(one)] += one
    found[: len(other), : len(other)] += other
    return found


def worst_first(router: Router, groups: Neighbours, broken: Ints, most: int = 64) -> int:
    """The first GPU of the group, of the first `most`, that loads the broken links most."""
    whole = [first for first in groups.firsts() if first + groups.span - groups.stride < groups.gpus][:most]
    return max(whole or [0], key=lambda first: (float(uniform_load(router, groups.seats(first))[broken].sum()), -first))
