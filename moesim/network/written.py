"""The tier of links written by hand: the ways of flows over their routes.

R ranks, A places where members hang, P routes between places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.network.crossing import group_shares
from moesim.network.handwritten import Route
from moesim.network.tiers import Piece, entries
from moesim.network.topology import GroupNetwork

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]

MOST_ROUTES = 16
"""Equal routes that one pair of ranks shares its flow over, each pair beginning at another."""
MOST_FLOWS = 1 << 20
"""A large group takes fewer, so that its flows fit in memory."""


@dataclass(frozen=True)
class _Table:
    """Routes by pair of places: `count` and `first` [A * A] into the routes; a route's own links by their number, and
    the links between as `links[begin:begin + length]`."""

    count: Ints
    first: Ints
    leaves: Ints
    arrives: Ints
    begin: Ints
    length: Ints
    links: Ints


@dataclass(frozen=True)
class Written:
    """Hand-written links that have not failed."""

    group: GroupNetwork
    start: int

    @cached_property
    def names(self) -> list[str]:
        """By their ends."""
        router = self.group.router
        names = router.wires.link_names
        return [names[link] for link in router.alive]

    @cached_property
    def capacity(self) -> Floats:
        """What other groups of the same kind leave."""
        router = self.group.router
        share = group_shares(router, self.group.neighbours, self.group.first_gpu)
        return np.asarray((router.wires.left * share)[router.alive])

    @cached_property
    def _number(self) -> Numbers:
        router = self.group.router
        number = np.full(len(router.wires.left), -1, dtype=np.int32)
        number[router.alive] = np.arange(self.start, self.start + len(router.alive))
        return number

    @cached_property
    def _own(self) -> tuple[Numbers, Numbers]:
        """The links [R, most] out of and into each rank's GPU."""
        found = []
        for links in self.group.router.own:
            most = max(1, *(len(links[gpu]) for gpu in self.group.gpu))
            table = np.full((self.group.ranks, most), -1, dtype=np.int32)
            for rank, gpu in enumerate(self.group.gpu):
                table[rank, : len(links[gpu])] = self._number[links[gpu]]
            found.append(table)
        return found[0], found[1]

    @cached_property
    def _place(self) -> Ints:
        """Place [R] of each rank, numbered within the group."""
        return np.unique(self.group.router.place[self.group.gpu], return_inverse=True)[1].astype(np.int64)

    @cached_property
    def _table(self) -> _Table:
        router, places = self.group.router, np.unique(self.group.router.place[self.group.gpu])
        found: list[Route] = []
        count = []
        for here in places:
            for there in places:
                routes = router.routes(int(here), int(there))
                count.append(len(routes))
                found += routes
        length = np.array([len(route.between) for route in found], dtype=np.int64)
        return _Table(
            count=np.array(count, dtype=np.int64),
            first=np.cumsum([0, *count[:-1]]),
            leaves=np.array([route.leaves for route in found], dtype=np.int64),
            arrives=np.array([route.arrives for route in found], dtype=np.int64),
            begin=np.cumsum(length) - length,
            length=length,
            links=np.array([link for route in found for link in route.between], dtype=np.int64),
        )

    def pieces(self, traffic: Floats) -> Iterator[Piece]:
        """The flows of `traffic`, each split evenly over its routes."""
        yield from self.routed(*entries(traffic))

    def routed(self, source: Numbers, target: Numbers, size: Floats) -> Iterator[Piece]:
        """The same of flows [F] named one by one."""
        crossing = self.group.crossing
        legs = _Legs(np.arange(len(size)), crossing.out[source], crossing.into[target], size)
        legs = self._relayed(legs)
        legs, route = self._routed(legs)
        table = self._table
        for length in np.unique(table.length[route]):
            chosen = np.flatnonzero(table.length[route] == length)
            way = list(self._columns(route[chosen], int(length), legs.here[chosen], legs.there[chosen]))
            of = legs.of[chosen]
            yield Piece(source[of], target[of], legs.size[chosen], way)

    def _relayed(self, legs: _Legs) -> _Legs:
        """Splits what no links lead to over those who pass it on."""
        places = int(self._place.max()) + 1
        lost = np.flatnonzero(self._table.count[self._place[legs.here] * places + self._place[legs.there]] == 0)
        if not len(lost):
            return legs
        place, crossing = self.group.router.place[self.group.gpu], self.group.crossing
        ends: list[list[tuple[int, int]]] = []
        for here, there in zip(legs.here[lost].tolist(), legs.there[lost].tolist(), strict=True):
            relays = crossing.relays.get((here, int(place[there])))
            takers = crossing.takers.get((int(place[here]), there), ()) if relays is None else ()
            ends.append([(relay, there) for relay in relays or ()] + [(here, taker) for taker in takers])
        number = np.ones(len(legs.of), dtype=np.int64)
        number[lost] = [len(each) for each in ends]
        split = legs.split(number)
        changed = np.repeat(np.isin(np.arange(len(number)), lost), number)
        pairs = np.array([pair for each in ends for pair in each], dtype=np.int64)
        here, there = split.here.copy(), split.there.copy()
        here[changed], there[changed] = pairs.T
        return _Legs(split.of, here, there, split.size)

    def _routed(self, legs: _Legs) -> tuple[_Legs, Ints]:
        """Splits flows over routes; which route each takes. Pairs begin at different ones, so that all are used."""
        places = int(self._place.max()) + 1
        limit = max(1, min(MOST_ROUTES, MOST_FLOWS // self.group.ranks**2))
        pair = self._place[legs.here] * places + self._place[legs.there]
        count = self._table.count[pair]
        kept = np.minimum(count, limit)
        split, chosen = legs.split(kept), np.repeat(np.arange(len(kept)), kept)
        turn = np.arange(len(chosen)) - np.repeat(np.cumsum(kept) - kept, kept)
        step = (split.here + split.there + turn * count[chosen] // kept[chosen]) % count[chosen]
        return split, self._table.first[pair[chosen]] + step

    def _columns(self, route: Ints, length: int, here: Ints, there: Ints) -> Iterator[Numbers]:
        table, (out, into) = self._table, self._own
        if not self.group.router.direct:
            yield out[here, table.leaves[route]]
        for hop in range(length):
            yield self._number[table.links[table.begin[route] + hop]]
        if not self.group.router.direct:
            yield into[there, table.arrives[route]]


@dataclass(frozen=True)
class _Legs:
    """Parts of flows: the flow that each is `of`, the ranks whose links it takes, its size."""

    of: Ints
    here: Ints
    there: Ints
    size: Floats

    def split(self, number: Ints) -> _Legs:
        """Each in so many equal parts."""
        of, here, there = (np.repeat(one, number) for one in (self.of, self.here, self.there))
        return _Legs(of, here, there, np.repeat(self.size / number, number))
