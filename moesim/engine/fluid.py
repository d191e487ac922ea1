"""Transfers that share links max-min fairly, on simpy's clock.

F flows of a transfer, Q links. A transfer is a set of flows, such as a dispatch or a reduce-scatter; when all of them
have ended its event happens, with the array [F] of the times at which each did. What is under way is followed to its
end as if nothing else came, and again from there when something does.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.network.fluid import EXACT_FLOWS, RESOLUTION, Fluid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Transfer:
    """Flows that were started together, and the event of their last end."""

    place: slice
    event: simpy.Event


@dataclass
class Busy:
    """A time without a pause: flows on a clock of their own, whose zero is at `since` on simpy's."""

    since: float
    fluid: Fluid
    open: list[Transfer] = field(default_factory=list)


class FluidNetwork:
    """Links with `capacity` [Q] in bytes/s, and the transfers on them.

    `resolution` and `exact` as in `network.fluid.Fluid`: flows end one by one while they are no more than `exact`, else
    in rounds.
    """

    def __init__(
        self, env: simpy.Environment, capacity: Floats, resolution: float = RESOLUTION, exact: float = EXACT_FLOWS
    ) -> None:
        self.env, self.capacity, self.resolution, self.exact = env, np.asarray(capacity, np.float64), resolution, exact
        self._busy: Busy | None = None
        self._carried, self._asked = np.zeros(self.capacity.size), np.zeros(self.capacity.size)
        self._started = 0

    def start(self, first: Ints, links: Numbers, size: Floats, begin: Floats | None = None) -> simpy.Event:
        """Begins a transfer: flow f sends `size[f]` bytes over links[first[f]:first[f + 1]], from now or a later
        `begin[f]` on."""
        busy = self._busy or Busy(self.env.now, Fluid(self.capacity, self.resolution, self.exact))
        busy.fluid.advance(self.env.now - busy.since)
        place = busy.fluid.add(first, links, size, None if begin is None else begin - busy.since)
        transfer = Transfer(place, self.env.event())
        busy.open.append(transfer)
        self._asked += np.bincount(links, np.repeat(size, np.diff(first)), self.capacity.size)
        self._busy, self._started = busy, self._started + 1
        self.env.process(self._follow(busy, self._started))
        return transfer.event

    def carried(self) -> Floats:
        """Bytes [Q] that each link has carried up to now."""
        if self._busy is None:
            return self._carried.copy()
        here = self._busy.fluid.copy()
        here.advance(self.env.now - self._busy.since)
        return np.asarray(self._carried + here.carried)

    def utilisation(self) -> Floats:
        """Share [Q] of what each link could have carried since time 0."""
        possible = self.capacity * self.env.now
        return np.divide(self.carried(), possible, out=np.zeros(possible.size), where=possible > 0)

    def check(self) -> None:
        """Raises `InternalError` unless every transfer has ended and all its bytes have passed its links."""
        if self._busy is not None:
            raise InternalError(f"network: {len(self._busy.open)} transfers never ended")
        worst = np.abs(self._carried - self._asked).max(initial=0.0)
        if worst > _TOLERANCE * self._asked.max(initial=0.0):
            raise InternalError(f"network: a link carried {worst:g} bytes more or less than it was asked to")

    def _follow(self, busy: Busy, number: int) -> Generator[Any, Any, None]:
        """Lets transfers end in their order until another one starts; with the last of them the pause begins."""
        if number != self._started:
            return
        ahead, waiting = busy.fluid.copy(), list(busy.open)
        ahead.advance()
        ends = [busy.since + ahead.end[transfer.place] for transfer in waiting]
        last = [float(end.max(initial=self.env.now)) for end in ends]
        for place in np.argsort(last, kind="stable"):
            yield self.env.timeout(max(0.0, last[place] - self.env.now))
            if number != self._started:
                return
            busy.open.remove(waiting[place])
            waiting[place].event.succeed(ends[place])
        self._carried += ahead.carried
        self._busy = None
