"""The compiled road of capacity: who stays, where the others go, and how high the gates are that decide it.

T tokens, E experts, K choices, C copies of interest (token * K + choice, flat), P points in time.

Random words are counter-based, one state a token or a copy, so that neither threads nor the order of calls matter.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moesim.routing._kernels import MIX1, MIX2, SPARE, STEP, U64, Counters, Floats, Names, Words, compiled, mix

Singles = NDArray[np.float32]
Rows = NDArray[np.int64]

# Salts: the words of each use are no other's, and not the sampler's, though the seed be the same.
ORDER_SALT, OVERFLOW_SALT, GATE_SALT = MIX1, MIX2, MIX1 ^ MIX2
HIGH = U64(0xFFFFFFFF00000000)
SHIFT52 = U64(12)
UNIT, UNIT52 = 1.0 / 9007199254740992.0, 1.0 / 4503599627370496.0
EULER_GAMMA = 0.5772156649015329
SERIES_END, FRACTION_DEPTH, ROUNDING, NEGLIGIBLE = 1.5, 30, 1e-16, 1e-9
SOFTMAX, RENORMALIZED, SIGMOID = 0, 1, 2
STRIDE = 0.125


@compiled
def count(choices: Names, loads: Counters) -> None:
    """Copies of each expert, in `loads` [E+1]; the last is the bin of no expert."""
    for i in range(choices.size):
        loads[choices[i]] += 1


@compiled
def find_contested(
    choices: Names, top_k: int, tokens: Counters, over: NDArray[np.bool_], choice_major: bool, queue: Counters
) -> int:
    """Line up the copies whose expert has too many (`over` [E+1]), tokens [T] in their order; how many they are."""
    n, T = 0, tokens.size
    if choice_major:
        for k in range(top_k):
            for t in range(T):
                at = tokens[t] * top_k + k
                queue[n] = at
                n += int(over[choices[at]])
        return n
    for t in range(T):
        for at in range(tokens[t] * top_k, (tokens[t] + 1) * top_k):
            queue[n] = at
            n += int(over[choices[at]])
    return n


@compiled
def random_keys(queue: Counters, seed: np.uint64, keys: Words) -> None:
    """A random key for each copy in the upper half of a word, its place in the queue in the lower."""
    start = mix(seed ^ ORDER_SALT)
    for i in range(queue.size):
        keys[i] = (mix(start + U64(queue[i] + 1) * STEP) & HIGH) | U64(i)


@compiled
def admit(choices: Names, queue: Counters, room: Rows, late: Counters) -> int:
    """Give room [E] to the copies in turn; those that find none become E and go to `late`, counted."""
    n = 0
    for i in range(queue.size):
        at = queue[i]
        e = choices[at]
        if room[e] > 0:
            room[e] -= 1
        else:
            choices[at] = room.size
            late[n] = at
            n += 1
    return n


@compiled
def draw_open(weight: Floats, open_: Counters, held: Counters, stamp: int, word: np.uint64) -> int:
    """One draw in proportion to weight among the open experts that the token does not hold: its place, -1 for none."""
    total, found = 0.0, -1
    for j in range(open_.size):
        if held[open_[j]] != stamp:
            total += weight[open_[j]]
    target = np.float64(word >> SPARE) * UNIT * total
    for j in range(open_.size):
        here = weight[open_[j]]
        if held[open_[j]] != stamp and here > 0.0:
            target -= here
            found = j
            if target < 0.0:
                break
    return found


@compiled
def best_open(score: Floats, open_: Counters, held: Counters, stamp: int) -> int:
    """The open expert of highest score that the token does not hold: its place, -1 for none."""
    best, found = -math.inf, -1
    for j in range(open_.size):
        here = score[open_[j]]
        if held[open_[j]] != stamp and here > best:
            best, found = here, j
    return found


@compiled
def rehome(
    choices: Names,
    top_k: int,
    late: Counters,
    room: Rows,
    weights: Floats,
    row: Counters,
    realised: bool,
    seed: np.uint64,
) -> None:
    """Send each late copy in turn to an expert with room that its token does not hold; weights [rows, E], row [T]."""
    E, start = room.size, mix(seed ^ OVERFLOW_SALT)
    open_, held = np.flatnonzero(room > 0).astype(np.int32), np.zeros(E + 1, np.int32)
    for i in range(late.size):
        if open_.size == 0:
            break
        at, stamp = late[i], i + 1
        t = at // top_k
        for k in range(t * top_k, (t + 1) * top_k):
            held[choices[k]] = stamp
        if realised:
            j = best_open(weights[row[t]], open_, held, stamp)
        else:
            j = draw_open(weights[row[t]], open_, held, stamp, mix(start + U64(at + 1) * STEP))
        if j < 0:
            continue
        e = open_[j]
        choices[at] = e
        room[e] -= 1
        if room[e] == 0:
            open_[j:-1] = open_[j + 1 :].copy()
            open_ = open_[:-1]


@compiled
def uniform(word: np.uint64) -> float:
    """A number in (0, 1), both ends excluded, from the upper 52 bits of a word."""
    return (np.float64(word >> SHIFT52) + 0.5) * UNIT52


@compiled
def scaled_exponential_integral(u: float) -> float:
    """exp(u) * E1(u) for u > 0: a power series, then a continued fraction (Abramowitz and Stegun 5.1.11 and 5.1.22)."""
    if u < SERIES_END:
        total, power, n = -EULER_GAMMA - math.log(u), u, 1.0
        while abs(power) > ROUNDING * n:
            total += power / n
            n += 1.0
            power *= -u / n
        return total * math.exp(u)
    tail = u + 2.0 * FRACTION_DEPTH + 1.0
    for n in range(FRACTION_DEPTH, 0, -1):
        tail = u + 2.0 * n - 1.0 - n * n / tail
    return 1.0 / tail


@compiled
def draw_times(choices: Names, weights: Floats, row: Counters, seed: np.uint64, times: Floats) -> None:
    """Arrival times [T, K] of each token's choices in their race, best first; none for E."""
    E, start = weights.shape[1], mix(seed ^ GATE_SALT)
    totals = np.full(weights.shape[0], -1.0)
    for t in range(row.size):
        state, weight = mix(start + U64(t + 1) * STEP), weights[row[t]]
        if totals[row[t]] < 0.0:
            totals[row[t]] = weight.sum()
        now, left = 0.0, totals[row[t]]
        for k in range(times.shape[1]):
            e = choices[t * times.shape[1] + k]
            if e == E:
                times[t, k] = math.inf
                continue
            now -= math.log(uniform(mix(state + U64(k + 1) * STEP))) / max(left, weight[e])
            left -= weight[e]
            times[t, k] = now


