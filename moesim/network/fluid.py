"""Flows that share links max-min fairly, from their begins to their ends.

F flows, A of them under way, Q links; R ranks; `...` is a batch. The links of flow f are links[first[f]:first[f + 1]].
Bytes and bytes/s may be any unit of size and that unit a second.

Rates change whenever a flow ends. Few flows end one by one; many in rounds, in each of which the share `resolution` of
the flows under way ends. In a round the bytes that each flow sends are max-min fair, among flows that want no more than
they have left, and a flow that ends in it ends when its links have carried what they owe up to then, which on a single
link is exact. What is lost is the order among links within a round. No link carries more than its capacity in a
round, and every one carries what it is asked to, so that no answer is below the busiest port's.
"""

from __future__ import annotations

import importlib
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError, UserError
from moesim.network.links import flows, links
from moesim.network.portload import PortLoads, Traffic
from moesim.network.topology import GroupNetwork

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]
Flags = NDArray[np.bool_]

# default share of the flows under way that ends in a round: all-to-alls of 40-128 ranks end within 0.2 % of the exact
# total, and a rank's last flow within 2.5 % of it (the tests hold both)
RESOLUTION = 0.3
# flows of which fewer end one by one: of a whole set, and of what is left of a larger one
EXACT_FLOWS, EXACT_REST = 4096, 128
# how long a round lasts is judged by so many flows
SAMPLE = 4096
# flows that have ended are left out when no more than this share is under way
CROWD = 0.7
# a round lasts at least this share of the time since the clock's zero, lest the clock stand still
LEAST_STEP = 1e-12
_NOBODY: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Drained:
    """When each flow ended [F] and the last of them, in seconds; bytes carried by each link [Q]; fillings of rates."""

    end: Floats
    seconds: float
    carried: Floats
    rounds: int


@cache
def kernels() -> Any:
    """The compiled road, which takes half a second to import; its numpy twin where there is no compiler."""
    try:
        return importlib.import_module("moesim.network._fluid_kernels")
    except ImportError:
        return importlib.import_module("moesim.network.fluid_twin")


def rates(capacity: Floats, first: Ints, links: Numbers, active: Flags | None = None) -> Floats:
    """Max-min fair bytes/s [F] of the active flows, 0 for the others; without bound for flows that pass no link."""
    wanted = np.ones(first.size - 1, np.bool_) if active is None else active
    somewhere = np.diff(first) > 0
    found = np.where(wanted & ~somewhere, np.inf, 0.0)
    chosen = np.flatnonzero(wanted & somewhere)
    if not chosen.size:
        return found
    net = _net(capacity, first, links, chosen)
    _check(capacity, net.links)
    found[chosen] = kernels().fill(net, _live(net, np.zeros(chosen.size)), np.full(chosen.size, np.inf), 1.0)[0]
    return found


def drain(
    capacity: Floats,
    first: Ints,
    links: Numbers,
    size: Floats,
    begin: Floats | None = None,
    resolution: float = RESOLUTION,
) -> Drained:
    """All flows of `size` bytes from their `begin` (0 unless given) to their ends.

    Up to 4,096 flows, and with `resolution` 0 any number, end one by one. Many begins are gathered to 2 / `resolution`
    times, each flow at the next of them. Raises `InfeasibleError` where a flow passes a link without capacity.
    """
    fluid = Fluid(capacity, resolution, EXACT_FLOWS)
    fluid.add(first, links, size, begin)
    fluid.advance()
    return Drained(fluid.end, float(fluid.end.max(initial=0.0)), fluid.carried, fluid.rounds)


def max_min(traffic: Traffic, group: GroupNetwork) -> PortLoads:
    """Seconds for each byte of payload until a rank's last flow to others, and the last to it, has ended, by tier."""
    batch = np.broadcast_shapes(traffic.up.shape, traffic.out.shape)
    loads = np.zeros((4, *batch[:-1]))
    capacity = links(group).capacity
    for place in np.ndindex(batch[:-2]):
        moved = flows(traffic.up[place], traffic.out[place], group)
        fluid = Fluid(capacity, RESOLUTION, 0)
        fluid.add(moved.first, moved.links, moved.size)
        fluid.advance()
        for tier, chosen in enumerate((~moved.scale_out, moved.scale_out)):
            for side, rank in enumerate((moved.source, moved.target)):
                np.maximum.at(loads[(2 * tier + side, *place)], rank[chosen], fluid.end[chosen])
    return PortLoads(*loads)


