"""Token classes of a trace by hard expectation and maximisation: which tokens choose alike in all layers together.

T tokens, L layers, E experts, K choices, S sequences, P parts of a sequence,
W classes. Choices are [T, L, K], E for none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.traces import _fit_kernels

Floats = NDArray[np.float64]
Names = NDArray[np.uint16]
Labels = NDArray[np.int32]
Integers = NDArray[np.int64]

ROUNDS = 25
SETTLED = 0.005
SEED_TOKENS = 8
POPULARITY_COPIES = 20.0
SHARE_TOKENS = 2.0
SCORE_CHUNK = 65536


@dataclass(frozen=True)
class Recorded:
    """A trace as the fit reads it: choices [T, L, K] with E for none, sequence of each token [T], start [S+1], E."""

    choices: Names
    sequence: Labels
    start: Integers
    experts: int

    @property
    def sequences(self) -> int:
        """S."""
        return self.start.size - 1

    def counts(self, label: Labels, labels: int) -> Floats:
        """Copies by label of the token, layer and expert [labels, L, E]."""
        counts = np.zeros((labels, self.choices.shape[1], self.experts + 1))
        _fit_kernels.count_by(self.choices, label, counts)
        return counts[:, :, : self.experts]


def find_classes(recorded: Recorded, classes: int, generator: np.random.Generator) -> Labels:
    """Class of each token [T], numbered from 0 without gaps; at most `classes` of them.

    Starts from a few neighbouring tokens for each class; a class that empties stays empty. A token's class is the one
    that makes its choices likeliest, by the classes' shares in its sequence.
    """
    T = len(recorded.choices)
    popularity = recorded.counts(np.zeros(T, np.int32), 1)[0]
    label = _nearest(recorded, _seeds(recorded, classes, generator), popularity, None)
    for _ in range(ROUNDS):
        counts = recorded.counts(label, classes)
        following = _nearest(recorded, counts, popularity, _shares(recorded, label, classes))
        changed = np.mean(following != label)
        label = following
        if changed < SETTLED:
            break
    return np.unique(label, return_inverse=True)[1].astype(np.int32)


def class_tokens(recorded: Recorded, label: Labels, classes: int) -> Floats:
    """Tokens of each class in each sequence [S, W]."""
    keys = recorded.sequence.astype(np.int64) * classes + label
    return np.bincount(keys, minlength=recorded.sequences * classes).reshape(-1, classes).astype(np.float64)


def part_shares(recorded: Recorded, label: Labels, chance: Floats, parts: int) -> Floats:
    """Shares of the classes in each part of each sequence [S, P, W], for classes that stay with `chance` [W].

    Recorded shares are those of few tokens, and a drawn sequence adds that chance a second time; so sequences are
    drawn towards the mean, and parts towards their sequence, until what is left varies as the shares themselves do.
    """
    length, classes = np.diff(recorded.start), chance.size
    place = np.arange(len(label)) - recorded.start[recorded.sequence]
    part = place * parts // length[recorded.sequence]
    keys = (recorded.sequence.astype(np.int64) * parts + part) * classes + label
    many = np.bincount(keys, minlength=recorded.sequences * parts * classes).reshape(-1, parts, classes)
    tokens = many.sum(axis=2, keepdims=True)
    whole = many.sum(axis=1, keepdims=True) / length[:, None, None]
    own = np.where(tokens > 0, many / np.maximum(tokens, 1), whole)
    mean = (whole * length[:, None, None]).sum(axis=0, keepdims=True) / length.sum()
    chain = float((mean[0, 0] * (1.0 + chance) / (1.0 - chance)).sum())
    noise = chain * (1.0 - (whole**2).sum(axis=2, keepdims=True))
    shares = mean + _kept(whole - mean, noise / np.maximum(length - 1, 1)[:, None, None])
    inside = _kept(own - whole, noise / np.maximum(tokens - 1, 1) * (1.0 - 1.0 / parts)) if parts > 1 else 0.0
    shares = np.maximum(shares + inside, 0.0)
    return np.asarray(shares / shares.sum(axis=2, keepdims=True))


def _kept(off: Floats, noise: Floats) -> Floats:
    """Deviations [S, P, W] made smaller, so that those left vary by as much as exceeds the noise [S, P, 1]."""
    true = max(float((off**2).sum(axis=2).mean() - noise.mean()), 0.0)
    return np.asarray(off * np.sqrt(true / np.maximum(true + noise, 1e-12)))


def stay(recorded: Recorded, label: Labels, tokens: Floats) -> Floats:
    """Chance [W] that a token's class is the one before it, over drawing it anew by the sequence's shares.

    Of neighbours of class c a share m stays; drawn anew in proportion to q, with q from shares and stay themselves, a
    token comes back to c by chance, so stay = (m - back) / (1 - back), a few rounds.
    """
    classes = tokens.shape[1]
    inside = recorded.sequence[1:] == recorded.sequence[:-1]
    before, after = label[:-1][inside], label[1:][inside]
    many = np.bincount(before, minlength=classes)
    stayed = np.bincount(before[before == after], minlength=classes) / np.maximum(many, 1)
    share = tokens / np.maximum(tokens.sum(axis=1, keepdims=True), 1.0)
    chance = np.zeros(classes)
    for _ in range(ROUNDS):
        odds = share * (1.0 - chance)
        odds = odds / np.maximum(odds.sum(axis=1, keepdims=True), 1e-12)
        back = (tokens * odds).sum(axis=0) / np.maximum(tokens.sum(axis=0), 1.0)
        chance = np.clip((stayed - back) / np.maximum(1.0 - back, 1e-9), 0.0, 0.98)
    return np.asarray(chance)


def _seeds(recorded: Recorded, classes: int, generator: np.random.Generator) -> Floats:
    """Counts of a few neighbouring tokens for each class [W, L, E], each class from another place."""
    T = len(recorded.choices)
    places = generator.choice(T, size=min(classes, T), replace=False)
    label = np.full(T, classes, np.int32)
    for c, place in enumerate(places):
        label[place : min(place + SEED_TOKENS, int(recorded.start[recorded.sequence[place] + 1]))] = c
    return recorded.counts(label, classes + 1)[:classes]


def _shares(recorded: Recorded, label: Labels, classes: int) -> Floats:
    """Shares of the classes in each sequence [S, W], drawn towards those of the whole trace."""
    tokens = class_tokens(recorded, label, classes)
    whole = tokens.sum(axis=0) / tokens.sum()
    mixed = tokens + SHARE_TOKENS * whole
    return np.asarray(mixed / mixed.sum(axis=1, keepdims=True))


def _nearest(recorded: Recorded, counts: Floats, popularity: Floats, shares: Floats | None) -> Labels:
    """The likeliest class of each token, by counts [W, L, E] drawn towards the layer's popularity [L, E]."""
    even = (popularity + 0.5) / (popularity + 0.5).sum(axis=1, keepdims=True)
    mixed = counts + POPULARITY_COPIES * even
    logs = np.zeros((*even.T.shape[::-1], len(counts)), np.float32)
    logs[:] = np.log(mixed / mixed.sum(axis=2, keepdims=True)).transpose(1, 2, 0)
    logs = np.concatenate([logs, np.zeros((logs.shape[0], 1, logs.shape[2]), np.float32)], axis=1)
    known = np.log(shares + 1e-12).astype(np.float32) if shares is not None else None
    label = np.empty(len(recorded.choices), np.int32)
    for begin in range(0, len(label), SCORE_CHUNK):
        part = recorded.choices[begin : begin + SCORE_CHUNK]
        scores = np.empty((len(part), len(counts)), np.float32)
        _fit_kernels.score_tokens(part, logs, scores)
        if known is not None:
            scores += known[recorded.sequence[begin : begin + SCORE_CHUNK]]
        label[begin : begin + SCORE_CHUNK] = scores.argmax(axis=1)
    return label
