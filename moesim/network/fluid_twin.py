"""The fluid network in numpy: what the compiled kernels must agree with, and what runs where there is no compiler.

A flows, Q links.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]
Flags = NDArray[np.bool_]

# flows that end within this share of the time since the clock's zero end together
TIE = 1e-12
# columns of the links' state: load of the settled flows and how many are not, the most that one sends, the least left
LOAD, OPEN, MOST, LEAST = 0, 1, 2, 3


class Net(NamedTuple):
    """Flows on links, both ways round: the links of flow f are links[first[f]:first[f+1]], the flows of link q are
    flows[start[q]:start[q+1]]; `capacity` [Q] in bytes/s; `used` are the links that have flows."""

    capacity: Floats
    first: Ints
    links: Numbers
    start: Ints
    flows: Numbers
    used: Ints


class Live(NamedTuple):
    """The flows' state: bytes `left`, whether and when each has ended [A], and how many of each link have not [Q]."""

    left: Floats
    ended: Flags
    end: Floats
    members: Ints


def gather(first: Ints, links: Numbers, chosen: Ints) -> tuple[Ints, Numbers]:
    """The paths of the chosen flows alone."""
    hops = first[chosen + 1] - first[chosen]
    where = np.concatenate([[0], np.cumsum(hops)])
    return where, links[np.arange(where[-1]) + np.repeat(first[chosen] - where[:-1], hops)]


def by_link(first: Ints, links: Numbers, count: int) -> tuple[Ints, Numbers]:
    """The flows of each of `count` links, ascending: start [Q+1] and flows."""
    owner = np.repeat(np.arange(first.size - 1, dtype=np.int32), np.diff(first))
    start = np.concatenate([[0], np.cumsum(np.bincount(links, minlength=count))])
    return start, owner[np.argsort(links, kind="stable")]


def fill(net: Net, live: Live, left: Floats, seconds: float) -> tuple[Floats, Floats]:
    """Max-min fair bytes [A] that each flow sends in `seconds`, no more than it has `left`; the links' state [Q, 4]
    without its last column, which is for speed."""
    sent, state = np.where(live.ended, 0.0, -1.0), np.zeros((net.capacity.size, 4))
    state[:, OPEN] = live.members
    while True:
        room = np.maximum(0.0, net.capacity * seconds - state[:, LOAD])
        levels = np.divide(room, state[:, OPEN], out=np.full(room.size, np.inf), where=state[:, OPEN] > 0)
        q = int(np.argmin(levels))
        if levels[q] == np.inf:
            return sent, state
        flows = net.flows[net.start[q] : net.start[q + 1]]
        flows = flows[sent[flows] < 0]
        small = flows[left[flows] <= levels[q]]
        flows = small if small.size else flows
        sent[flows] = np.minimum(left[flows], levels[q])
        hops, passed = gather(net.first, net.links, flows.astype(np.int64))
        amounts = np.repeat(sent[flows], np.diff(hops))
        state[:, LOAD] += np.bincount(passed, amounts, len(state))
        state[:, OPEN] -= np.bincount(passed, minlength=len(state))
        np.maximum.at(state[:, MOST], passed, amounts)


def one_round(net: Net, live: Live, begin: float, end: float, carried: Floats) -> tuple[int, Floats]:
    """Fills the time from `begin` to `end` once; adds to `carried` [Q]. How many flows live on, and bytes sent [A]."""
    sent, state = fill(net, live, live.left, end - begin)
    over = np.flatnonzero(~live.ended & (live.left <= sent * (1.0 + TIE)))
    live.left[~live.ended] -= sent[~live.ended]
    hops, passed = gather(net.first, net.links, over)
    amounts, members = np.repeat(sent[over], np.diff(hops)), live.members[passed]
    bend = members / state[passed, LOAD] - 1.0 / state[passed, MOST]
    seconds = members * amounts / (net.capacity[passed] * (1.0 + bend * amounts))
    latest = np.maximum.reduceat(seconds, hops[:-1]) if over.size else np.zeros(0)
    _leave(net, live, over, np.minimum(end, begin + latest))
    carried += state[:, LOAD]
    return int(np.count_nonzero(~live.ended)), sent


def events(net: Net, live: Live, begin: float, until: float, carried: Floats) -> tuple[float, int, int]:
    """Ends flows one by one, rates anew at each end, to the time `until`, the last end, or until half have ended.

    Adds to `carried` [Q]; returns the time, how many live on, and how many events there were.
    """
    unlimited = np.full(live.left.size, np.inf)
    now, living, happened = begin, int(np.count_nonzero(~live.ended)), 0
    enough = living // 2
    while living > enough and now < until:
        rate, state = fill(net, live, unlimited, 1.0)
        here = np.flatnonzero(~live.ended)
        step = min(until - now, float(np.min(live.left[here] / rate[here])))
        now = min(until, now + step)
        over = live.left[here] <= rate[here] * (step + TIE * now)
        live.left[here] -= rate[here] * step
        _leave(net, live, here[over], now)
        living -= int(np.count_nonzero(over))
        carried += state[:, LOAD] * step
        happened += 1
    return now, living, happened


def _leave(net: Net, live: Live, flows: Ints, end: Floats | float) -> None:
    """The flows have ended."""
    live.left[flows] = 0.0
    live.ended[flows] = True
    live.end[flows] = end
    live.members[:] -= np.bincount(gather(net.first, net.links, flows)[1], minlength=live.members.size)
