"""The compiled walks: slots put into order, slots with two streams evaluated, and whole schedules of many candidates.

The laws are those of `closed_form.pipeline` (`walk`) and `closed_form.slots` (`evaluate`, `stretched`, `paths`), here
over arrays. N candidates, P pipeline ranks, S steps, K kinds of slots, O operations of a slot, L MoE layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import Floats, compiled

Ints = NDArray[np.int64]
Steps = NDArray[np.int32]
NEVER = -1e300
"""Before all moments: no path leads there."""
EXPERTS = 7
"""The number of the experts' operation; those of the exchanges follow, those before do not depend on routing."""
CHAIN, ONE_SIDE, TWO_SIDES = 0, 1, 2


@compiled
def topological_order(first: Ints, need: Ints, made: Ints, outputs: int, order: Ints) -> int:
    """Fills `order` with the steps such that none waits for a later one; how many could be placed."""
    ready = np.zeros(outputs, np.bool_)
    place, placed, before = first[:-1].copy(), 0, -1
    while placed > before:
        before = placed
        for stage in range(place.size):
            while place[stage] < first[stage + 1]:
                step = place[stage]
                if need[step, 0] >= 0 and not ready[need[step, 0]]:
                    break
                if need[step, 1] >= 0 and not ready[need[step, 1]]:
                    break
                for side in range(2):
                    if made[step, side] >= 0:
                        ready[made[step, side]] = True
                order[placed] = step
                placed += 1
                place[stage] += 1
    return placed


@compiled
def undominated(moments: Ints) -> NDArray[np.bool_]:
    """Which moments [M, V] no other one exceeds or equals in everything, the first of equal ones."""
    kept = np.zeros(len(moments), np.bool_)
    for m in range(len(moments)):
        most = True
        for other in range(m):
            if kept[other]:
                above, below = True, True
                for v in range(moments.shape[1]):
                    above = above and moments[other, v] >= moments[m, v]
                    below = below and moments[other, v] <= moments[m, v]
                if above:
                    most = False
                    break
                if below:
                    kept[other] = False
        kept[m] = most
    return kept


@compiled
def walk_plain(steps: Steps, outputs: int, seconds: Floats, waits: Floats, hop: Floats, ends: Floats) -> None:
    """Moves `ends` [N, P], when ranks may begin, to when they have worked through their slots. These are `seconds`
    [N, K] long and begin `waits` [N, K] after their rank is free; an input from another rank takes `hop` [N]."""
    ready = np.empty(outputs, np.float64)
    for n in range(len(ends)):
        away = hop[n]
        for s in range(len(steps)):
            stage, kind = steps[s, 0], steps[s, 1]
            begin = ends[n, stage] + waits[n, kind]
            if steps[s, 2] >= 0:
                begin = max(begin, ready[steps[s, 2]] + away * steps[s, 6])
            if steps[s, 3] >= 0:
                begin = max(begin, ready[steps[s, 3]] + away * steps[s, 7])
            end = begin + seconds[n, kind]
            ends[n, stage] = end
            if steps[s, 4] >= 0:
                ready[steps[s, 4]] = end
            if steps[s, 5] >= 0:
                ready[steps[s, 5]] = end


@compiled
def walk_maps(steps: Steps, outputs: int, maps: Floats, waits: Floats, hop: Floats, ends: Floats) -> None:
    """The same where slots are maps of moments [N, K, 3, 3]: from a free rank, a forward's and a backward's arrival to
    the end and to each side's output."""
    ready, moment = np.empty(outputs, np.float64), np.empty(3, np.float64)
    for n in range(len(ends)):
        for s in range(len(steps)):
            stage, kind = steps[s, 0], steps[s, 1]
            begin = ends[n, stage] + waits[n, kind]
            for out in range(3):
                moment[out] = begin + maps[n, kind, 0, out]
            for side in range(2):
                if steps[s, 2 + side] >= 0:
                    begin = ready[steps[s, 2 + side]] + hop[n] * steps[s, 6 + side]
                    for out in range(3):
                        moment[out] = max(moment[out], begin + maps[n, kind, 1 + side, out])
            ends[n, stage] = moment[0]
            for side in range(2):
                if steps[s, 4 + side] >= 0:
                    ready[steps[s, 4 + side]] = moment[1 + side]


