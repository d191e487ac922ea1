"""Links that a scenario writes by hand, and the routes over them.

V nodes, the cluster's GPUs first and by number, then switches; Q directed links. A message takes a route of fewest
links; equal ones share it evenly. GPUs pass nothing on, unless links join GPUs directly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from moesim.specs.links import DegradedSpec, LinkSpec, nodes

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_KEPT = 64
"""Equal routes between two places that are kept; of more, the first found."""
MOST_PLACES = 512
"""Different places in the network that GPUs can hang at: every pair of them has routes of its own."""


@dataclass(frozen=True)
class Wires:
    """Directed links: ends `source` and `target` [Q], bytes/s `healthy` and `left` [Q], `names` [V] of the nodes."""

    gpus: int
    names: tuple[str, ...]
    source: Ints
    target: Ints
    healthy: Floats
    left: Floats

    @property
    def link_names(self) -> list[str]:
        """What each link is called."""
        pairs = zip(self.source, self.target, strict=True)
        return [f"{self.names[here]} to {self.names[there]}" for here, there in pairs]

    def gpu_rates(self, capacity: Floats) -> Floats:
        """Bytes/s [gpus, 2] out of and into each GPU."""
        found = np.zeros((len(self.names), 2))
        np.add.at(found[:, 0], self.source, capacity)
        np.add.at(found[:, 1], self.target, capacity)
        return found[: self.gpus]


@dataclass(frozen=True)
class Route:
    """One way between two places: which of the places' own links it leaves and arrives by, -1 where it has no such, and
    the links between."""

    leaves: int
    between: tuple[int, ...]
    arrives: int


@lru_cache(maxsize=16)
def wires(links: tuple[LinkSpec, ...], degraded: tuple[DegradedSpec, ...], gpus: int) -> Wires:
    """The directed links of a cluster of `gpus`; GPUs beyond that are left out. Parallel links count as one."""
    capacity: dict[tuple[str, str], float] = {}
    for spec in links:
        for here, there in spec.pairs:
            for ends in [(here, there)] if spec.one_way else [(here, there), (there, here)]:
                capacity[ends] = capacity.get(ends, 0.0) + spec.bandwidth * spec.count
    switches = dict.fromkeys(name for ends in capacity for name in ends if not nodes(name).are_gpus)
    names = (*(f"gpu{number}" for number in range(gpus)), *switches)
    number = {name: place for place, name in enumerate(names)}
    known = {ends: size for ends, size in capacity.items() if ends[0] in number and ends[1] in number}
    source = np.array([number[here] for here, _ in known], dtype=np.int64)
    target = np.array([number[there] for _, there in known], dtype=np.int64)
    healthy = np.array(list(known.values()), dtype=np.float64)
    share = np.ones(len(known))
    for fault in degraded:
        for place in _broken(fault, source, target, number):
            share[place] = min(share[place], fault.share)
    return Wires(gpus, names, source, target, healthy, healthy * share)


def _broken(fault: DegradedSpec, source: Ints, target: Ints, number: dict[str, int]) -> Iterable[int]:
    """The links that a degraded one stands for."""
    if fault.link == "nic":
        return [int(place) for place in np.flatnonzero((source == fault.gpu) | (target == fault.gpu))]
    if fault.between is None:
        return []
    one, other = ({number[name] for name in nodes(text).names if name in number} for text in fault.between)
    pairs = enumerate(zip(source.tolist(), target.tolist(), strict=True))
    return [q for q, (a, b) in pairs if (a in one and b in other) or (a in other and b in one)]


@dataclass(frozen=True)
class Router:
    """Fewest-link routes over the links that still work. A place is where GPUs hang alike: at the same switches."""

    wires: Wires

    @cached_property
    def alive(self) -> Ints:
        """Links that have not failed."""
        return np.flatnonzero(self.wires.left > 0)

    @cached_property
    def direct(self) -> bool:
        """Whether links join GPUs to GPUs; then every GPU is a place of its own, and passes messages on."""
        gpus = self.wires.gpus
        return bool(((self.wires.source < gpus) & (self.wires.target < gpus)).any())

    @cached_property
    def own(self) -> tuple[list[list[int]], list[list[int]]]:
        """The links out of each GPU and into it, by the number of the switch."""
        found: tuple[list[list[int]], list[list[int]]] = (
            [[] for _ in range(self.wires.gpus)],
            [[] for _ in range(self.wires.gpus)],
        )
        for link in self.alive:
            here, there = int(self.wires.source[link]), int(self.wires.target[link])
            if here < self.wires.gpus:
                found[0][here].append(int(link))
            if there < self.wires.gpus:
                found[1][there].append(int(link))
        for out, into in zip(*found, strict=True):
            out.sort(key=lambda link: int(self.wires.target[link]))
            into.sort(key=lambda link: int(self.wires.source[link]))
        return found

    @cached_property
    def place(self) -> Ints:
        """Place [gpus] of each GPU."""
        if self.direct:
            return np.arange(self.wires.gpus)
        labels: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        found = []
        for out, into in zip(*self.own, strict=True):
            ends = tuple(int(self.wires.target[q]) for q in out), tuple(int(self.wires.source[q]) for q in into)
            found.append(labels.setdefault(ends, len(labels)))
        return np.array(found, dtype=np.int64)

    @cached_property
    def _sample(self) -> dict[int, int]:
        """One GPU of each place."""
        return {int(place): gpu for gpu, place in reversed(list(enumerate(self.place)))}

    @cached_property
    def _after(self) -> list[list[tuple[int, int]]]:
        """Next node and link from each node, for what passes messages on."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.wires.names]
        for link in self.alive:
            here, there = int(self.wires.source[link]), int(self.wires.target[link])
            if self.direct or min(here, there) >= self.wires.gpus:
                found[here].append((there, int(link)))
        return found

    @cached_property
    def memo(self) -> dict[tuple[object, ...], Floats]:
        """What was worked out once over these links."""
        return {}

    @cached_property
    def _routes(self) -> dict[tuple[int, int], list[Route]]:
        return {}

    @cached_property
    def _ways(self) -> dict[tuple[int, int], list[tuple[int, ...]]]:
        return {}

    @cached_property
    def _trees(self) -> dict[int, dict[int, list[tuple[int, int]]]]:
        return {}

    def routes(self, here: int, there: int) -> list[Route]:
        """All routes from a place to another, or to another GPU of the same; none where they are cut apart."""
        if (here, there) not in self._routes:
            found = self._direct_routes(here, there) if self.direct else self._switched(here, there)
            self._routes[here, there] = found
        return self._routes[here, there]

    def _direct_routes(self, here: int, there: int) -> list[Route]:
        return [Route(-1, way, -1) for way in self._shortest(here, there)] if here != there else []

    def _switched(self, here: int, there: int) -> list[Route]:
        out, into = self.own[0][self._sample[here]], self.own[1][self._sample[there]]
        found: list[Route] = []
        fewest = len(self.wires.names)
        for leaves, first in enumerate(out):
            for arrives, last in enumerate(into):
                ways = self._shortest(int(self.wires.target[first]), int(self.wires.source[last]))
                if not ways or len(ways[0]) > fewest:
                    continue
                found = found if len(ways[0]) == fewest else []
                fewest = len(ways[0])
                found += [Route(leaves, way, arrives) for way in ways]
        return found[:MOST_KEPT]

    def _shortest(self, start: int, stop: int) -> list[tuple[int, ...]]:
        """The links of each shortest way between two nodes."""
        if (start, stop) not in self._ways:
            if start not in self._trees:
                self._trees[start] = self._grow(start)
            tree = self._trees[start]
            found = islice(self._back(tree, start, stop), MOST_KEPT) if stop in tree else ()
            self._ways[start, stop] = list(found)
        return self._ways[start, stop]

    def _grow(self, start: int) -> dict[int, list[tuple[int, int]]]:
        """For each node that can be reached, the nodes and links before it on shortest ways."""
        before: dict[int, list[tuple[int, int]]] = {start: []}
        depth, queue = {start: 0}, deque([start])
        while queue:
            node = queue.popleft()
            for after, link in self._after[node]:
                if after not in depth:
                    depth[after] = depth[node] + 1
                    before[after] = []
                    queue.append(after)
                if depth[after] == depth[node] + 1:
                    before[after].append((node, link))
        return before

    def _back(self, tree: dict[int, list[tuple[int, int]]], start: int, stop: int) -> Iterator[tuple[int, ...]]:
        stack: list[tuple[int, tuple[int, ...]]] = [(stop, ())]
        while stack:
            node, way = stack.pop()
            if node == start:
                yield way
            stack.extend((before, (link, *way)) for before, link in tree[node])


@lru_cache(maxsize=16)
def router(links: tuple[LinkSpec, ...], degraded: tuple[DegradedSpec, ...], gpus: int) -> Router:
    """The router of a cluster; it keeps the routes that it has found."""
    return Router(wires(links, degraded, gpus))
