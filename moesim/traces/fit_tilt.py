"""Affinities of classes and low-rank tilts of sequences: a log-linear law of counts, fitted by turns.

S sequences, L layers, E experts, W classes, R directions.

Counts n[s,l,e] have the mean m = sum_c tokens[s,c] p, p the chance of being chosen at log weights affinity[l,c,e] +
tilt[s] . basis[l,:,e]. Affinities are scaled to the counts of their class; tilt and basis are a factor analysis of the
residuals, noise known (Poisson's, times how much more counts of neighbouring tokens vary), so that few tokens tilt
little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.traces import _fit_kernels

Floats = NDArray[np.float64]

ROUNDS = 8
FACTOR_ROUNDS = 4
PRIOR_COPIES = 1.0
STEP_LIMIT = 2.0
LOG_LIMIT = 16.0


@dataclass(frozen=True)
class LogLinear:
    """Affinity [L, W, E], basis [L, R, E], tilt [S, R]."""

    affinity: Floats
    basis: Floats
    tilt: Floats


def fit_log_linear(
    by_sequence: Floats, by_class: Floats, tokens: Floats, width: Floats, directions: int, excess: float
) -> LogLinear:
    """Fit counts by sequence [S, L, E] and by class [W, L, E], of `tokens` [S, W] with `width` [L] experts each.

    `excess`: by how much counts of a sequence vary more than Poisson's.
    """
    (S, L, E), W = by_sequence.shape, by_class.shape[0]
    total = by_class.sum(axis=0)
    popularity = np.log((total + 0.5) / (total + 0.5).sum(axis=1, keepdims=True) * E)
    affinity = np.repeat(np.clip(popularity, -LOG_LIMIT, LOG_LIMIT)[:, None], W, axis=1)
    tilt, basis = np.zeros((S, directions)), np.zeros((L, directions, E))
    generator = np.random.default_rng(0)
    for turn in range(ROUNDS):
        log_tilt = np.einsum("sr,lre->sle", tilt, basis)
        mean, mean_by_class, slope = (np.empty(shape) for shape in ((S, L, E), (W, L, E), (S, L, E)))
        _fit_kernels.expect(affinity, log_tilt, tokens, width, mean, mean_by_class, slope)
        prior = PRIOR_COPIES * (total + 0.5) / (total + 0.5).sum(axis=1, keepdims=True) * E
        share = prior * 0.5
        step = np.log((by_class + share) / (mean_by_class + share)).transpose(1, 0, 2)
        affinity = np.clip(affinity + np.clip(step, -STEP_LIMIT, STEP_LIMIT), -LOG_LIMIT, LOG_LIMIT)
        if directions and turn > 0:
            weight = slope / excess
            wanted = log_tilt + np.clip((by_sequence - mean) / np.maximum(slope, 1e-9), -STEP_LIMIT, STEP_LIMIT)
            wanted = np.where(slope > 1e-6, wanted, 0.0)
            if turn == 1:
                basis = _first_basis(weight, wanted, directions, generator)
            flat = basis.transpose(1, 0, 2).reshape(directions, L * E)
            for _ in range(FACTOR_ROUNDS):
                tilt, flat = _factor_round(weight.reshape(S, -1), wanted.reshape(S, -1), flat)
            basis = flat.reshape(directions, L, E).transpose(1, 0, 2)
    return LogLinear(affinity, np.ascontiguousarray(basis), tilt)


def _first_basis(weight: Floats, wanted: Floats, directions: int, generator: np.random.Generator) -> Floats:
    """Where the factor analysis begins: leading directions of the residuals in units of their noise [L, R, E]."""
    S, L, E = weight.shape
    shrunk = (wanted * weight / (weight + 1.0 / 0.3)).reshape(S, L * E)
    shrunk = shrunk - shrunk.mean(axis=0)
    sketch = shrunk @ generator.standard_normal((L * E, min(S, directions + 8)))
    for _ in range(3):
        sketch = shrunk @ (shrunk.T @ np.linalg.qr(sketch)[0])
    left = np.linalg.qr(sketch)[0]
    _, values, right = np.linalg.svd(left.T @ shrunk, full_matrices=False)
    basis = np.zeros((directions, L * E))
    found = min(directions, values.size)
    basis[:found] = right[:found] * (values[:found] / np.sqrt(S))[:, None]
    return basis.reshape(directions, L, E).transpose(1, 0, 2)


def _factor_round(weight: Floats, wanted: Floats, basis: Floats) -> tuple[Floats, Floats]:
    """One round of factor analysis: tilts [S, R] of unit variance given the basis [R, N], and the basis given them.

    `weight` [S, N] is the inverse variance of the noise of `wanted` [S, N].
    """
    S, N = weight.shape
    R = len(basis)
    tilt, spread = np.empty((S, R)), np.empty((S, R, R))
    for s in range(S):
        heavy = basis * weight[s]
        spread[s] = np.linalg.inv(heavy @ basis.T + np.eye(R))
        tilt[s] = spread[s] @ (heavy @ wanted[s])
    outer = (tilt[:, :, None] * tilt[:, None, :] + spread).reshape(S, R * R)
    left = (weight.T @ outer).reshape(N, R, R) + 1e-3 * np.eye(R)
    right = (weight * wanted).T @ tilt
    return tilt, np.asarray(np.linalg.solve(left, right[:, :, None])[:, :, 0].T, np.float64)
