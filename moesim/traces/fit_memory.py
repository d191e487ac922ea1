"""What makes tokens of a sequence alike beyond classes and tilts, set so that drawn tokens show what was recorded.

T tokens, S sequences, L layers, E experts, K choices, M lags.

Each round draws every recorded sequence again from the law so far and moves, layer by layer, what is off: popularity
by the experts' copies; repeat and its lags by the overlap of tokens 1..M apart; each expert's variance over
sequences by how much its share varies: more of it is noise of the sequence, less of it a smaller tilt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing.profile import RoutingProfile
from moesim.routing.profile_law import Seeds, Simulated, draw_on, layer_law, paths, plain_law
from moesim.traces import measures
from moesim.traces.fit_classes import Recorded

Floats = NDArray[np.float64]
Names = NDArray[np.uint16]

LAGS = 8
ROUNDS = 28
MOST_REPEAT, MOST_NOISE, LOG_LIMIT, STEP_LIMIT = 50.0, 2.0, 16.0, 1.0
COPIES = 2.0
TRUST_COPIES = 30.0
ENOUGH_TOKENS, MOST_TIMES = 120_000, 8
# steps are whole at first, then ever smaller, so that the noise of single draws averages out
FAST_ROUNDS, SLOWER = 14, 3.0


class Seen(NamedTuple):
    """Of one layer: copies of each expert a token [E], how many tokens, mean over sequences of each expert's squared
    share of the tokens [E], and overlap at lags 1..M [M] (NaN where no sequence is long enough)."""

    copies: Floats
    tokens: int
    square: Floats
    near: Floats


def settle(profile: RoutingProfile, recorded: Recorded, seed: int, report: Callable[[float], None]) -> RoutingProfile:
    """The profile with popularity, repeats, noise and tilt that give what was recorded; `report` gets shares of 1."""
    K, generator = profile.meta.top_k, np.random.default_rng(seed)
    which, drawn_as = _several(recorded)
    law, first = plain_law(profile.experts, K), profile.basis
    wanted = [_seen(recorded.choices[:, l], recorded) for l in range(profile.layers)]
    spread = np.stack([(profile.tilt @ basis).var(axis=0) for basis in first])
    extra = np.zeros_like(profile.residual)
    for turn in range(ROUNDS):
        seeds = [int(value) for value in generator.integers(0, 1 << 62, 2)]
        path, gain = paths(profile, which, seeds[0]), 1.0 / (1.0 + max(turn - FAST_ROUNDS, 0) / SLOWER)
        affinity, strength = profile.affinity.copy(), profile.repeat[:, None] * profile.lag
        for l in range(profile.layers):
            own = Seeds(seeds[0], seeds[1] + 2 * l, seeds[1] + 2 * l + 1)
            drawn = _seen(draw_on(profile, l, layer_law(profile, l, K), law, which, own, path)[0], drawn_as)
            affinity[l] = np.clip(affinity[l] + gain * _popularity_step(wanted[l], drawn), -LOG_LIMIT, LOG_LIMIT)
            strength[l] = _next_strength(strength[l], gain, wanted[l], drawn)
            extra[l] = extra[l] + gain * _variance_step(wanted[l], drawn)
        extra = np.clip(extra, -spread, MOST_NOISE**2)
        size = np.sqrt(np.clip(1.0 + np.minimum(extra, 0.0) / np.maximum(spread, 1e-9), 0.0, 1.0))
        repeat = strength.sum(axis=1)
        lag = np.where(repeat[:, None] > 0.0, strength / np.maximum(repeat, 1e-12)[:, None], first_lag(strength.shape))
        profile = replace(
            profile, affinity=affinity, basis=first * size[:, None], residual=np.sqrt(np.maximum(extra, 0.0)),
            repeat=repeat, lag=lag,
        )  # fmt: skip
        report((turn + 1) / ROUNDS)
    return profile


def _several(recorded: Recorded) -> tuple[Simulated, Recorded]:
    """Sequences to draw: each recorded one, several times where they are few, and how they lie (choices left out)."""
    times = int(np.clip(ENOUGH_TOKENS // max(len(recorded.choices), 1), 1, MOST_TIMES))
    S, length = recorded.sequences, np.diff(recorded.start)
    start = np.append(0, np.cumsum(np.tile(length, times))).astype(np.int64)
    sequence = np.repeat(np.arange(S * times, dtype=np.int32), np.tile(length, times))
    which = Simulated(np.tile(np.arange(S), times), start, np.arange(S * times).astype(np.uint64))
    return which, Recorded(recorded.choices[:0], sequence, start, recorded.experts)


def _seen(choices: Names, recorded: Recorded) -> Seen:
    lengths = np.diff(recorded.start)
    near = np.full(LAGS, np.nan)
    known = [lag for lag in range(1, LAGS + 1) if lag < lengths.max()]
    near[: len(known)] = measures.overlap_at_lags(choices[:, None], recorded.start, known, recorded.experts)[:, 0]
    label, E = recorded.sequence.astype(np.int64)[:, None], recorded.experts
    keys = (label * (E + 1) + choices).ravel()
    counts = np.bincount(keys, minlength=recorded.sequences * (E + 1)).reshape(-1, E + 1)[:, :E]
    tokens = int(lengths.sum())
    return Seen(counts.sum(axis=0) / tokens, tokens, ((counts / lengths[:, None]) ** 2).mean(axis=0), near)


def _popularity_step(wanted: Seen, drawn: Seen) -> Floats:
    few = COPIES / wanted.tokens
    step = np.log((wanted.copies + few) / (drawn.copies + few))
    return np.asarray(np.clip(step, -STEP_LIMIT, STEP_LIMIT))


def _next_strength(strength: Floats, gain: float, wanted: Seen, drawn: Seen) -> Floats:
    """Repeat by lag [M]: a share o of the choices falls on the earlier token's experts, and rises by o (1 - o) for each
    unit of the logarithm of their factor."""
    off = np.nan_to_num(wanted.near - drawn.near)
    slope = np.nan_to_num(drawn.near * (1.0 - drawn.near), nan=1.0) + 1e-3
    moved = strength + gain * off / slope * (1.0 + strength)
    total = np.maximum(moved, 0.0).sum()
    return np.asarray(np.maximum(moved, 0.0) * min(1.0, MOST_REPEAT / max(total, 1e-12)))


def _variance_step(wanted: Seen, drawn: Seen) -> Floats:
    """By how much the variance of a sequence's log weights [E] is short (below 0: too large), judged by the squares of
    the experts' shares. Few copies say little, and move little."""
    slope = drawn.square * (1.0 - np.minimum(drawn.copies, 1.0)) ** 2 + 1e-12
    trust = wanted.copies / (wanted.copies + TRUST_COPIES / wanted.tokens)
    return np.asarray(np.clip(trust * (wanted.square - drawn.square) / slope, -STEP_LIMIT, STEP_LIMIT))


def first_lag(shape: tuple[int, ...]) -> Floats:
    """Lags [L, M] of which only the first counts."""
    lag = np.zeros(shape)
    lag[:, 0] = 1.0
    return lag
