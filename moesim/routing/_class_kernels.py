"""The compiled first half of a fitted law's draws: class paths of sequences, their own tilts, and the races they give.

T tokens, S simulated sequences, P parts of a sequence, E experts, W classes. A race is a
(sequence, class) pair that occurs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import (
    HALF,
    LOW,
    ONE,
    SPARE,
    STEP,
    ZERO,
    Counters,
    Floats,
    Names,
    Words,
    compiled,
    fill_alias,
    mix,
)

U64, I64 = np.uint64, np.int64
Floats32 = NDArray[np.float32]
Integers = NDArray[np.int64]

RANGE = 4294967296.0
SPREAD = 1.0 / 9007199254740992.0


@compiled
def draw_paths(seed: np.uint64, name: Words, start: Integers, restart: Floats, stay: Floats, path: Names) -> None:
    """Class of each token [T]: it stays with `stay` [W], or is drawn anew by the odds `restart` [S, P, W] of the part
    of the sequence that the token is in."""
    P, W = restart.shape[1:]
    alias, hold = np.empty(W, np.uint64), np.empty(W, np.uint64)
    for w in range(W):
        hold[w] = U64(stay[w] * RANGE)
    for s in range(start.size - 1):
        state, length, c = mix(seed + name[s] * STEP), start[s + 1] - start[s], I64(0)
        for p in range(P):
            begin, end = -(-p * length // P), -(-(p + 1) * length // P)
            fill_alias(restart[s, p], alias)
            for t in range(begin, end):
                word = mix(state + U64(t + 1) * STEP)
                if t == 0 or (word >> HALF) >= hold[c]:
                    scaled = (word & LOW) * U64(W)
                    cell = scaled >> HALF
                    c = I64(cell if (scaled & LOW) < (alias[cell] >> HALF) else alias[cell] & LOW)
                path[start[s] + t] = c


@compiled
def number_races(path: Names, start: Integers, classes: int, first: Integers, row: Counters, klass: Counters) -> int:
    """Number the races that occur, sequence by sequence in order of their first token; how many there are."""
    known = np.empty(classes, np.int32)
    rows = 0
    for s in range(start.size - 1):
        first[s] = rows
        known[:] = -1
        for t in range(start[s], start[s + 1]):
            c = path[t]
            if known[c] < 0:
                known[c] = rows
                klass[rows] = c
                rows += 1
            row[t] = known[c]
    first[start.size - 1] = rows
    return rows


@compiled
def tilt_noise(seed: np.uint64, name: Words, spread: Floats, tilt: Floats) -> None:
    """Add to each sequence's log tilt [S, E] its own normal noise of `spread` [E] (Box and Muller, 1958)."""
    S, E = tilt.shape
    for s in range(S):
        state = mix(seed + name[s] * STEP)
        for i in range((E + 1) // 2):
            one, two = mix(state + U64(2 * i + 1) * STEP), mix(state + U64(2 * i + 2) * STEP)
            radius = np.sqrt(-2.0 * np.log((np.float64(one >> SPARE) + 0.5) * SPREAD))
            angle = 2.0 * np.pi * (np.float64(two >> SPARE) * SPREAD)
            tilt[s, 2 * i] += spread[2 * i] * radius * np.cos(angle)
            if 2 * i + 1 < E:
                tilt[s, 2 * i + 1] += spread[2 * i + 1] * radius * np.sin(angle)


@compiled
def fill_race(base: Floats, factor: Floats, weight: Floats) -> None:
    """A race's weights, mean 1: the class's weights times the sequence's factor."""
    total = 0.0
    for e in range(base.size):
        weight[e] = base[e] * factor[e]
        total += weight[e]
    scale = base.size / total
    for e in range(base.size):
        weight[e] *= scale


@compiled
def fill_cells(weight: Floats, alias: Words) -> None:
    """The alias table of weights of mean 1, as `fill_alias` writes it, in one sweep: the poor cells in turn are filled
    up by the rich ones in turn (Huebschle-Schneider, Sanders: Parallel weighted random sampling, ESA 2019)."""
    E = U64(weight.size)
    poor, rich = ZERO, ZERO
    while rich < E and weight[rich] < 1.0:
        rich += ONE
    left = weight[rich] if rich < E else 1.0
    while rich < E:
        if left >= 1.0:
            while poor < E and weight[poor] >= 1.0:
                poor += ONE
            if poor == E:
                break
            alias[poor] = (U64(weight[poor] * RANGE) << HALF) | rich
            left -= 1.0 - weight[poor]
            poor += ONE
        else:
            following = rich + ONE
            while following < E and weight[following] < 1.0:
                following += ONE
            alias[rich] = (U64(max(left, 0.0) * RANGE) << HALF) | (following if following < E else rich)
            left += (weight[following] if following < E else 1.0) - 1.0
            rich = following
    while rich < E:
        alias[rich] = (LOW << HALF) | rich
        rich += ONE
        while rich < E and weight[rich] < 1.0:
            rich += ONE
    while poor < E:
        if weight[poor] < 1.0:
            alias[poor] = (LOW << HALF) | poor
        poor += ONE


@compiled
def fill_order(base: Floats32, tilt: Floats32, score: Floats32) -> None:
    """What decides the order inside a token's set, noise apart: gamma times the log weight, plus the expert's own."""
    for e in range(base.size):
        score[e] = base[e] + tilt[e]