class Fluid:
    """Links, and the flows under way on them up to `now`.

    `end` [F] of all flows that were added, NaN while a flow has not ended; `carried` [Q] bytes and `rounds` so far.
    As many flows as `exact`, or fewer, end one by one.
    """

    def __init__(self, capacity: Floats, resolution: float = RESOLUTION, exact: float = EXACT_FLOWS) -> None:
        if not 0.0 <= resolution <= 1.0:
            raise UserError(f"resolution: a share of the flows, from 0 (exact) to 1; got {resolution}")
        self.capacity, self.resolution = np.asarray(capacity, np.float64), resolution
        self.exact = max(exact, EXACT_REST) if resolution > 0 else np.inf
        self.now, self.rounds = 0.0, 0
        self.carried = np.zeros(self.capacity.size)
        self.end = np.zeros(0)
        self._first, self._links, self._left = np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0)
        self._begin, self._waiting = np.zeros(0), _NOBODY
        self._set_off(_NOBODY)

    @property
    def living(self) -> int:
        """How many flows have yet to end."""
        return self._under_way + self._waiting.size

    def add(self, first: Ints, links: Numbers, size: Floats, begin: Floats | None = None) -> slice:
        """More flows, from now on unless they begin later; their place among all that were added."""
        if not np.all(np.isfinite(size) & (size >= 0)):
            raise UserError("size: bytes of a flow are finite and not negative")
        if begin is not None and not np.all(np.isfinite(begin)):
            raise UserError("begin: seconds of a flow are finite")
        _check(self.capacity, links)
        place = slice(self.end.size, self.end.size + size.size)
        begins = np.broadcast_to(self.now, size.size) if begin is None else np.maximum(begin, self.now)
        nothing = (size == 0) | (np.diff(first) == 0)
        waiting = np.concatenate([self._waiting, np.flatnonzero(~nothing) + place.start])
        self.end = _joined(self.end, np.where(nothing, begins, np.nan))
        self._first = _joined(self._first, first[1:] + self._first[-1]) if place.start else first
        self._links, self._left = _joined(self._links, links), np.concatenate([self._left, size])
        self._begin = _joined(self._begin, begins)
        if begin is not None or self._waiting.size:
            waiting = waiting[np.argsort(self._begin[waiting], kind="stable")]
        self._waiting = waiting
        self._most = self.living
        self._batch = max(1, int(0.5 * self.resolution * self._waiting.size))
        return place

    def advance(self, until: float = np.inf) -> None:
        """Moves on to the time `until`, or without one to the last end."""
        while self.living and self.now < until:
            cut = min(until, self._arrive())
            if not self._under_way:
                self.now = cut
            elif self._one_by_one:
                self._events(cut)
            else:
                self._round(cut)
            self._let_go()
        self._keep()
        if until < np.inf:
            self.now = max(self.now, until)

    def copy(self) -> Fluid:
        """The same flows, to be followed from here without moving these."""
        other = copy(self)
        other.carried, other.end, other._left = self.carried.copy(), self.end.copy(), self._left.copy()
        other._live, other._sent = type(self._live)(*(part.copy() for part in self._live)), self._sent.copy()
        return other

    @property
    def _one_by_one(self) -> bool:
        return self._most <= self.exact or self.living <= EXACT_REST

    def _arrive(self) -> float:
        """Lets those begin whose time has come; returns when the next do."""
        due = int(np.searchsorted(self._begin[self._waiting], self.now, side="right"))
        if due:
            self._set_off(np.sort(np.concatenate([self._keep(), self._waiting[:due]]), kind="stable"))
            self._waiting = self._waiting[due:].copy()
        if not self._waiting.size:
            return np.inf
        gather = self._under_way > 0 and not self._one_by_one
        return float(self._begin[self._waiting[min(self._batch, self._waiting.size) - 1 if gather else 0]])

    def _set_off(self, chosen: Ints) -> None:
        """From now on these flows are under way."""
        self._chosen, self._under_way = chosen, chosen.size
        self._net = _net(self.capacity, self._first, self._links, chosen)
        self._live = _live(self._net, self._left[chosen])
        self._sent, self._seconds = np.zeros(chosen.size), 0.0

    def _keep(self) -> Ints:
        """Writes down ends and what is left; returns the flows that have not ended."""
        ended = self._live.ended
        self._left[self._chosen] = self._live.left
        self.end[self._chosen[ended]] = self._live.end[ended]
        return np.asarray(self._chosen[~ended])

    def _let_go(self) -> None:
        """Leaves out the flows that have ended, once they are many."""
        if self._under_way <= CROWD * self._live.left.size:
            sent, seconds = self._sent[~self._live.ended], self._seconds
            self._set_off(self._keep())
            self._sent, self._seconds = sent, seconds

    def _events(self, cut: float) -> None:
        """Ends flows one by one, until the cut or until many have ended."""
        self.now, self._under_way, happened = kernels().events(self._net, self._live, self.now, cut, self.carried)
        self.rounds += happened
        self._seconds = 0.0

    def _round(self, cut: float) -> None:
        """Lets a share of the flows under way end, or fewer up to the cut."""
        end = min(cut, self.now + self._step())
        self._under_way, self._sent = kernels().one_round(self._net, self._live, self.now, end, self.carried)
        self._seconds, self.now = end - self.now, end
        self.rounds += 1

    def _step(self) -> float:
        """Seconds in which that share would end at the rates of the round before."""
        if not self._seconds:
            unlimited = np.full(self._live.left.size, np.inf)
            self._sent, self._seconds = kernels().fill(self._net, self._live, unlimited, 1.0)[0], 1.0
        some = np.arange(0, self._sent.size, max(1, self._under_way // SAMPLE))
        some = some[~self._live.ended[some]]
        if not some.size:
            some = np.flatnonzero(~self._live.ended)
        step = np.quantile(self._live.left[some] * self._seconds / self._sent[some], self.resolution)
        return max(float(step), LEAST_STEP * self.now)


def _net(capacity: Floats, first: Ints, links: Numbers, chosen: Ints) -> Any:
    """The chosen flows on their links, both ways round."""
    if chosen.size < first.size - 1:
        first, links = kernels().gather(first, links, chosen)
    start, members = kernels().by_link(first, links, capacity.size)
    return kernels().Net(capacity, first, links, start, members, np.flatnonzero(np.diff(start)))


def _live(net: Any, left: Floats) -> Any:
    return kernels().Live(left, np.zeros(left.size, np.bool_), np.full(left.size, np.nan), np.diff(net.start))


def _joined(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([before, after]) if before.size else after


def _check(capacity: Floats, links: Numbers) -> None:
    """Refuses links over which no flow would end."""
    dead = np.flatnonzero(~((capacity > 0) & np.isfinite(capacity)))
    dead = dead[np.isin(dead, links)] if dead.size else dead
    if dead.size:
        raise InfeasibleError(f"flows pass link {dead[0]}, whose capacity is {capacity[dead[0]]:g} bytes/s")
