"""The compiled road of the sampler: draws every token's experts in a race, and counts where they go.

T tokens of a source rank, S sequences, E experts, K choices, G groups, R ranks, N domains; B tokens of a block, each of
D draws.

A token's experts arrive as in a race: expert e at a time drawn from an exponential law of rate weight[e], which is the
order of logits with Gumbel noise, and the order of successive draws in proportion to weight, repeats passed over. The
draws come from an alias table; beyond `Law.words` of them, from a scan of what is not yet seen, so that no skew stalls.
Every rule is a filter over this order. A block of tokens draws D experts each in loops without branches, and the tokens
that need more are drawn again, with more draws, from the start of the same random words: D changes the speed only.

Each token has a counter-based generator of its own: results depend on neither the order of calls nor the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pickle import PickleError
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]
Names = NDArray[np.uint16]
Counters = NDArray[np.int32]
Scores = NDArray[np.int16]
U16, U64, I16, I32 = np.uint16, np.uint64, np.int16, np.int32

BLOCK = 256
# splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014)
STEP, MIX1, MIX2 = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
SHIFT1, SHIFT2, SHIFT3 = U64(30), U64(27), U64(31)
HALF, LOW, SPARE = U64(32), U64(0xFFFFFFFF), U64(11)
ZERO, ONE, NONE = U64(0), U64(1), I16(0)


class Law(NamedTuple):
    """How a token chooses: K, and the L best of G groups by the sum of the scores of their `best` first arrivals.

    `best` 0: there are no groups. `score` [D+1] of the expert found by draw j, falling, positive; `group` [E+1],
    contiguous and equal, G for no expert. `draws` to start with; `words`: how many draws come from the alias table.
    """

    top_k: int
    best: int
    groups: int
    top_groups: int
    draws: int
    words: int
    group: Names
    score: Scores


class Places(NamedTuple):
    """Rank and domain of each expert, [E+1]: the last entry is the bin of dropped copies."""

    rank: Counters
    domain: Counters


class Span(NamedTuple):
    """Source ranks `first` to `last`, each with T tokens in S sequences of equal length."""

    first: int
    last: int
    tokens: int
    sequences: int


class Tallies(NamedTuple):
    """What a call adds to, as in RoutingCounts: [R, R], [R, R], [R, N], [E]."""

    copies: Counters
    rank_tokens: Counters
    domain_tokens: Counters
    expert_kept: Counters


class Block(NamedTuple):
    """A block's arrays: states of the generators and their words [B]; draws [D, B], E for a repeat, and whether one is
    a repeat [B]; scores of each group's first and second arrival [G, B], 0 for none; kept groups [G+1, B]; tokens in
    need of more draws [B].
    """

    states: Words
    words: Words
    drawn: Names
    repeat: Names
    first: Scores
    second: Scores
    kept: Scores
    unsure: Scores


class _Kept:
    """numba's store of a function's machine code, which may fail without harm: the code is then compiled anew."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The code; None where there is none, or its file is cut."""
        try:
            return self._cache.load_overload(signature, context)
        except Exception:  # noqa: BLE001 - unpickling what is cut may raise anything
            return None

    def save_overload(self, signature: Any, code: Any) -> None:
        """Keeps the code; not where the disk is full, or a cut file stands in the way."""
        with suppress(OSError, EOFError, ValueError, PickleError):
            self._cache.save_overload(signature, code)


def compiled(function: F) -> F:
    """Compile at the first call; kept on disk, or in memory only where no folder for it can be written."""
    try:
        dispatcher: Any = numba.njit(nogil=True, cache=True)(function)
    except (RuntimeError, OSError):
        return cast(F, numba.njit(nogil=True)(function))
    if hasattr(dispatcher, "_cache"):
        dispatcher._cache = _Kept(dispatcher._cache)
    return cast(F, dispatcher)


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
    share, small, large = np.empty(E, np.float64), np.empty(E, np.int64), np.empty(E, np.int64)
    smalls, larges, total = 0, 0, 0.0
    for e in range(E):
        total += weight[e]
    for e in range(E):
        share[e] = weight[e] * (E / total)
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
def start_words(key: np.uint64, rows: Counters, states: Words) -> None:
    """Where each token's random words begin."""
    for b in range(rows.size):
        states[b] = mix(key + U64(rows[b]) * STEP)


@compiled
def draw_words(states: Words, j: int, words: Words) -> None:
    """Random word j of each token."""
    ahead = U64(j + 1) * STEP
    for b in range(states.size):
        words[b] = mix(states[b] + ahead)


@compiled
def pick(words: Words, half: np.uint64, alias: Words, drawn: Names) -> None:
    """One draw with replacement from half a word: its upper bits choose a cell, the rest its owner or its alias."""
    E = U64(alias.size)
    for b in range(words.size):
        scaled = ((words[b] >> half) & LOW) * E
        cell = scaled >> HALF
        row = alias[cell]
        drawn[b] = U16(cell) if (scaled & LOW) < (row >> HALF) else U16(row & LOW)


