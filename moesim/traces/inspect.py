"""A look at a recording: load, locality, co-activation, imbalance by batch and expert parallelism, drops, domains.

T tokens, L layers, K choices, E experts, S sequences, R ranks, D domains, N training steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.traces import measures
from moesim.traces.counts import RouterCounts
from moesim.traces.inspection import (
    Coactivation,
    Destinations,
    Drops,
    Groups,
    Imbalance,
    Inspection,
    Integers,
    Load,
    Locality,
    Sources,
)
from moesim.traces.trace import RouterTrace

LAGS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCHES = (1, 4, 16, 64)
FACTORS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
MOST_RANKS = 64
PAIRS = 10
SAMPLES = 256
RANDOM_TOKENS = 400_000


def inspect(recording: RouterTrace | RouterCounts, seed: int = 0) -> Inspection:
    """Looks at a trace, or at counts; one recording and seed always give the same numbers."""
    if isinstance(recording, RouterCounts):
        return _inspect_counts(recording)
    trace, E, K = recording, recording.meta.experts, recording.meta.top_k
    starts = trace.starts
    generator = np.random.default_rng(seed)
    copies = measures.loads(trace.experts, E)
    drawn = {size: measures.draw_batches(trace.sequences, size, SAMPLES, generator) for size in BATCHES}
    loads = {
        size: measures.batch_loads(trace.experts, starts, E, batches) for size, batches in drawn.items() if len(batches)
    }
    tokens = {size: np.diff(starts)[drawn[size]].sum(axis=1) for size in loads}
    dropped = [_drops(size, loads[size], K, tokens[size]) for size in loads]
    return Inspection(
        meta=trace.meta,
        tokens=trace.tokens,
        sequences=trace.sequences,
        load=_load(copies, measures.loads(trace.experts[:, :, :1], E) if trace.meta.ordered else None),
        locality=_locality(trace, starts, copies),
        coactivation=_coactivation(trace),
        imbalance=tuple(
            _imbalance(size, float(tokens[size].mean()), ranks, loads[size])
            for size in loads
            for ranks in (0, *_ranks(E))
        ),
        drops=(*dropped, _drops(0, copies[None], K, np.array([trace.tokens]))),
        destinations=tuple(_destinations(trace, ranks) for ranks in _ranks(E)),
        domains=_groups(trace, trace.domain, trace.meta.domains, copies),
        steps=_step_groups(trace, copies),
        sources=tuple(
            _sources(trace, size, loads[size], float(tokens[size].mean()), copies, generator) for size in loads
        ),
    )


def _inspect_counts(recorded: RouterCounts) -> Inspection:
    copies, meta = recorded.total, recorded.meta
    tokens = recorded.tokens.sum(axis=0).mean()
    by_domain = np.stack([recorded.counts[recorded.domain == index].sum(axis=0) for index in range(len(meta.domains))])
    steps = np.unique(recorded.step)
    by_step = np.stack([recorded.counts[recorded.step == step].sum(axis=0) for step in steps])
    return Inspection(
        meta=meta,
        tokens=float(tokens),
        sequences=0,
        load=_load(copies, None),
        locality=None,
        coactivation=None,
        imbalance=tuple(_imbalance(0, float(tokens), ranks, copies[None]) for ranks in (0, *_ranks(meta.experts))),
        drops=(_drops(0, copies[None], meta.top_k, np.array([tokens])),),
        destinations=(),
        domains=_compared(meta.domains, by_domain, copies),
        steps=_compared(tuple(map(str, steps)), by_step, copies),
        sources=(),
    )


def _ranks(experts: int) -> list[int]:
    """Expert-parallel sizes to look at: powers of two below the number of experts."""
    return [1 << power for power in range(1, 17) if 1 << power < experts and 1 << power <= MOST_RANKS]


def _load(copies: Integers, first: Integers | None) -> Load:
    mean = np.maximum(copies.mean(axis=1), np.finfo(float).tiny)
    return Load(
        copies=copies,
        max_over_mean=measures.max_over_mean(copies),
        first_max_over_mean=np.full(len(copies), np.nan) if first is None else measures.max_over_mean(first),
        variation=measures.variation(copies),
        zipf_slope=measures.zipf_slope(copies),
        entropy=measures.entropy(copies),
        idle=measures.idle_fraction(copies),
        min_over_mean=copies.min(axis=1) / mean,
    )


def _locality(trace: RouterTrace, starts: Integers, copies: Integers) -> Locality:
    E = trace.meta.experts
    longest = int(np.diff(starts).max(initial=0))
    lags = tuple(lag for lag in LAGS if lag < longest)
    share = copies / np.maximum(copies.sum(axis=1, keepdims=True), 1)
    chosen = copies / max(trace.tokens, 1)
    repeats = independent = np.full(trace.layers, np.nan)
    if trace.meta.ordered:
        first = measures.loads(trace.experts[:, :, :1], E)
        repeats = measures.first_choice_repeats(trace.experts, starts, E)
        independent = np.square(first / np.maximum(first.sum(axis=1, keepdims=True), 1)).sum(axis=1)
    return Locality(
        lags=lags,
        overlap=measures.overlap_at_lags(trace.experts, starts, lags, E),
        independent=(share * chosen).sum(axis=1),
        repeats=repeats,
        repeats_independent=independent,
    )


def _coactivation(trace: RouterTrace) -> Coactivation:
    E = trace.meta.experts
    phi = measures.coactivation(trace.experts, E)
    found = [measures.strongest_pairs(layer, PAIRS) for layer in phi]
    guess = mode = bits = np.full(max(trace.layers - 1, 0), np.nan)
    if trace.meta.ordered:
        guess, mode, bits = measures.best_guess(measures.first_choice_transitions(trace.experts, E))
    low, high, strongest = (np.array([pairs[column] for pairs in found]) for column in range(3))
    return Coactivation(phi.astype(np.float32), low, high, strongest, guess, mode, bits)


def _imbalance(sequences: int, tokens: float, ranks: int, loads: Integers) -> Imbalance:
    """Of the batches' loads [G, L, E]."""
    counts = measures.rank_loads(loads, ranks) if ranks else loads
    ratio = measures.max_over_mean(counts)
    sums = counts.mean(axis=-1).sum(axis=-1) / np.maximum(counts.max(axis=-1).sum(axis=-1), 1)
    return Imbalance(
        sequences=sequences,
        tokens=tokens,
        ranks=ranks,
        max_over_mean=float(ratio.mean()),
        p95=float(np.percentile(ratio, 95)),
        mean_over_max=float((1.0 / ratio).mean()),
        ratio_of_sums=float(sums.mean()),
        excess=float(ratio.mean() - 1.0),
        idle=float(measures.idle_fraction(counts).mean()),
    )


