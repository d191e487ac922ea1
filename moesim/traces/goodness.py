"""Judges a fitted law on sequences it was not fitted on: the same measures of recorded and of drawn tokens.

T tokens, L layers, E experts, K choices, S sequences, G batches, R ranks.

Every recorded sequence has a drawn one of the same length, which imitates a library sequence of its domain and of
similar length, so that both sides of a row are the same batches. The same is done with recorded sequences of the fit
in place of drawn ones (what a perfect law of the fitted half would reach) and with tokens drawn from each layer's
popularity alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing.profile import GoodnessRow, RoutingProfile
from moesim.routing.profile_draws import like_in_length, pick
from moesim.routing.profile_law import Seeds, Simulated, draw_sequences, layer_law, plain_law
from moesim.traces import measures
from moesim.traces.trace import RouterTrace

Floats = NDArray[np.float64]
Names = NDArray[np.uint16]
Integers = NDArray[np.int64]
Key = tuple[str, int, int, str]

BATCHES = (1, 4, 16, 64)
RANKS = (2, 4, 8, 16, 32, 64)
FACTORS = (1.0, 1.25, 1.5, 2.0)
LAGS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SAMPLES = 256
PAIRS = 10
MOST_JUDGED_TOKENS = 200_000


class Side(NamedTuple):
    """Tokens to be measured: choices [T, L, K] with E for none, and first token of each sequence [S+1]."""

    choices: Names
    start: Integers


def judge(
    profile: RoutingProfile, trace: RouterTrace, generator: np.random.Generator, library: RouterTrace | None = None
) -> list[GoodnessRow]:
    """The table of a profile against a trace that it was not fitted on; `library` is the trace it was fitted on.

    Batches that the trace is too short for are left out.
    """
    recorded = side_of(trace)
    chosen = imitated(profile, trace, generator)
    lengths = np.diff(recorded.start)
    batches = [measures.draw_batches(trace.sequences, size, SAMPLES, generator) for size in BATCHES]
    sides = {
        "recorded": recorded,
        "drawn": drawn_side(profile, chosen, lengths, generator),
        "popularity": drawn_side(popularity_only(profile), chosen, lengths, generator),
    }
    if library is not None and library.sequences == profile.sequences:
        sides["replay"] = replayed(side_of(library), chosen, lengths)
    found = {name: dict(measured(side, batches, profile.experts)) for name, side in sides.items()}
    rows = [_row(key, {name: values[key] for name, values in found.items()}) for key in found["recorded"]]
    return [*rows, *_pair_rows(sides, profile.experts)]


def side_of(trace: RouterTrace) -> Side:
    """A trace's choices as the measures read them."""
    choices = trace.experts.astype(np.uint16)
    choices[trace.experts >= trace.meta.experts] = trace.meta.experts
    return Side(choices, trace.starts.astype(np.int64))


def imitated(profile: RoutingProfile, trace: RouterTrace, generator: np.random.Generator) -> Integers:
    """A library sequence [S] for each of a trace's: of its domain where the profile has it, of similar length."""
    lengths = np.diff(trace.starts)
    chosen = np.empty(trace.sequences, np.int64)
    for s in range(trace.sequences):
        name = trace.meta.domains[trace.domain[s]]
        same = np.zeros(profile.sequences)
        if name in profile.meta.domains:
            same = (profile.domain == profile.meta.domains.index(name)).astype(float)
        same = same if same.any() else np.ones(profile.sequences)
        at_step = same * (profile.step == trace.step[s])
        chance = at_step if at_step.any() else same
        chance = like_in_length(profile, chance / chance.sum(), float(lengths[s]))
        chosen[s] = pick(chance, generator.random(1))[0]
    return chosen


def drawn_side(profile: RoutingProfile, chosen: Integers, lengths: Integers, generator: np.random.Generator) -> Side:
    """Sequences of the given lengths [S] that imitate the chosen library sequences [S]."""
    start = np.append(0, np.cumsum(lengths)).astype(np.int64)
    which = Simulated(chosen, start, np.arange(chosen.size).astype(np.uint64))
    K, seeds = profile.meta.top_k, generator.integers(0, 1 << 62, profile.layers + 1)
    law, choices = plain_law(profile.experts, K), np.empty((int(start[-1]), profile.layers, K), np.uint16)
    for l in range(profile.layers):
        own = layer_law(profile, l, K)
        seed = Seeds(int(seeds[-1]), int(seeds[l]), int(seeds[l]) + 1)
        choices[:, l] = draw_sequences(profile, l, own, law, which, seed)[0]
    return Side(choices, start)


