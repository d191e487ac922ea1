"""The compiled road of the sampler: draws every token's experts and counts where they go, without Python's lock.

T tokens of a source rank, E experts, K choices, G groups, R ranks, N domains, S sequences of a source rank.

A token's experts arrive as in a race: expert e at a time drawn from an exponential law of rate weight[e], which is the
order of logits with Gumbel noise. The order of arrival is that of successive draws in proportion to weight, repeats
passed over: two draws to a 64-bit word from an alias table and, after `words` words, a scan of the weights not yet
seen, so that no skew can stall it. Every rule is a filter over this order, best first.

Each token has a counter-based generator of its own: results depend on neither the order of calls nor the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Words = NDArray[np.uint64]
Floats = NDArray[np.float64]
Counters = NDArray[np.int32]
U64 = np.uint64

PLAIN, FIRST_GROUPS, TWO_BEST = 0, 1, 2

# splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014)
STEP, MIX1, MIX2 = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
SHIFT1, SHIFT2, SHIFT3 = U64(30), U64(27), U64(31)
HALF, LOW, SPARE = U64(32), U64(0xFFFFFFFF), U64(11)
ZERO, ONE = U64(0), U64(1)
# a group's tally in one word: how many of its experts arrived (0, 1, 2) on top, the sum of their scores below
ONCE, TWICE, FULL = U64(1 << 62), U64(2 << 62), U64(2**64 - 1)


class Law(NamedTuple):
    """How a token chooses. `group` [E]; for TWO_BEST, `score` [E+1] of the n-th expert to arrive, falling to 0, and
    `name` [G], the low bits of a tally that tell groups of equal score apart (the lower group wins)."""

    rule: int
    top_k: int
    words: int
    top_groups: int
    group: NDArray[np.uint32]
    score: Words
    name: Words


class Places(NamedTuple):
    """Rank and domain of each expert, [E+1]: the last entry is the bin of dropped copies."""

    rank: NDArray[np.uint32]
    domain: NDArray[np.uint32]


class Limit(NamedTuple):
    """Rows an expert takes (0: no limit), from each source or from the whole group, and in which order."""

    rows: int
    whole_group: bool
    choice_major: bool


class Span(NamedTuple):
    """Source ranks `first` to `last`, each with T tokens in S sequences of equal length."""

    first: int
    last: int
    tokens: int
    sequences: int


class Tallies(NamedTuple):
    """What a call adds to: copies [R, R+1], rank_tokens [R, R+1], domain_tokens [R, N+1] (the last column is the bin of
    dropped copies), expert_routed [E], expert_kept [E]."""

    copies: Counters
    rank_tokens: Counters
    domain_tokens: Counters
    expert_routed: Counters
    expert_kept: Counters


def compiled(function: F) -> F:
    """Compile at the first call; kept on disk, or in memory only where no folder for it can be written."""
    try:
        return cast(F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:
        return cast(F, numba.njit(nogil=True)(function))


@compiled
def mix(word: np.uint64) -> np.uint64:
    """splitmix64's output function: 64 random bits from a counter."""
    word = (word ^ (word >> SHIFT1)) * MIX1
    word = (word ^ (word >> SHIFT2)) * MIX2
    return word ^ (word >> SHIFT3)


@compiled
def fill_alias(weight: Floats, alias: Words) -> None:
    """Vose's alias table: cell i holds the odds of staying at i (upper 32 bits) and where to go instead (lower)."""
    E = weight.size
    share = weight * (E / weight.sum())
    small, large = np.empty(E, np.int64), np.empty(E, np.int64)
    smalls, larges = 0, 0
    for e in range(E):
        alias[e] = (LOW << HALF) | U64(e)
        if share[e] < 1.0:
            small[smalls] = e
            smalls += 1
        else:
            large[larges] = e
            larges += 1
    while smalls > 0 and larges > 0:
        smalls -= 1
        e, rich = small[smalls], large[larges - 1]
        alias[e] = (U64(share[e] * 4294967296.0) << HALF) | U64(rich)
        share[rich] -= 1.0 - share[e]
        if share[rich] < 1.0:
            larges -= 1
            small[smalls] = rich
            smalls += 1


@compiled
def pick(alias: Words, bits: np.uint64) -> np.uint64:
    """One draw with replacement from 32 random bits: the upper ones choose a cell, the rest its owner or its alias."""
    scaled = bits * U64(alias.size)
    cell = scaled >> HALF
    row = alias[cell]
    return cell if (scaled & LOW) < (row >> HALF) else row & LOW


