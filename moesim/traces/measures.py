"""Measures of router decisions: loads, imbalance, drops, locality, co-activation. Pure functions of plain arrays.

`choices` [T, L, K] are expert names below E, and any value from E upwards where a token has no expert; `starts` [S+1]
are the first token of each sequence, and T at the end. T tokens, L layers, K choices, E experts, S sequences, R ranks,
G batches, B sequences of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Choices = NDArray[np.integer]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_WORD = 64


def loads(choices: Choices, experts: int) -> Integers:
    """Copies that each expert gets in each layer [L, E]."""
    counts = [np.bincount(layer.ravel(), minlength=experts)[:experts] for layer in _layers(choices)]
    return np.array(counts, np.int64).reshape(len(counts), experts)


def grouped_loads(choices: Choices, group: NDArray[np.integer], groups: int, experts: int) -> Integers:
    """Copies by group of tokens [groups, L, E]; `group` [T] is each token's."""
    counts = np.empty((groups, choices.shape[1], experts), np.int64)
    for index, layer in enumerate(_layers(choices)):
        counts[:, index] = _pair_counts(group[:, None], layer, groups, experts)
    return counts


def draw_batches(sequences: int, batch: int, samples: int, generator: np.random.Generator | None = None) -> Integers:
    """Sequences of each batch [G, B], G at most `samples`: shuffled decks, cut into batches; no batch holds one twice.

    Batches of one sequence are all the sequences, where they are no more than `samples`. Empty where there are fewer
    sequences than a batch has.
    """
    generator = generator or np.random.default_rng(0)
    if sequences < batch or batch < 1:
        return np.empty((0, batch), np.int64)
    if batch == 1 and sequences <= samples:
        return np.arange(sequences, dtype=np.int64)[:, None]
    deck = sequences // batch
    count = max(1, -(-samples // deck)) if deck < samples else 1
    decks = [generator.permutation(sequences)[: deck * batch].reshape(deck, batch) for _ in range(count)]
    return np.concatenate(decks)[:samples]


def batch_loads(choices: Choices, starts: NDArray[np.integer], experts: int, batches: NDArray[np.integer]) -> Integers:
    """Copies that each expert gets in each batch of sequences [G, L, E]; `batches` [G, B] from `draw_batches`."""
    used, numbers = np.unique(batches, return_inverse=True)
    number = np.full(len(starts) - 1, -1, np.int64)
    number[used] = np.arange(used.size)
    sequence = number[sequence_of(starts)]
    counts = np.empty((len(batches), choices.shape[1], experts), np.int64)
    for index, layer in enumerate(_layers(choices)):
        own = _pair_counts(sequence[:, None], layer, used.size, experts)
        for place, batch in enumerate(numbers.reshape(batches.shape)):
            counts[place, index] = own[batch].sum(axis=0)
    return counts


def random_token_loads(
    choices: Choices, experts: int, tokens: int, samples: int, generator: np.random.Generator | None = None
) -> Integers:
    """Copies that each expert gets of `tokens` tokens drawn at random (with replacement) from all [samples, L, E]."""
    generator = generator or np.random.default_rng(0)
    drawn = generator.integers(0, max(1, len(choices)), samples * tokens)
    sample = np.repeat(np.arange(samples, dtype=np.int64), tokens)[:, None]
    counts = np.empty((samples, choices.shape[1], experts), np.int64)
    for index, layer in enumerate(_layers(choices)):
        counts[:, index] = _pair_counts(sample, layer[drawn], samples, experts)
    return counts


def batch_imbalance(
    choices: Choices,
    starts: NDArray[np.integer],
    experts: int,
    batch: int,
    ranks: int | NDArray[np.integer] | None = None,
    generator: np.random.Generator | None = None,
) -> Floats:
    """Busiest over mean of each drawn batch and layer [G, L], G at most 256: over experts, or over ranks where
    `ranks` is their number (experts in order, as many on each) or each expert's rank [E]."""
    batches = draw_batches(len(starts) - 1, batch, 256, generator)
    counts = batch_loads(choices, starts, experts, batches)
    return max_over_mean(counts if ranks is None else rank_loads(counts, ranks))


def contiguous(experts: int, ranks: int) -> Integers:
    """Rank of each expert [E], experts in order and as evenly as they go."""
    return np.arange(experts, dtype=np.int64) * ranks // experts


def rank_loads(counts: NDArray[np.number], ranks: int | NDArray[np.integer]) -> Integers:
    """Copies that each rank gets [..., R] of those that experts get [..., E]."""
    place = contiguous(counts.shape[-1], ranks) if isinstance(ranks, int) else ranks
    total = np.zeros((*counts.shape[:-1], int(place.max()) + 1), np.int64)
    np.add.at(np.moveaxis(total, -1, 0), place, np.moveaxis(counts, -1, 0))
    return total


def max_over_mean(counts: NDArray[np.number]) -> Floats:
    """Busiest over mean along the last axis; 1 where there is nothing."""
    mean = counts.mean(axis=-1)
    return np.asarray(np.divide(counts.max(axis=-1), mean, out=np.ones(np.shape(mean)), where=mean > 0))


def mean_over_max(counts: NDArray[np.number]) -> Floats:
    """Mean over busiest along the last axis; 1 where there is nothing."""
    return np.asarray(1.0 / max_over_mean(counts))


def variation(counts: NDArray[np.number]) -> Floats:
    """Standard deviation over mean along the last axis; 0 where there is nothing."""
    mean = counts.mean(axis=-1)
    return np.asarray(np.divide(counts.std(axis=-1), mean, out=np.zeros(np.shape(mean)), where=mean > 0))


def entropy(counts: NDArray[np.number]) -> Floats:
    """Entropy of the shares along the last axis, over the largest possible: 1 where all are equal."""
    total = np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    share = counts / total
    logs = np.log(share, out=np.zeros(share.shape), where=share > 0)
    return np.asarray(-(share * logs).sum(axis=-1) / max(np.log(counts.shape[-1]), np.finfo(float).tiny))


def zipf_slope(counts: NDArray[np.number]) -> Floats:
    """Slope of log load against log rank, sign turned, along the last axis; experts without load do not count."""
    ranked = -np.sort(-counts, axis=-1)
    held = ranked > 0
    x = np.broadcast_to(np.log(np.arange(1, counts.shape[-1] + 1)), ranked.shape)
    y = np.log(ranked, out=np.zeros(ranked.shape), where=held)
    number = np.maximum(held.sum(axis=-1, keepdims=True), 1)
    x = np.where(held, x - (x * held).sum(axis=-1, keepdims=True) / number, 0.0)
    spread = (x * x).sum(axis=-1)
    return np.asarray(np.divide(-(x * y).sum(axis=-1), spread, out=np.zeros(spread.shape), where=spread > 0))


def idle_fraction(counts: NDArray[np.number]) -> Floats:
    """Share of the last axis's experts without a copy."""
    return np.asarray(np.mean(counts == 0, axis=-1))


def drop_fraction(counts: NDArray[np.number], factors: ArrayLike, top_k: int, tokens: ArrayLike) -> Floats:
    """Share of routed copies beyond capacity [..., F] for the loads [..., E] of `tokens` tokens (broadcast to [...]).

    Capacity is factor x K x tokens / E, not rounded: the factor includes K.
    """
    factors = np.asarray(factors, np.float64)
    fair = np.asarray(tokens, np.float64) * top_k / counts.shape[-1]
    routed = counts.sum(axis=-1)
    dropped = np.empty((*counts.shape[:-1], factors.size))
    for index, factor in enumerate(factors.ravel()):
        capacity = np.broadcast_to(fair * factor, routed.shape)[..., None]
        dropped[..., index] = np.maximum(counts - capacity, 0.0).sum(axis=-1) / np.maximum(routed, 1)
    return dropped


def sequence_of(starts: NDArray[np.integer]) -> Integers:
    """Sequence of each token [T]."""
    return np.repeat(np.arange(len(starts) - 1, dtype=np.int64), np.diff(starts))


def overlap(choices: Choices, starts: NDArray[np.integer], lag: int, experts: int) -> Floats:
    """Share of a token's experts that the token `lag` before it in the same sequence chose too, by layer [L]."""
    return np.asarray(overlap_at_lags(choices, starts, (lag,), experts)[0])


def overlap_at_lags(choices: Choices, starts: NDArray[np.integer], lags: Sequence[int], experts: int) -> Floats:
    """`overlap` at several lags [lags, L]; NaN where no sequence is longer than the lag."""
    sequence = sequence_of(starts)
    same = [sequence[lag:] == sequence[:-lag] for lag in lags]
    share = np.empty((len(lags), choices.shape[1]))
    for index, layer in enumerate(_layers(choices)):
        chosen = bit_sets(layer, experts)
        sizes = np.bitwise_count(chosen).sum(axis=0, dtype=np.uint16)
        for row, (lag, paired) in enumerate(zip(lags, same, strict=True)):
            common = np.bitwise_count(chosen[:, lag:] & chosen[:, :-lag]).sum(axis=0, dtype=np.uint16)
            both = np.sum(common, where=paired, dtype=np.int64)
            all_of_later = np.sum(sizes[lag:], where=paired, dtype=np.int64)
            share[row, index] = both / all_of_later if all_of_later else np.nan
    return share


def first_choice_repeats(choices: Choices, starts: NDArray[np.integer], experts: int) -> Floats:
    """Share of tokens whose first choice is the first choice of the token before in the sequence [L]; NaN if none."""
    sequence = sequence_of(starts)
    paired = sequence[1:] == sequence[:-1]
    share = np.full(choices.shape[1], np.nan)
    for index in range(choices.shape[1]):
        first = choices[:, index, 0]
        counted = paired & (first[1:] < experts)
        if counted.any():
            share[index] = np.mean((first[1:] == first[:-1])[counted])
    return share


def distinct_places(choices: Choices, place: NDArray[np.integer], places: int) -> Floats:
    """Distinct places (ranks, domains) that a token's experts stand on, mean by layer [L]; `place` [E] of each."""
    experts = len(place)
    lookup = np.append(place, places)
    mean = [
        bit_count.mean() if bit_count.size else 0.0
        for layer in _layers(choices)
        for bit_count in [np.bitwise_count(bit_sets(lookup[np.minimum(layer, experts)], places)).sum(axis=0)]
    ]
    return np.array(mean)


def bit_sets(choices: NDArray[np.integer], size: int) -> NDArray[np.uint64]:
    """Each row of names [T, K] as a set of bits, word by word [words, T]; names from `size` upwards are left out."""
    words = np.zeros((-(-size // _WORD), len(choices)), np.uint64)
    for name in choices.T:
        bit = np.uint64(1) << (name.astype(np.uint64) % np.uint64(_WORD))
        for index, word in enumerate(words):
            inside = (name >= index * _WORD) & (name < min(size, (index + 1) * _WORD))
            word |= np.where(inside, bit, np.uint64(0))
    return words


def coactivation(choices: Choices, experts: int) -> Floats:
    """Phi coefficient of every pair of experts in a token [L, E, E], 0 on the diagonal and where an expert is idle
    or in every token."""
    return np.array([_phi(layer, experts) for layer in _layers(choices)]).reshape(-1, experts, experts)


def strongest_pairs(phi: Floats, count: int) -> tuple[Integers, Integers, Floats]:
    """The `count` pairs of largest phi of a layer [E, E], strongest first: lower name, higher name, phi."""
    low, high = np.triu_indices(len(phi), 1)
    order = np.argsort(-phi[low, high], kind="stable")[:count]
    return low[order].astype(np.int64), high[order].astype(np.int64), phi[low, high][order]


def first_choice_transitions(choices: Choices, experts: int) -> Integers:
    """Tokens by first choice in a layer and in the next [L-1, E, E]."""
    pairs = [
        _pair_counts(choices[:, index, :1], choices[:, index + 1, :1], experts, experts)
        for index in range(choices.shape[1] - 1)
    ]
    return np.array(pairs, np.int64).reshape(-1, experts, experts)


def best_guess(transitions: Integers) -> tuple[Floats, Floats, Floats]:
    """How well a layer's first choice tells the next layer's, by pair of layers [L-1]: share right when guessed from
    it, share right when always guessing the most frequent, and mutual information in bits."""
    total = np.maximum(transitions.sum(axis=(1, 2)), 1)
    guessed = transitions.max(axis=2).sum(axis=1) / total
    mode = transitions.sum(axis=1).max(axis=1) / total
    joint = transitions / total[:, None, None]
    apart = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
    ratio = np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)
    return guessed, mode, (joint * np.log2(ratio)).sum(axis=(1, 2))


def _layers(choices: Choices) -> Iterator[Choices]:
    """Each layer's choices [T, K], contiguous."""
    for index in range(choices.shape[1]):
        yield np.ascontiguousarray(choices[:, index])


def _pair_counts(rows: NDArray[np.integer], columns: NDArray[np.integer], height: int, width: int) -> Integers:
    """How often each (row, column) stands [height, width]; both broadcast to one shape, names outside are left out."""
    wide = rows.astype(np.int64)
    inside = (wide >= 0) & (wide < height) & (columns < width)
    keys = wide * width + columns
    counts = np.bincount(keys.ravel() if inside.all() else keys[inside], minlength=height * width)
    return counts.reshape(height, width)


def _phi(layer: NDArray[np.integer], experts: int) -> Floats:
    tokens, top_k = layer.shape
    together = np.zeros((experts, experts))
    for first in range(top_k):
        for second in range(first + 1, top_k):
            together += _pair_counts(layer[:, first], layer[:, second], experts, experts)
    share = np.bincount(layer.ravel(), minlength=experts)[:experts] / max(tokens, 1)
    together = (together + together.T) / max(tokens, 1)
    spread = np.sqrt(share * (1.0 - np.minimum(share, 1.0)))
    scale = np.outer(spread, spread)
    phi = np.divide(together - np.outer(share, share), scale, out=np.zeros_like(scale), where=scale > 0)
    np.fill_diagonal(phi, 0.0)
    return np.asarray(phi)