@compiled
def strike_repeats(draws: int, E: int, block: Block) -> None:
    """Replace by E the draws whose expert the token has drawn before."""
    drawn, repeat, struck = block.drawn, block.repeat, U16(E)
    for j in range(1, draws):
        repeat[:] = 0
        for i in range(j):
            for b in range(repeat.size):
                repeat[b] |= U16(drawn[i, b] == drawn[j, b])
        for b in range(repeat.size):
            drawn[j, b] = drawn[j, b] if repeat[b] == U16(0) else struck


@compiled
def scan(weight: Floats, seen: NDArray[np.bool_], word: np.uint64) -> int:
    """One draw among the experts not yet seen; E where there are none left."""
    left = 0.0
    found = weight.size
    for e in range(weight.size):
        if not seen[e]:
            left += weight[e]
    target = np.float64(word >> SPARE) * (left / 9007199254740992.0)
    for e in range(weight.size):
        if not seen[e]:
            target -= weight[e]
            found = e
            if target < 0.0:
                break
    return found


@compiled
def scan_on(law: Law, weight: Floats, lanes: int, block: Block) -> None:
    """The draws beyond the alias table's, each of an expert that the token has not seen."""
    seen = np.empty(weight.size + 1, np.bool_)
    for b in range(lanes):
        seen[:] = False
        for j in range(law.words):
            seen[block.drawn[j, b]] = True
        for j in range(law.words, block.drawn.shape[0]):
            e = scan(weight, seen, mix(block.states[b] + U64(j + 1) * STEP))
            seen[e] = True
            block.drawn[j, b] = e


