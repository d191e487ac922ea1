"""What the rules share: scores of logits, noise on them, and rows of choices that are best first.

T tokens, E experts, K choices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.routing.assignment import NO_EXPERT, Assignment
from moesim.routing.routers.base import Floats, Integers
from moesim.specs.model import RouterSpec

_TINY = np.finfo(np.float64).tiny


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def sigmoid(logits: Floats) -> Floats:
    """Sigmoid of each logit, stable at both ends."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def perturbed(logits: Floats, spec: RouterSpec, generator: np.random.Generator | None) -> Floats:
    """Logits with the training noise that the spec names, where there is a generator to draw it from.

    `jitter` multiplies every logit by U[1 - jitter, 1 + jitter]. In the libraries it multiplies the router's input,
    which is not at hand; a logit averages the factors of all its inputs, so that the jitter here is the stronger one.
    `noise` adds a normal number. Both leave the given array alone.
    """
    if generator is None:
        return logits
    if spec.jitter:
        logits = logits * generator.uniform(1.0 - spec.jitter, 1.0 + spec.jitter, logits.shape)
    if spec.noise:
        logits = logits + spec.noise * generator.standard_normal(logits.shape)
    return logits


def best(scores: Floats, top_k: int) -> Integers:
    """The K highest of the last axis, best first; of equal scores the lower index is better."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :top_k]


def renormalized(weights: Floats) -> Floats:
    """Weights over their sum in each row."""
    return np.asarray(weights / np.maximum(weights.sum(axis=-1, keepdims=True), _TINY))


def padded(chosen: NDArray[np.bool_], order: Floats, weights: Floats, scale: float) -> Assignment:
    """Rows of the chosen experts [T, E], highest `order` first, as wide as the longest; weights times `scale`."""
    counts = chosen.sum(axis=1)
    width = max(1, int(counts.max(initial=0)))
    experts = np.argsort(np.where(chosen, -order, np.inf), axis=1, kind="stable")[:, :width]
    there = np.arange(width) < counts[:, None]
    kept = np.where(there, np.take_along_axis(weights, experts, axis=1) * scale, 0.0)
    return Assignment(np.where(there, experts, NO_EXPERT), kept.astype(np.float32))


def numbered(sequence: Integers | None, tokens: int) -> tuple[Integers, Integers]:
    """Each token's sequence [T] renumbered from 0, and the tokens of each; one sequence where none is given."""
    if sequence is None:
        return np.zeros(tokens, dtype=np.int64), np.array([tokens] if tokens else [], dtype=np.int64)
    _, index, counts = np.unique(sequence, return_inverse=True, return_counts=True)
    return index.reshape(-1), counts
