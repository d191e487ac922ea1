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
def open_flows(net: Net, q: int, sent: Floats, found: Numbers) -> int:
    """Flows of link q that are not settled, into `found`; how many. Without a branch, so that memory is read ahead."""
    count = 0
    for k in range(net.start[q], net.start[q + 1]):
        f = net.flows[k]
        found[count] = f
        count += int(sent[f] < 0.0)
    return count


@compiled
def small_flows(left: Floats, level: float, some: Numbers, found: Numbers) -> tuple[int, float]:
    """Those of `some` that have no more left than `level`, into `found`; how many, and the least that another has."""
    count, least = 0, np.inf
    for i in range(some.size):
        f = some[i]
        small = left[f] <= level
        found[count] = f
        count += int(small)
        least = min(least, np.inf if small else left[f])
    return count, least


@compiled
def take(net: Net, some: Numbers, sent: Floats, state: Floats) -> None:
    """Settles that these flows send over their links what `sent` says."""
    for i in range(some.size):
        amount = sent[some[i]]
        for j in range(net.first[some[i]], net.first[some[i] + 1]):
            q = net.links[j]
            state[q, LOAD] += amount
            state[q, OPEN] -= 1.0
            state[q, MOST] = max(state[q, MOST], amount)


@compiled
def fill(net: Net, live: Live, left: Floats, seconds: float) -> tuple[Floats, Floats]:
    """Max-min fair bytes [A] that each flow sends in `seconds`, no more than it has `left`; the links' state [Q, 4].

    Progressive filling: the level rises until a link is full, whose flows then stay at that level, and those that have
    less left below it. A link's level only rises, so that one taken from the heap with the level it was put in has
    the lowest.
    """
    sent, state = np.where(live.ended, 0.0, -1.0), np.zeros((net.capacity.size, 4))
    state[:, OPEN] = live.members
    widest = np.diff(net.start).max()
    some, small = np.empty(widest, np.int32), np.empty(widest, np.int32)
    heap = [(net.capacity[q] * seconds / live.members[q], q) for q in net.used if live.members[q] > 0]
    heapq.heapify(heap)
    while len(heap) > 0:
        before, q = heap[0]
        if state[q, OPEN] == 0.0:
            heapq.heappop(heap)
            continue
        level = max(0.0, net.capacity[q] * seconds - state[q, LOAD]) / state[q, OPEN]
        if level > before:
            heapq.heapreplace(heap, (level, q))
            continue
        here = some[: open_flows(net, q, sent, some)]
        if state[q, LEAST] <= level:
            count, state[q, LEAST] = small_flows(left, level, here, small)
            if count > 0:
                for i in range(count):
                    sent[small[i]] = left[small[i]]
                take(net, small[:count], sent, state)
                continue
        heapq.heappop(heap)
        for i in range(here.size):
            sent[here[i]] = level
        take(net, here, sent, state)
    return sent, state


@compiled
def paces(net: Net, live: Live, state: Floats) -> tuple[Floats, Floats]:
    """How long a link takes until each of its flows has sent x bytes, or all of its own: pace x / (1 + bend x) [Q].

    A link has by then sent G(x), the sum over its flows g of min(x, sent[g]): concave, as steep at 0 as it has flows,
    and all of its load at the largest. 1 / G is taken as 1 / (flows x) and a constant, which is exact where all flows
    send the same, and at the largest.
    """
    pace, bend = np.zeros(net.capacity.size), np.zeros(net.capacity.size)
    for q in net.used:
        if live.members[q] > 0:
            pace[q] = live.members[q] / net.capacity[q]
            bend[q] = live.members[q] / state[q, LOAD] - 1.0 / state[q, MOST]
    return pace, bend


@compiled
def one_round(net: Net, live: Live, begin: float, end: float, carried: Floats) -> tuple[int, Floats]:
    """Fills the time from `begin` to `end` once; adds to `carried` [Q]. How many flows live on, and bytes sent [A]."""
    sent, state = fill(net, live, live.left, end - begin)
    pace, bend = paces(net, live, state)
    living = 0
    for f in range(sent.size):
        if live.ended[f]:
            continue
        amount = sent[f]
        if live.left[f] > amount * (1.0 + TIE):
            live.left[f] -= amount
            living += 1
            continue
        latest = 0.0
        for j in range(net.first[f], net.first[f + 1]):
            q = net.links[j]
            latest = max(latest, pace[q] * amount / (1.0 + bend[q] * amount))
        leave(net, live, f, min(end, begin + latest))
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