@compiled
def best_scores(law: Law, E: int, block: Block) -> None:
    """Scores of the first and second arrival of each group, from the last draw back."""
    drawn, first, second = block.drawn, block.first, block.second
    first[:] = 0
    second[:] = 0
    size = U16(E // law.groups)
    for g in range(law.groups):
        start = U16(g * size)
        for j in range(drawn.shape[0] - 1, -1, -1):
            here = law.score[j]
            for b in range(drawn.shape[1]):
                hit = U16(drawn[j, b] - start) < size
                held = first[g, b]
                second[g, b] = held if hit else second[g, b]
                first[g, b] = here if hit else held


@compiled
def keep_groups(law: Law, ahead: np.int16, block: Block) -> None:
    """Keep the best groups; unsure where one of them, judged by the best it can become, still lacks an arrival.

    `ahead` is the score of the next draw; of groups with equal scores the lower one is better.
    """
    first, second, kept, unsure = block.first, block.second, block.kept, block.unsure
    G, B = first.shape
    bound, rank = np.empty((G, B), np.int16), np.empty(B, np.int16)
    last = second if law.best == 2 else first
    unsure[:] = 0
    for g in range(G):
        for b in range(B):
            bound[g, b] = first[g, b] if first[g, b] > NONE else ahead
            if law.best == 2:
                bound[g, b] += second[g, b] if second[g, b] > NONE else ahead
    for g in range(G):
        rank[:] = 0
        for h in range(g):
            for b in range(B):
                rank[b] += I16(bound[h, b] >= bound[g, b])
        for h in range(g + 1, G):
            for b in range(B):
                rank[b] += I16(bound[h, b] > bound[g, b])
        for b in range(B):
            kept[g, b] = I16(rank[b] < law.top_groups)
            unsure[b] |= kept[g, b] & I16(last[g, b] == NONE)


@compiled
def select(rows: Counters, law: Law, block: Block, choices: Names) -> None:
    """Write each token's first K arrivals in kept groups to choices [T * K]; unsure where there are fewer."""
    drawn, group, kept, unsure = block.drawn, law.group, block.kept, block.unsure
    D, G, B, K = U64(drawn.shape[0]), U64(kept.shape[0]), U64(rows.size), U64(law.top_k)
    line, keep = np.empty(drawn.shape[0] + 1, np.uint16), np.empty(kept.shape[0], np.uint64)
    b = ZERO
    while b < B:
        n = i = g = j = ZERO
        while g < G:
            keep[g] = U64(kept[g, b])
            g += ONE
        while j < D:
            e = drawn[j, b]
            line[n] = e
            n += keep[U64(group[U64(e)])]
            j += ONE
        start = U64(rows[b]) * K
        while i < K:
            choices[start + i] = line[i]
            i += ONE
        unsure[b] |= I16(n < K)
        b += ONE


@compiled
def new_block(G: int, D: int, B: int) -> Block:
    """The arrays of a block; without groups, everything is kept that is no repeat."""
    kept = np.ones((G + 1, B), np.int16)
    kept[G] = 0
    return Block(
        np.zeros(B, np.uint64),
        np.empty(B, np.uint64),
        np.zeros((D, B), np.uint16),
        np.empty(B, np.uint16),
        np.empty((G, B), np.int16),
        np.empty((G, B), np.int16),
        kept,
        np.zeros(B, np.int16),
    )


@compiled
def choose(
    law: Law, weight: Floats, alias: Words, key: np.uint64, pending: Counters, draws: int, choices: Names
) -> int:
    """Choose for the pending tokens with `draws` draws each; those that need more move to the front, counted."""
    blocks = (pending.size + BLOCK - 1) // BLOCK
    lanes = (pending.size + blocks - 1) // max(blocks, 1)
    block = new_block(law.groups, draws, lanes)
    picks, left = min(draws, law.words), 0
    for n in range(blocks):
        rows = pending[n * lanes : (n + 1) * lanes]
        start_words(key, rows, block.states)
        for j in range(picks):
            if j % 2 == 0:
                draw_words(block.states, j // 2, block.words)
            pick(block.words, HALF if j % 2 == 0 else ZERO, alias, block.drawn[j])
        strike_repeats(picks, weight.size, block)
        if draws > picks:
            scan_on(law, weight, rows.size, block)
        block.unsure[:] = 0
        if law.best > 0:
            best_scores(law, weight.size, block)
            keep_groups(law, law.score[draws], block)
        select(rows, law, block, choices)
        for b in range(rows.size):
            pending[left] = rows[b]
            left += block.unsure[b]
    return left


@compiled
def draw_source(law: Law, weights: Floats, seed: np.uint64, source: int, sequences: int, choices: Names) -> None:
    """All choices [T * K] of one source rank, best first; weights [1 or S, E], a row a sequence."""
    T, E = choices.size // law.top_k, weights.shape[1]
    alias = np.empty(E, np.uint64)
    key = mix(seed + U64(source + 1) * STEP)
    begin = law.draws
    for s in range(sequences):
        own = min(s, weights.shape[0] - 1)
        if s == own:
            fill_alias(weights[own], alias)
        pending = np.arange(s * T // sequences, (s + 1) * T // sequences).astype(np.int32)
        draws = begin
        left = choose(law, weights[own], alias, key, pending, draws, choices)
        # the next sequence begins with more draws where one token in 8 fell short, with fewer where one in 32
        begin += int(left * 8 > pending.size) - int(left * 32 < pending.size and begin > law.draws)
        while left > 0:
            draws = min(draws + draws // 2 + 1, law.words + E)
            left = choose(law, weights[own], alias, key, pending[:left], draws, choices)


@compiled
def count_places(
    choices: Names, top_k: int, places: Places, by_expert: Counters, by_rank: Counters, by_domain: Counters
) -> None:
    """Kept copies by expert [E+1], and tokens by distinct rank [R+1] and domain [N+1]; the last of each is a bin."""
    last_rank, last_domain = np.empty(by_rank.size, np.int32), np.empty(by_domain.size, np.int32)
    by_expert[:] = 0
    by_rank[:] = 0
    by_domain[:] = 0
    last_rank[:] = -1
    last_domain[:] = -1
    i = stop = ZERO
    for row in range(choices.size // top_k):
        t = I32(row)
        stop += U64(top_k)
        while i < stop:
            e = U64(choices[i])
            r, d = U64(places.rank[e]), U64(places.domain[e])
            by_expert[e] += I32(1)
            by_rank[r] += I32(last_rank[r] != t)
            last_rank[r] = t
            by_domain[d] += I32(last_domain[d] != t)
            last_domain[d] = t
            i += ONE


@compiled
def draw_sources(law: Law, weights: Floats, span: Span, seed: np.uint64, choices: Names) -> None:
    """Draw all choices [sources, T * K] of a span of sources; weights [1 or sources * S, E]."""
    for source in range(span.first, span.last):
        row = (source - span.first) * span.sequences
        own = weights[row : row + span.sequences] if weights.shape[0] > 1 else weights
        draw_source(law, own, seed, source, span.sequences, choices[source - span.first])


@compiled
def count_sources(choices: Names, top_k: int, places: Places, first: int, tallies: Tallies) -> None:
    """Count the kept choices [sources, T * K] of sources `first` and on."""
    E, R, N = tallies.expert_kept.size, tallies.rank_tokens.shape[1], tallies.domain_tokens.shape[1]
    by_expert, by_rank, by_domain = np.empty(E + 1, np.int32), np.empty(R + 1, np.int32), np.empty(N + 1, np.int32)
    for i in range(choices.shape[0]):
        source = first + i
        count_places(choices[i], top_k, places, by_expert, by_rank, by_domain)
        for e in range(E):
            tallies.copies[source, places.rank[e]] += by_expert[e]
            tallies.expert_kept[e] += by_expert[e]
        for r in range(R):
            tallies.rank_tokens[source, r] = by_rank[r]
        for d in range(N):
            tallies.domain_tokens[source, d] = by_domain[d]
