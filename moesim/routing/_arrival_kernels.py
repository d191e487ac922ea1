"""The compiled arrivals of a fitted law: the first experts of each token's race, in order, repeats passed over.

T tokens, E experts, K choices, W classes, G groups, B tokens of a block, D draws.

Experts of an earlier token's set have their weight times 1 + beta; that is a second race beside the first one, of the
same experts at beta times their weight, so that the first race is drawn from its alias table without looking back, and
one word of each step says which race moves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import (
    HALF,
    LOW,
    ONE,
    STEP,
    ZERO,
    Counters,
    Floats,
    Law,
    Names,
    Words,
    compiled,
    mix,
    scan,
)

U16, U64, I32, I64 = np.uint16, np.uint64, np.int32, np.int64
Floats32 = NDArray[np.float32]
Integers = NDArray[np.int64]

BLOCK = 256
# where the words of steps, of late steps, and of what is drawn once begin
STEPS, LATE, ONCE = U64(1 << 61), U64(1 << 62), U64(1 << 63)
UNIT = 1.0 / 4294967296.0


class Sequence(NamedTuple):
    """A sequence being drawn: its choices [T, K], race of each token [T], and of each race the weights, alias table
    and scores that decide the order (all [W, E])."""

    choices: Names
    rows: Integers
    weights: Floats
    alias: Words
    scores: Floats32


class Lanes(NamedTuple):
    """A block of a sequence's tokens: states of their generators and their words [B], draws of the first race [D, B],
    earlier token whose experts come again [B] (-1: none), number of experts [B], and what sorts them [K, B]."""

    states: Words
    words: Words
    drawn: Names
    earlier: Integers
    width: Integers
    keys: Integers


class Scratch(NamedTuple):
    """A token's arrays: arrivals in order [E+1] and the time of each [E+1], each one's rate in the second race [K], the
    token that last saw each expert [E+1], raised weights [E], score of each group's first and second arrival [G]."""

    line: Names
    when: Counters
    rates: Floats
    seen: Integers
    raised: Floats
    first: Counters
    second: Counters


@compiled
def new_lanes(D: int, K: int) -> Lanes:
    """Arrays of a block of tokens."""
    words, places = np.empty((2, BLOCK), np.uint64), np.empty((2, BLOCK), np.int64)
    drawn, keys = np.empty((D, BLOCK), np.uint16), np.empty((K, BLOCK), np.int64)
    return Lanes(words[0], words[1], drawn, places[0], places[1], keys)


@compiled
def new_scratch(E: int, K: int, G: int) -> Scratch:
    """Arrays of a token."""
    groups, seen = np.empty((2, G), np.int32), np.full(E + 1, -1)
    line, when = np.empty(E + 1, np.uint16), np.empty(E + 1, np.int32)
    return Scratch(line, when, np.zeros(K, np.float64), seen, np.empty(E, np.float64), groups[0], groups[1])


@compiled
def draw_late(state: np.uint64, j: np.uint64, alias: Words, row: np.uint64) -> np.uint16:
    """Draw j of a token's first race where it was not drawn ahead: the same word."""
    word = mix(state + ((j >> ONE) + ONE) * STEP)
    scaled = ((word >> HALF) if j & ONE == ZERO else (word & LOW)) * U64(alias.shape[1])
    cell = scaled >> HALF
    pair = alias[row, cell]
    return U16(cell) if (scaled & LOW) < (pair >> HALF) else U16(pair & LOW)


@compiled
def scan_on(law: Law, state: np.uint64, found: np.int64, wanted: np.int64, stamp: int, own: Scratch) -> None:
    """Arrivals beyond `law.words` steps, each drawn by the raised weights among the experts not yet seen."""
    seen, i = own.seen == stamp, law.words
    while found < wanted:
        e = scan(own.raised, seen, mix(state + LATE + U64(i + 1) * STEP))
        seen[e] = True
        own.line[found] = e
        own.when[found] = i
        found += 1
        i += 1


@compiled
def raise_weights(weight: Floats, beta: float, choices: Names, earlier: int, raised: Floats) -> None:
    """Weights with those of the earlier token's experts times 1 + beta."""
    raised[:] = weight
    for k in range(choices.shape[1]):
        if earlier >= 0 and choices[earlier, k] < weight.size:
            raised[choices[earlier, k]] = weight[choices[earlier, k]] * (1.0 + beta)


