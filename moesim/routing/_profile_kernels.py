"""The compiled draws of a fitted routing law: every token's experts in a layer, from the races of its sequences.

T tokens, S simulated sequences, E experts, K choices, W classes, M lags, B tokens of a block, D draws.

Every token has a counter-based generator of its own, with words of the first race (drawn ahead for a block of tokens,
in loops without branches), of the steps of both, and of what is drawn once (earlier token, number of experts, order).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing._arrival_kernels import (
    BLOCK,
    ONCE,
    Lanes,
    Scratch,
    Sequence,
    arrive,
    arrive_limited,
    new_lanes,
    new_scratch,
)
from moesim.routing._class_kernels import fill_cells, fill_order, fill_race
from moesim.routing._kernels import HALF, LOW, ONE, STEP, ZERO, Counters, Floats, Law, Names, Words, compiled, mix

U16, U64, I64, F32 = np.uint16, np.uint64, np.int64, np.float32
Floats32 = NDArray[np.float32]
Integers = NDArray[np.int64]

GUMBELS = 4096
FOUR, SIXTEEN = U64(4), U64(16)
# scores are sorted as integers: 1/4096 apart, from +1024 down
ORDER_SPAN, ORDER_STEPS = 1024.0, 4096.0


class Layer(NamedTuple):
    """A layer's part of the law: weights [W, E]; what decides the order [W, E] and the tilt's part in it; beta; the
    odds of each earlier token [M] and of each number of experts [K+1], summed up, as 32-bit numbers; quantiles of the
    Gumbel law [GUMBELS]."""

    affinity: Floats
    order: Floats32
    sharpness: float
    repeat: float
    lag: Words
    width: Words
    gumbel: Floats32


class Races(NamedTuple):
    """Of the drawn tokens: first token [S+1] and first race [S+1] of each sequence, race of each token [T]; class
    [rows] and weights [rows, E] (mean 1) of each race; log tilt of each sequence [S, E]."""

    start: Integers
    first: Integers
    row: Counters
    klass: Counters
    weights: Floats
    tilt: Floats


class Tables(NamedTuple):
    """A sequence's alias tables [W, E], scores that decide the order [W, E], factors [E], its tilt's score [E]."""

    alias: Words
    score: Floats32
    factor: Floats
    bend: Floats32


@compiled
def prepare_sequence(layer: Layer, races: Races, s: int, tables: Tables) -> None:
    """Weights, alias tables and scores of the races of one sequence."""
    for e in range(tables.factor.size):
        tables.factor[e] = np.exp(races.tilt[s, e])
        tables.bend[e] = F32(layer.sharpness * races.tilt[s, e])
    for r in range(races.first[s], races.first[s + 1]):
        c, own = races.klass[r], r - races.first[s]
        fill_race(layer.affinity[c], tables.factor, races.weights[r])
        fill_cells(races.weights[r], tables.alias[own])
        fill_order(layer.order[c], tables.bend, tables.score[own])


@compiled
def draw_ahead(rows: Integers, alias: Words, own: Lanes) -> None:
    """The first D draws of each token's first race."""
    E, drawn, words = U64(alias.shape[1]), own.drawn, own.words
    for j in range(drawn.shape[0]):
        half = HALF if j % 2 == 0 else ZERO
        if j % 2 == 0:
            ahead = U64(j // 2 + 1) * STEP
            for b in range(rows.size):
                words[b] = mix(own.states[b] + ahead)
        for b in range(rows.size):
            scaled = ((words[b] >> half) & LOW) * E
            cell = scaled >> HALF
            pair = alias[U64(rows[b]), cell]
            drawn[j, b] = U16(cell) if (scaled & LOW) < (pair >> HALF) else U16(pair & LOW)


@compiled
def put_in_order(sequence: Sequence, gumbel: Floats32, begin: int, many: int, lanes: Lanes) -> None:
    """Sort each token's experts by their score plus Gumbel noise, best first; E comes last."""
    choices, rows, scores, keys = sequence.choices, sequence.rows, sequence.scores, lanes.keys
    K, E = choices.shape[1], U16(scores.shape[1])
    for b in range(U64(many)):
        t, word = U64(begin) + b, ZERO
        for k in range(U64(K)):
            word = mix(lanes.states[b] + ONCE + (k // FOUR + ONE + ONE) * STEP) if k % FOUR == ZERO else word >> SIXTEEN
            e = choices[t, k]
            here = scores[U64(rows[t]), U64(e)] + gumbel[word & U64(GUMBELS - 1)] if e < E else F32(-ORDER_SPAN)
            keys[k, b] = (I64((F32(ORDER_SPAN) - here) * F32(ORDER_STEPS)) << I64(16)) | I64(e)
    for done in range(K - 1, 0, -1):
        for k in range(done):
            for b in range(U64(many)):
                one, two = keys[k, b], keys[k + 1, b]
                keys[k, b] = min(one, two)
                keys[k + 1, b] = max(one, two)
    for b in range(U64(many)):
        for k in range(U64(K)):
            choices[U64(begin) + b, k] = U16(keys[k, b] & I64(0xFFFF))


@compiled
def entry(summed: Words, part: np.uint64) -> int:
    """The entry of a table of summed odds that a 32-bit number falls into."""
    k = 0
    while k < summed.size - 1 and part >= summed[k]:
        k += 1
    return k


@compiled
def begin_block(layer: Layer, sequence: Sequence, key: np.uint64, begin: int, many: int, lanes: Lanes) -> None:
    """Generators, earlier tokens, numbers of experts and first draws of a block."""
    for b in range(many):
        t = begin + b
        state = mix(key + U64(t + 1) * STEP)
        word = mix(state + ONCE + STEP)
        lag = 1 + entry(layer.lag, word >> HALF)
        lanes.states[b] = state
        lanes.earlier[b] = t - lag if t >= lag else -1
        lanes.width[b] = entry(layer.width, word & LOW) if layer.width.size > 1 else sequence.choices.shape[1]
    draw_ahead(sequence.rows[begin : begin + many], sequence.alias, lanes)


@compiled
def draw_sequence(law: Law, layer: Layer, sequence: Sequence, key: np.uint64, lanes: Lanes, own: Scratch) -> None:
    """All choices [T, K] of one sequence."""
    T = sequence.choices.shape[0]
    for begin in range(0, T, BLOCK):
        many = min(BLOCK, T - begin)
        begin_block(layer, sequence, key, begin, many, lanes)
        if law.best == 0:
            arrive(law, layer.repeat, sequence, lanes, own, (begin, 0, many), 0)
        else:
            for b in range(many):
                arrive_limited(law, layer.repeat, sequence, lanes, own, begin, b)
        put_in_order(sequence, layer.gumbel, begin, many, lanes)


@compiled
def draw_layer(law: Law, layer: Layer, races: Races, seed: np.uint64, name: Words, choices: Names) -> None:
    """All choices [T, K] of the sequences, each by its own `name` [S], E after the last; fills the races' weights."""
    (W, E), K = layer.affinity.shape, choices.shape[1]
    alias, score = np.empty((W, E), np.uint64), np.empty((W, E), np.float32)
    tables = Tables(alias, score, np.empty(E, np.float64), np.empty(E, np.float32))
    lanes, own = new_lanes(law.draws, K), new_scratch(E, K, law.groups)
    for s in range(races.start.size - 1):
        prepare_sequence(layer, races, s, tables)
        begin, end, first = races.start[s], races.start[s + 1], races.first[s]
        rows = races.row[begin:end] - first
        weights = races.weights[first : races.first[s + 1]]
        sequence = Sequence(choices[begin:end], rows, weights, alias, score)
        draw_sequence(law, layer, sequence, mix(seed + name[s] * STEP), lanes, own)