def _drops(sequences: int, loads: Integers, top_k: int, tokens: NDArray[np.number]) -> Drops:
    share = measures.drop_fraction(loads, FACTORS, top_k, np.asarray(tokens)[:, None])
    return Drops(sequences, FACTORS, share.mean(axis=(0, 1)))


def _destinations(trace: RouterTrace, ranks: int) -> Destinations:
    E, K = trace.meta.experts, trace.meta.top_k
    place = measures.contiguous(E, ranks)
    mean = measures.distinct_places(trace.experts, place, ranks).mean()
    # A rank with m experts is missed by K of E drawn without replacement with C(E-m, K) / C(E, K).
    held = np.bincount(place, minlength=ranks)[:, None]
    drawn = np.arange(K)
    missed = np.prod(np.clip(E - held - drawn, 0, None) / (E - drawn), axis=1)
    return Destinations(ranks, float(mean), float((1.0 - missed).sum()))


def _groups(trace: RouterTrace, of_sequence: NDArray[np.integer], names: tuple[str, ...], copies: Integers) -> Groups:
    group = of_sequence[trace.sequence]
    loads = measures.grouped_loads(trace.experts, group, len(names), trace.meta.experts)
    return _compared(names, loads, copies)


def _step_groups(trace: RouterTrace, copies: Integers) -> Groups:
    steps, number = np.unique(trace.step, return_inverse=True)
    return _groups(trace, number, tuple(str(step) for step in steps), copies)


def _compared(names: tuple[str, ...], loads: Integers, copies: Integers) -> Groups:
    """Loads of groups [G, L, E] against the whole's [L, E]."""
    whole = copies / np.maximum(copies.sum(axis=-1, keepdims=True), 1)
    share = loads / np.maximum(loads.sum(axis=-1, keepdims=True), 1)
    shift = 0.5 * np.abs(share - whole).sum(axis=-1).mean(axis=-1)
    return Groups(names, loads.sum(axis=(1, 2)), shift, measures.max_over_mean(loads).mean(axis=-1))


def _sources(
    trace: RouterTrace, sequences: int, loads: Integers, tokens: float, copies: Integers, generator: np.random.Generator
) -> Sources:
    size = max(1, round(tokens))
    samples = int(np.clip(RANDOM_TOKENS // size, 4, 64))
    random = measures.random_token_loads(trace.experts, trace.meta.experts, size, samples, generator)
    popularity, drawn, whole = (float(measures.max_over_mean(of).mean()) for of in (copies, random, loads))
    return Sources(sequences, popularity - 1.0, whole - drawn, drawn - popularity)
