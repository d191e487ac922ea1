"""The compiled road of the fluid network: max-min fair shares by progressive filling, and flows that end one by one.

A flows, Q links. `fluid_twin` says the same in numpy, and holds the shapes that both share.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from moesim.network.fluid_twin import LEAST, LOAD, MOST, OPEN, TIE, Live, Net
from moesim.routing._kernels import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]


@compiled
def gather(first: Ints, links: Numbers, chosen: Ints) -> tuple[Ints, Numbers]:
    """The paths of the chosen flows alone."""
    where = np.zeros(chosen.size + 1, np.int64)
    for i in range(chosen.size):
        where[i + 1] = where[i] + first[chosen[i] + 1] - first[chosen[i]]
    found = np.empty(where[-1], np.int32)
    for i in range(chosen.size):
        begin = first[chosen[i]]
        for j in range(where[i], where[i + 1]):
            found[j] = links[begin + j - where[i]]
    return where, found


@compiled
def by_link(first: Ints, links: Numbers, count: int) -> tuple[Ints, Numbers]:
    """The flows of each of `count` links, ascending: start [Q+1] and flows."""
    start = np.zeros(count + 1, np.int64)
    for j in range(links.size):
        start[links[j] + 1] += 1
    for q in range(count):
        start[q + 1] += start[q]
    place, flows = start[:-1].copy(), np.empty(links.size, np.int32)
    for f in range(first.size - 1):
        for j in range(first[f], first[f + 1]):
            flows[place[links[j]]] = f
            place[links[j]] += 1
    return start, flows


@compiled
def take(net: Net, f: int, amount: float, state: Floats) -> None:
    """Settles that flow f sends `amount` over its links."""
    for j in range(net.first[f], net.first[f + 1]):
        q = net.links[j]
        state[q, LOAD] += amount
        state[q, OPEN] -= 1.0
        state[q, MOST] = max(state[q, MOST], amount)


@compiled
def take_small(net: Net, left: Floats, q: int, level: float, sent: Floats, state: Floats) -> None:
    """Settles the flows of link q that have no more left than `level`; notes the least that another one has left."""
    least = np.inf
    for k in range(net.start[q], net.start[q + 1]):
        f = net.flows[k]
        if sent[f] >= 0.0:
            continue
        if left[f] <= level:
            sent[f] = left[f]
            take(net, f, left[f], state)
        else:
            least = min(least, left[f])
    state[q, LEAST] = least


@compiled
def take_rest(net: Net, q: int, level: float, sent: Floats, state: Floats) -> None:
    """Settles the flows of link q that are not: it is full."""
    for k in range(net.start[q], net.start[q + 1]):
        f = net.flows[k]
        if sent[f] < 0.0:
            sent[f] = level
            take(net, f, level, state)


@compiled
def fill(net: Net, live: Live, left: Floats, seconds: float) -> tuple[Floats, Floats]:
    """Max-min fair bytes [A] that each flow sends in `seconds`, no more than it has `left`; the links' state [Q, 4].

    Progressive filling: the level rises until a link is full, whose flows then stay at that level, and those that have
    less left below it. A link's level only rises, so that one taken from the heap with the level it was put in has
    the lowest.
    """
    sent, state = np.where(live.ended, 0.0, -1.0), np.zeros((net.capacity.size, 4))
    state[:, OPEN] = live.members
    heap = [(net.capacity[q] * seconds / live.members[q], q) for q in net.used if live.members[q] > 0]
    heapq.heapify(heap)
    while len(heap) > 0:
        before, q = heap[0]
        members = state[q, OPEN]
        if members == 0.0:
            heapq.heappop(heap)
            continue
        level = max(0.0, net.capacity[q] * seconds - state[q, LOAD]) / members
        if level > before:
            heapq.heapreplace(heap, (level, q))
            continue
        if state[q, LEAST] <= level:
            take_small(net, left, q, level, sent, state)
            if state[q, OPEN] < members:
                continue
        heapq.heappop(heap)
        take_rest(net, q, level, sent, state)
    return sent, state


@compiled
def time_to_send(net: Net, f: int, amount: float, members: Ints, state: Floats) -> float:
    """Seconds until flow f has sent `amount`, on the slowest of its links.

    A link has by then sent G(amount), the sum over its flows g of min(amount, sent[g]): concave, `members` steep at 0,
    and all of its load at the largest amount. 1 / G is taken as 1 / (members amount) and a constant, which is exact
    where all flows send the same, and at the largest.
    """
    seconds = 0.0
    for j in range(net.first[f], net.first[f + 1]):
        q = net.links[j]
        bend = 1.0 / state[q, LOAD] - 1.0 / (members[q] * state[q, MOST])
        seconds = max(seconds, 1.0 / (net.capacity[q] * (1.0 / (members[q] * amount) + bend)))
    return seconds


@compiled
def one_round(net: Net, live: Live, begin: float, end: float, carried: Floats) -> tuple[int, Floats]:
    """Fills the time from `begin` to `end` once; adds to `carried` [Q]. How many flows live on, and bytes sent [A]."""
    sent, state = fill(net, live, live.left, end - begin)
    members, living = live.members.copy(), 0
    for f in range(sent.size):
        if live.ended[f]:
            continue
        amount = sent[f]
        if live.left[f] > amount * (1.0 + TIE):
            live.left[f] -= amount
            living += 1
        else:
            leave(net, live, f, min(end, begin + time_to_send(net, f, amount, members, state)))
    carried += state[:, LOAD]
    return living, sent


@compiled
def leave(net: Net, live: Live, f: int, end: float) -> None:
    """Flow f has ended."""
    live.left[f] = 0.0
    live.ended[f] = True
    live.end[f] = end
    for j in range(net.first[f], net.first[f + 1]):
        live.members[net.links[j]] -= 1


@compiled
def events(net: Net, live: Live, begin: float, until: float, carried: Floats) -> tuple[float, int, int]:
    """Ends flows one by one, rates anew at each end, to the time `until`, the last end, or until half have ended.

    Adds to `carried` [Q]; returns the time, how many live on, and how many events there were.
    """
    unlimited = np.full(live.left.size, np.inf)
    now, living, happened = begin, int(np.count_nonzero(~live.ended)), 0
    enough = living // 2
    while living > enough and now < until:
        rate, state = fill(net, live, unlimited, 1.0)
        step = until - now
        for f in range(rate.size):
            if not live.ended[f]:
                step = min(step, live.left[f] / rate[f])
        now = min(until, now + step)
        for f in range(rate.size):
            if live.ended[f]:
                continue
            if live.left[f] <= rate[f] * (step + TIE * now):
                leave(net, live, f, now)
                living -= 1
            else:
                live.left[f] -= rate[f] * step
        for q in net.used:
            carried[q] += state[q, LOAD] * step
        happened += 1
    return now, living, happened