def popularity_only(profile: RoutingProfile) -> RoutingProfile:
    """The same profile with each layer's popularity alone: no class, tilt, noise or repeat."""
    tokens = profile.length / profile.length.sum()
    chance = np.clip(np.einsum("s,sle->le", tokens, profile.inclusion()), 1e-9, 1.0 - 1e-6)
    logs = np.log(-np.log1p(-chance))[:, None]
    S, L, E = profile.sequences, profile.layers, profile.experts
    return replace(
        profile, affinity=logs, basis=np.zeros((L, 0, E)), tilt=np.zeros((S, 0)), share=np.ones((S, 1, 1)),
        stay=np.zeros(1), residual=np.zeros((L, E)), repeat=np.zeros(L),
    )  # fmt: skip


def replayed(library: Side, chosen: Integers, lengths: Integers) -> Side:
    """The chosen sequences as they were recorded, again from the start where they are too short."""
    own = np.diff(library.start)
    tokens = [library.start[s] + np.arange(length) % own[s] for s, length in zip(chosen, lengths, strict=True)]
    return Side(library.choices[np.concatenate(tokens)], np.append(0, np.cumsum(lengths)).astype(np.int64))


def measured(side: Side, batches: list[Integers], experts: int) -> Iterator[tuple[Key, Floats]]:
    """Every measure of one side [L], by metric, batch, ranks and unit."""
    lengths, K = np.diff(side.start), side.choices.shape[2]
    for batch in batches:
        if not len(batch):
            continue
        size = batch.shape[1]
        counts = measures.batch_loads(side.choices, side.start, experts, batch)
        yield ("max over mean load", size, 0, "relative"), measures.max_over_mean(counts).mean(axis=0)
        for ranks in RANKS:
            if ranks < experts and experts % ranks == 0:
                loads = measures.rank_loads(counts, ranks)
                yield ("max over mean load", size, ranks, "relative"), measures.max_over_mean(loads).mean(axis=0)
        tokens = lengths[batch].sum(axis=1)
        dropped = measures.drop_fraction(counts, FACTORS, K, tokens[:, None])
        for place, factor in enumerate(FACTORS):
            yield (f"dropped at capacity {factor:g}", size, 0, "points"), dropped[..., place].mean(axis=0)
        yield ("idle experts", size, 0, "points"), measures.idle_fraction(counts).mean(axis=0)
    for ranks in RANKS:
        if ranks < experts and experts % ranks == 0:
            home = measures.contiguous(experts, ranks)
            yield (
                ("destination ranks of a token", 0, ranks, "relative"),
                measures.distinct_places(side.choices, home, ranks),
            )
    lags = [lag for lag in LAGS if lag < lengths.max()]
    shared = measures.overlap_at_lags(side.choices, side.start, lags, experts)
    for place, lag in enumerate(lags):
        yield (f"overlap at lag {lag}", 0, 0, "relative"), shared[place]


def _row(key: Key, values: dict[str, Floats]) -> GoodnessRow:
    metric, batch, ranks, unit = key
    recorded = values["recorded"]

    def error(name: str, layers: bool = False) -> float:
        other = values[name] if layers else values[name].mean()
        own = recorded if layers else recorded.mean()
        scale = np.where(own != 0.0, own, 1.0) if unit == "relative" else 1.0
        off = np.atleast_1d((other - own) / scale)
        return float(off[np.argmax(np.abs(off))])

    return GoodnessRow(
        metric=metric, batch=batch, ranks=ranks, unit=unit, recorded=float(recorded.mean()),
        drawn=float(values["drawn"].mean()), error=error("drawn"), worst_layer=error("drawn", layers=True),
        replay=error("replay") if "replay" in values else None, popularity=error("popularity"),
    )  # fmt: skip


def _pair_rows(sides: dict[str, Side], experts: int) -> list[GoodnessRow]:
    """How many of the strongest pairs of experts (by phi, of each layer) are among the other side's strongest."""
    if experts < 4:
        return []
    pairs = min(PAIRS, experts * (experts - 1) // 4)
    found = {}
    for name, side in sides.items():
        phi = measures.coactivation(side.choices, experts)
        found[name] = [
            [set(zip(*map(np.ndarray.tolist, measures.strongest_pairs(own, many)[:2]), strict=True)) for own in phi]
            for many in (pairs, 2 * pairs)
        ]
    rows = []
    for place, label in enumerate(
        (f"strongest {pairs} pairs, among as many", f"strongest {pairs} pairs, among twice as many")
    ):
        share = {
            name: np.array([len(one & two) / pairs for one, two in zip(found["recorded"][0], own[place], strict=True)])
            for name, own in found.items()
        }
        rows.append(_row((label, 0, 0, "points"), share))
    return rows