@compiled
def tabulate(weight: Floats, begin: float, mean: Floats, variance: Floats) -> None:
    """Mean and variance [P, E+1] of 1 / (t + X / w), X drawn from Exp(1), at t = exp(begin + p * STRIDE).

    An expert not arrived at t arrives at t + X / w, and its exponentiated logit is the inverse of that. The last column
    is the sum over all experts.
    """
    E = weight.size
    mean[:, E] = 0.0
    variance[:, E] = 0.0
    for p in range(mean.shape[0]):
        t = math.exp(begin + p * STRIDE)
        for e in range(E):
            w = weight[e]
            m = w * scaled_exponential_integral(w * t) if w * t > 0.0 else 0.0
            mean[p, e] = m
            variance[p, e] = max(0.0, w * (1.0 / t - m) - m * m)
            mean[p, E] += m
            variance[p, E] += variance[p, e]


@compiled
def unchosen(at: float, chosen: Names, table: Floats) -> float:
    """A table [P, E+1] read at a point between its rows, summed over the experts that are not chosen [K]."""
    E, low = table.shape[1] - 1, int(at)
    high, share = min(low + 1, table.shape[0] - 1), at - low
    total = (1.0 - share) * table[low, E] + share * table[high, E]
    for k in range(chosen.size):
        if chosen[k] != E:
            total -= (1.0 - share) * table[low, chosen[k]] + share * table[high, chosen[k]]
    return float(max(total, 0.0))


@compiled
def rest_of_row(choices: Names, weight: Floats, tokens: Rows, times: Floats, seed: np.uint64, rest: Floats) -> None:
    """Sum [T] over unchosen experts of exp(logit), drawn for the tokens of one row of weights.

    Log-normal with the exact mean and variance given the token's last arrival.
    """
    K, E, start = times.shape[1], weight.size, mix(seed ^ GATE_SALT)
    last = np.zeros(tokens.size, np.float64)
    for i in range(tokens.size):
        for k in range(K):
            if times[tokens[i], k] < math.inf:
                last[i] = math.log(times[tokens[i], k])
    begin = last.min()
    points = int((last.max() - begin) / STRIDE) + 2
    mean, variance = np.empty((points, E + 1), np.float64), np.empty((points, E + 1), np.float64)
    tabulate(weight, begin, mean, variance)
    for i in range(tokens.size):
        t = tokens[i]
        chosen, at = choices[t * K : (t + 1) * K], (last[i] - begin) / STRIDE
        m, v = unchosen(at, chosen, mean), unchosen(at, chosen, variance)
        rest[t] = 0.0
        if m * math.exp(last[i]) > NEGLIGIBLE:
            # No term is above the inverse of the last arrival, so that the variance is below m times that.
            v = min(v, m / math.exp(last[i]))
            state, spread = mix(start + U64(t + 1) * STEP), math.log1p(v / (m * m))
            radius = math.sqrt(-2.0 * math.log(uniform(mix(state + U64(K + 1) * STEP))))
            normal = radius * math.cos(2.0 * math.pi * uniform(mix(state + U64(K + 2) * STEP)))
            rest[t] = m * math.exp(math.sqrt(spread) * normal - spread / 2.0)


@compiled
def fill_gates(times: Floats, rest: Floats, law: int, gates: Singles) -> None:
    """Gates [T, K] of arrival times: a share of all exponentiated logits, of the chosen ones, or a sigmoid of each."""
    for t in range(times.shape[0]):
        total = rest[t]
        for k in range(times.shape[1]):
            total += 1.0 / times[t, k]
        for k in range(times.shape[1]):
            here = times[t, k]
            gates[t, k] = 1.0 / (1.0 + here) if law == SIGMOID else 1.0 / (here * total) if here < math.inf else 0.0