@compiled
def scan(weight: Floats, seen: Counters, t: np.int32, word: np.uint64) -> np.uint64:
    """One draw among the experts that token t has not seen; its last expert where it has seen them all."""
    left = 0.0
    for e in range(weight.size):
        if seen[e] != t:
            left += weight[e]
    target = np.float64(word >> SPARE) * (left / 9007199254740992.0)
    found = 0
    for e in range(weight.size):
        if seen[e] != t:
            target -= weight[e]
            found = e
            if target < 0.0:
                break
    return U64(found)


@compiled
def pair(weight: Floats, alias: Words, seen: Counters, t: np.int32, word: np.uint64, scanning: bool) -> Any:
    """The next two draws of token t; while scanning one draw, given twice: a repeat is passed over anyway."""
    if scanning:
        expert = scan(weight, seen, t, word)
        return expert, expert
    return pick(alias, word >> HALF), pick(alias, word & LOW)


@compiled
def draw_plain(law: Law, weight: Floats, alias: Words, key: np.uint64, first: int, last: int, seen: Counters,
               out: NDArray[np.uint32]) -> None:
    """The first K experts to arrive."""
    K, words = U64(law.top_k), U64(law.words)
    for row in range(first, last):
        t, state = np.int32(row), mix(key + U64(row) * STEP)
        n = i = ZERO
        while n < K:
            state += STEP
            e, f = pair(weight, alias, seen, t, mix(state), i >= words)
            out[row, n] = e
            n += U64(seen[e] != t)
            seen[e] = t
            out[row, n] = f
            n += U64(seen[f] != t)
            seen[f] = t
            i += ONE


@compiled
def draw_first_groups(law: Law, weight: Floats, alias: Words, key: np.uint64, first: int, last: int, seen: Counters,
                      out: NDArray[np.uint32]) -> None:
    """The first K to arrive in the `top_groups` groups that are met first: a group's score is its maximum."""
    K, words, most = U64(law.top_k), U64(law.words), U64(law.top_groups)
    met = np.full(law.name.size, -1, np.int32)
    for row in range(first, last):
        t, state = np.int32(row), mix(key + U64(row) * STEP)
        n = i = opened = ZERO
        while n < K:
            state += STEP
            e, f = pair(weight, alias, seen, t, mix(state), i >= words)
            for expert in (e, f):
                g = U64(law.group[expert])
                known = met[g] == t
                taken = (seen[expert] != t) & (known | (opened < most))
                seen[expert] = t
                out[row, n] = expert
                n += U64(taken)
                opened += U64(taken & (not known))
                met[g] = t if taken else met[g]
            i += ONE
    

@compiled
def draw_two_best(law: Law, weight: Floats, alias: Words, key: np.uint64, first: int, last: int, seen: Counters,
                  out: NDArray[np.uint32]) -> None:
    """The first K to arrive in the `top_groups` groups whose two first experts have the largest sum of scores.

    Draws until one group more than needed has two experts, drops the worst, and goes on while a group with one expert
    could still overtake.
    """
    K, words, most = U64(law.top_k), U64(law.words), U64(law.top_groups)
    group, score, name = law.group, law.score, law.name
    G = U64(name.size)
    tally = np.empty(name.size, np.uint64)
    order = np.empty(weight.size + 1, np.uint32)
    for row in range(first, last):
        t, state = np.int32(row), mix(key + U64(row) * STEP)
        m = i = done = bar = low = ZERO
        g = ZERO
        while g < G:
            tally[g] = name[g]
            g += ONE
        while score[m] > bar:
            while (done <= most) & (score[m] > bar):
                state += STEP
                e, f = pair(weight, alias, seen, t, mix(state), i >= words)
                for expert in (e, f):
                    new = seen[expert] != t
                    seen[expert] = t
                    order[m] = expert
                    g = U64(group[expert])
                    held = tally[g]
                    tally[g] = held + ((ONCE + score[m]) if new & (held < TWICE) else ZERO)
                    done += U64(new & (held >= ONCE) & (held < TWICE))
                    m += U64(new)
                i += ONE
            low, best = extremes(tally)
            while done > most:
                g = ZERO
                while g < G:
                    tally[g] = name[g] if tally[g] == low else tally[g]
                    g += ONE
                done -= ONE
                low, best = extremes(tally)
            bar = low - best - ONCE if low > best + ONCE else ZERO
        n = j = ZERO
        while (j < m) & (n < K):
            out[row, n] = order[j]
            n += U64(tally[U64(group[U64(order[j])])] >= low)
            j += ONE
        while n < K:
            state += STEP
            e, f = pair(weight, alias, seen, t, mix(state), i >= words)
            for expert in (e, f):
                out[row, n] = expert
                n += U64((seen[expert] != t) & (tally[U64(group[expert])] >= low))
                seen[expert] = t
            i += ONE