@compiled
def reach(operations: Steps, seconds: Floats, first: int, last: int, ends: Floats, found: Floats) -> None:
    """Fills `found` [3, 3] with the longest paths from a free rank, from the forward's and from the backward's arrival
    to the end and to each side's output, of operations first..last-1; `ends` [O, 3] is room to work in."""
    free = np.empty((2, 3), np.float64)
    free[:, 0] = 0.0
    free[:, 1:] = NEVER
    found[:] = NEVER
    for o in range(first, last):
        stream, side, after = operations[o, 2], operations[o, 3], operations[o, 4]
        for source in range(3):
            begin = free[stream, source]
            if after >= 0:
                begin = max(begin, ends[after, source])
            elif side + 1 == source and begin < 0.0:
                begin = 0.0
            end = begin + seconds[o - first]
            ends[o - first, source] = free[stream, source] = end
            if operations[o, 5] and side < 2:
                found[source, 1 + side] = max(found[source, 1 + side], end)
    for source in range(3):
        found[source, 0] = max(free[0, source], free[1, source])


@compiled
def chain(operations: Steps, seconds: Floats, first: int, last: int, found: Floats) -> None:
    """The same of operations that each wait for the one before."""
    end = 0.0
    for o in range(last - first):
        end += seconds[o]
    found[:] = NEVER
    found[:, 0] = end
    if last > first and operations[last - 1, 3] < 2:
        found[:, 1 + operations[last - 1, 3]] = end


@compiled
def stretch(
    operations: Steps, first: int, last: int, slowed: Floats, seconds: Floats, mean: Floats, spans: Floats
) -> None:
    """Makes compute longer, `seconds` and `mean` [O], by what exchanges beside it take; see `slots.stretched`."""
    count = last - first
    ends = np.full(count, -1.0)
    compute, communication = 0.0, 0.0
    begun, left, next_exchange = 0, 0, 0
    for place in range(count):
        if operations[first + place, 2] == 1:
            continue
        while True:
            while next_exchange < count and operations[first + next_exchange, 2] == 0:
                next_exchange += 1
            if next_exchange == count:
                break
            after = operations[first + next_exchange, 4]
            arrives = ends[after] if after >= 0 else 0.0
            if arrives < 0.0:
                break
            begin = max(arrives, communication)
            communication = begin + seconds[next_exchange]
            ends[next_exchange] = communication
            spans[begun, 0], spans[begun, 1] = begin, communication
            begun += 1
            next_exchange += 1
        after = operations[first + place, 4]
        arrives = ends[after] if after >= 0 else 0.0
        begin = max(compute, arrives)
        while left < begun and spans[left, 1] <= begin:
            left += 1
        now, work, factor = begin, seconds[place], slowed[place]
        for span in range(left, begun):
            if spans[span, 0] > now:
                if work <= spans[span, 0] - now:
                    break
                work -= spans[span, 0] - now
                now = spans[span, 0]
            if work * factor <= spans[span, 1] - now:
                now += work * factor
                work = 0.0
                break
            work -= (spans[span, 1] - now) / factor
            now = spans[span, 1]
        compute = now + work
        ends[place] = compute
        if seconds[place] > 0.0:
            mean[place] *= (compute - begin) / seconds[place]
            seconds[place] = compute - begin


class Legs(NamedTuple):
    """Seconds of operations. `plain` [N, 7, 4] of those that all ranks do alike, by phase (forward, backward without
    weight gradients, whole backward, weight gradients); `experts` [N, 4, 3]: what products and rows are multiplied by,
    and what is added; `slowed` [N, 8, 4] how many times as long beside an exchange. `cost`, `moved` [N]: rows of what
    follows, sums over layers [.., L + 1]."""

    plain: Floats
    experts: Floats
    slowed: Floats
    cost: Ints
    moved: Ints
    products: Floats
    rows: Floats
    mean_products: Floats
    mean_rows: Floats
    dispatch: Floats
    combine: Floats