@compiled
def arrive(
    law: Law, beta: float, sequence: Sequence, lanes: Lanes, own: Scratch, span: tuple[int, int, int], wanted: int
) -> None:
    """The first experts in order of arrival of lanes `span[1]` to `span[2]`, token `span[0]` the block's first.

    `wanted` 0: as many as each lane's width, put into the sequence's choices; otherwise of one lane, left in `own.line`
    with their times in `own.when`, counted in draws of the first race alone. An expert that has arrived in the second
    race leaves it.
    """
    choices, weights, rows, alias = sequence.choices, sequence.weights, sequence.rows, sequence.alias
    line, when, rates, seen, drawn = own.line, own.when, own.rates, own.seen, lanes.drawn
    E, D, K, steps = U64(weights.shape[1]), U64(drawn.shape[0]), U64(choices.shape[1]), U64(law.words)
    begin, even = span[0], np.float64(E)
    for b in range(U64(span[1]), U64(span[2])):
        t, r, state, before = U64(begin) + b, U64(rows[U64(begin) + b]), lanes.states[b], U64(lanes.earlier[b])
        most, stamp, rate = U64(wanted) if wanted > 0 else U64(lanes.width[b]), seen[E] + 1, 0.0
        seen[E] = stamp
        if beta > 0.0 and lanes.earlier[b] >= 0:
            for k in range(K):
                held = U64(choices[before, k])
                rates[k] = beta * weights[r, held] if held < E else 0.0
                rate += rates[k]
        found, i, j, word, clock, raised = ZERO, ZERO, ZERO, ZERO, 0.0, rate > 0.0
        while found < most and i < steps:
            if raised:
                word = mix(state + STEPS + (i + ONE) * STEP) if i & ONE == ZERO else word << HALF
                target = np.float64(word >> HALF) * ((rate + even) * UNIT)
                second = bool(target < rate)
                clock += even / (rate + even) if wanted > 0 else 0.0
            else:
                second, clock = False, clock + 1.0
            if second:
                which = ZERO
                while which < K - ONE and target >= rates[which]:
                    target -= rates[which]
                    which += ONE
                e = U64(choices[before, which])
                rate -= rates[which]
                rates[which] = 0.0
                e = e if e < E else U64(choices[before, ZERO])
            else:
                e = U64(drawn[j, b] if j < D else draw_late(state, j, alias, r))
                j += ONE
            line[found] = e
            when[found] = I32(clock)
            found += U64(seen[e] != stamp)
            seen[e] = stamp
            i += ONE
        if found < most:
            raise_weights(weights[r], beta, choices, lanes.earlier[b], own.raised)
            scan_on(law, state, I64(found), I64(most), stamp, own)
        if wanted == 0:
            for k in range(most):
                choices[t, k] = line[k]
            for k in range(most, K):
                choices[t, k] = E


@compiled
def keep_groups(law: Law, found: int, every: bool, own: Scratch) -> bool:
    """Mark by -1 in `own.first` the groups that stay; whether more arrivals could not change that.

    A group that lacks an arrival is judged by the best it can become; of equal groups the lower one is better.
    """
    first, second, last = own.first, own.second, law.score.size - 1
    first[:] = 0
    second[:] = 0
    for a in range(found):
        g = law.group[own.line[a]]
        here = I32(law.score[min(int(own.when[a]), last)])
        second[g] = here if first[g] > 0 and second[g] == 0 else second[g]
        first[g] = here if first[g] == 0 else first[g]
    ahead = I32(0) if every else I32(law.score[min(int(own.when[found - 1]) + 1, last)])
    sure = True
    for _ in range(law.top_groups):
        best, top = 0, I32(-1)
        for g in range(law.groups):
            bound = first[g] if first[g] > 0 else ahead
            if law.best == 2:
                bound += second[g] if second[g] > 0 else ahead
            if first[g] >= 0 and bound > top:
                best, top = g, bound
        sure = sure and first[best] > 0 and (law.best < 2 or second[best] > 0)
        first[best] = -1
    return sure or every


@compiled
def arrive_limited(law: Law, beta: float, sequence: Sequence, lanes: Lanes, own: Scratch, begin: int, b: int) -> None:
    """The choices of one token of a group-limited router: arrivals until the groups and their experts are sure."""
    E, K, width = sequence.weights.shape[1], sequence.choices.shape[1], lanes.width[b]
    wanted, kept, sure = min(law.draws, E), 0, False
    while not sure:
        arrive(law, beta, sequence, lanes, own, (begin, b, b + 1), wanted)
        sure = keep_groups(law, wanted, wanted == E, own)
        kept = 0
        for a in range(wanted):
            if kept < width and own.first[law.group[own.line[a]]] < 0:
                own.raised[kept] = own.line[a]
                kept += 1
        sure = wanted == E or (sure and kept == width)
        wanted = min(E, wanted + wanted // 2 + 1)
    for k in range(K):
        sequence.choices[begin + b, k] = U16(own.raised[k]) if k < kept else U16(E)