@compiled
def extremes(tally: Words) -> Any:
    """The lowest tally of a group with two experts, and the highest of one with fewer."""
    low, best = FULL, ZERO
    g, G = ZERO, U64(tally.size)
    while g < G:
        held = tally[g]
        low = min(low, held if held >= TWICE else FULL)
        best = max(best, held if held < TWICE else ZERO)
        g += ONE
    return low, best


@compiled
def keep_first(choices: NDArray[np.uint32], limit: Limit, filled: Counters) -> None:
    """Replace the choices that come too late for their expert by E, and count all of them in `filled` [E]."""
    T, K, E = choices.shape[0], choices.shape[1] - 1, filled.size
    if limit.choice_major:
        for k in range(K):
            for t in range(T):
                e = choices[t, k]
                choices[t, k] = e if filled[e] < limit.rows else E
                filled[e] += np.int32(1)
    else:
        for t in range(T):
            for k in range(K):
                e = choices[t, k]
                choices[t, k] = e if filled[e] < limit.rows else E
                filled[e] += np.int32(1)


@compiled
def count_places(choices: NDArray[np.uint32], places: Places, counts: Any) -> None:
    """Add one source's kept copies by expert [E+1], and its tokens by distinct rank [R+1] and domain [N+1]."""
    by_expert, by_rank, by_domain = counts
    K = U64(choices.shape[1] - 1)
    last_rank = np.full(by_rank.size, -1, np.int32)
    last_domain = np.full(by_domain.size, -1, np.int32)
    for row in range(choices.shape[0]):
        t = np.int32(row)
        k = ZERO
        while k < K:
            e = U64(choices[row, k])
            by_expert[e] += np.int32(1)
            r, d = U64(places.rank[e]), U64(places.domain[e])
            by_rank[r] += np.int32(last_rank[r] != t)
            last_rank[r] = t
            by_domain[d] += np.int32(last_domain[d] != t)
            last_domain[d] = t
            k += ONE


@compiled
def draw_source(law: Law, weights: Floats, seed: np.uint64, source: int, sequences: int,
                choices: NDArray[np.uint32]) -> None:
    """All choices [T, K+1] (the last column is scratch) of one source rank; weights [1 or S, E], a row a sequence."""
    T, E = choices.shape[0], weights.shape[1]
    seen = np.full(E, -1, np.int32)
    alias = np.empty(E, np.uint64)
    key = mix(seed + U64(source + 1) * STEP)
    for s in range(sequences):
        own = min(s, weights.shape[0] - 1)
        if s == own:
            fill_alias(weights[own], alias)
        first, last = s * T // sequences, (s + 1) * T // sequences
        if law.rule == PLAIN:
            draw_plain(law, weights[own], alias, key, first, last, seen, choices)
        elif law.rule == FIRST_GROUPS:
            draw_first_groups(law, weights[own], alias, key, first, last, seen, choices)
        else:
            draw_two_best(law, weights[own], alias, key, first, last, seen, choices)


@compiled
def sample_sources(law: Law, weights: Floats, places: Places, limit: Limit, span: Span, seed: np.uint64,
                   tallies: Tallies) -> None:
    """Draw and count the tokens of a span of sources; weights [1 or sources * S, E]."""
    E, S = weights.shape[1], span.sequences
    choices = np.empty((span.tokens, law.top_k + 1), np.uint32)
    by_expert = np.zeros(E + 1, np.int32)
    filled = np.zeros(E, np.int32)
    for source in range(span.first, span.last):
        row = (source - span.first) * S
        own = weights[row : row + S] if weights.shape[0] > 1 else weights
        draw_source(law, own, seed, source, S, choices)
        if limit.rows > 0:
            if not limit.whole_group:
                filled[:] = 0
            keep_first(choices, limit, filled)
        by_expert[:] = 0
        count_places(choices, places, (by_expert, tallies.rank_tokens[source], tallies.domain_tokens[source]))
        for e in range(E):
            tallies.copies[source, places.rank[e]] += by_expert[e]
            tallies.expert_kept[e] += by_expert[e]
            if limit.rows == 0:
                tallies.expert_routed[e] += by_expert[e]
            elif limit.whole_group:
                tallies.expert_routed[e] = filled[e]
            else:
                tallies.expert_routed[e] += filled[e]