class Slots(NamedTuple):
    """What kinds of slots do. `operations` [O, 7] of all templates: kind, phase, stream, side, what it waits for (-1:
    the slot's input), whether it is an exit, its place among the chunk's MoE layers; `share` [O] of the whole; `edges`
    of the templates and `shape` of each: a chain, several streams of one side, or both sides; `template` [K] of each
    kind of slot; `place` [K, 3]: first MoE layer by side."""

    operations: Steps
    share: Floats
    edges: Ints
    shape: Ints
    template: Ints
    place: Ints


@compiled
def fill_legs(n: int, kind: int, legs: Legs, slots: Slots, seconds: Floats, mean: Floats, slowed: Floats) -> None:
    """Seconds of a slot's operations, of the busiest rank and of the mean one, and their factors beside exchanges."""
    first = slots.edges[slots.template[kind]]
    cost, moved = legs.cost[n], legs.moved[n]
    for o in range(first, slots.edges[slots.template[kind] + 1]):
        what, phase, place = slots.operations[o, 0], slots.operations[o, 1], o - first
        layer = slots.place[kind, slots.operations[o, 3]] + slots.operations[o, 6]
        slowed[place] = 1.0
        if what < EXPERTS:
            seconds[place] = mean[place] = legs.plain[n, what, phase]
            slowed[place] = legs.slowed[n, what, phase]
        elif what == EXPERTS:
            law = legs.experts[n, phase]
            products = legs.products[cost, layer + 1] - legs.products[cost, layer]
            rows = legs.rows[cost, layer + 1] - legs.rows[cost, layer]
            seconds[place] = law[0] * products + law[1] * rows + law[2]
            products = legs.mean_products[cost, layer + 1] - legs.mean_products[cost, layer]
            rows = legs.mean_rows[cost, layer + 1] - legs.mean_rows[cost, layer]
            mean[place] = law[0] * products + law[1] * rows + law[2]
            slowed[place] = legs.slowed[n, what, phase]
        else:
            sums = legs.dispatch if what == EXPERTS + 1 else legs.combine
            seconds[place] = sums[moved, layer + 1] - sums[moved, layer]
            mean[place] = 0.0
        seconds[place] *= slots.share[o]
        mean[place] *= slots.share[o]


@compiled
def slot_maps(slots: Slots, legs: Legs, rows: Ints, places: Ints, maps: Floats, spent: Floats) -> None:
    """Fills the maps [N, K, 3, 3] of slots whose exchanges run beside compute, and `spent` [2, N, K], seconds of a slot
    and of the mean rank's compute in it: at `places` those of the candidates `rows` of the legs."""
    most = 0
    for t in range(len(slots.edges) - 1):
        most = max(most, slots.edges[t + 1] - slots.edges[t])
    seconds, mean, slowed = np.empty(most), np.empty(most), np.empty(most)
    spans, ends = np.empty((most, 2)), np.empty((most, 3))
    for n in range(len(rows)):
        place = places[n]
        for kind in range(len(slots.template)):
            first, last = slots.edges[slots.template[kind]], slots.edges[slots.template[kind] + 1]
            found = maps[place, kind]
            fill_legs(rows[n], kind, legs, slots, seconds, mean, slowed)
            if slots.shape[slots.template[kind]] == CHAIN:
                chain(slots.operations, seconds, first, last, found)
            else:
                stretch(slots.operations, first, last, slowed, seconds, mean, spans)
                reach(slots.operations, seconds, first, last, ends, found)
                if slots.shape[slots.template[kind]] == ONE_SIDE:
                    found[1] = found[0]
                    found[2] = found[0]
            spent[0, place, kind], spent[1, place, kind] = found[0, 0], 0.0
            for o in range(last - first):
                if slots.operations[first + o, 2] == 0:
                    spent[1, place, kind] += mean[o]
