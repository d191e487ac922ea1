"""Quantile balancing: prices on experts that even out the load (Megatron-LM moe_utils, qb_dual_update)."""

from __future__ import annotations

import numpy as np

from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Router
from moesim.routing.routers.scores import best, perturbed, renormalized, softmax
from moesim.routing.routers.successive import among_first

_MOST_UPDATES = 100


class QuantileBalanced(Router):
    """The K highest of score - beta, with beta of each expert at the quantile that gives it T K / E tokens.

    In training beta is updated once a batch and stays near its fixed point; here a batch goes there by itself (at
    most a hundred updates, until they change beta by less than `tolerance` of the scores' spread). A bias is -beta to
    start from; without `balancing` it is all there is. Scores are probabilities; weights are those of the chosen.
    """

    effect = Effect(
        bytes="K copies a token, as top-k.",
        drops="None of its own, and hardly any above a capacity.",
        balance="Even to a few per cent of a hundred rows or more in each batch, less so of few rows; no loss needed.",
    )
    takes_bias = True

    @property
    def evened(self) -> bool:
        """Whether what is popular is undone within each batch, all but for rounding."""
        return self.spec.balancing

    def expected(self, weights: Floats) -> Floats:
        """K / E copies [..., E]: at the fixed point prices have undone the weights; inclusion where not balancing."""
        if not self.spec.balancing:
            return among_first(np.asarray(weights, dtype=np.float64), self.top_k)
        return np.full(np.shape(weights), self.top_k / self.experts)

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        scores = softmax(perturbed(logits, self.spec, batch.generator))
        beta = np.zeros(self.experts) if bias is None else -np.asarray(bias, dtype=np.float64)
        if self.spec.balancing and len(logits):
            beta = balancing_prices(scores, self.top_k, beta, self.spec.tolerance)
        experts = best(scores - beta, self.top_k)
        weights = np.take_along_axis(scores, experts, axis=1)
        if self.spec.renormalize:
            weights = renormalized(weights)
        return Assignment(experts, (weights * self.spec.scale).astype(np.float32))


def balancing_prices(scores: Floats, top_k: int, beta: Floats, tolerance: float) -> Floats:
    """The prices beta [E] at which the K highest of `scores` [T, E] - beta give each expert about T K / E tokens."""
    if top_k >= scores.shape[1]:
        return beta
    limit = tolerance * float(scores.std())
    for _ in range(_MOST_UPDATES):
        following = dual_update(scores, top_k, beta)
        moved = np.abs(following - beta).mean()
        beta = following
        if moved <= limit:
            break
    return beta


def dual_update(scores: Floats, top_k: int, beta: Floats) -> Floats:
    """One update of beta [E]: a token's cutoff is its (K+1)-th highest of scores [T, E] - beta, and T K / E tokens have
    scores that are further above their cutoffs than an expert's new beta.

    The library puts beta on the first token that is left out; halfway to the last one that is in, rounding decides
    nothing. Prices count only against each other: their mean is kept at zero.
    """
    T, E = scores.shape
    column = E - top_k - 1
    cutoff = np.partition(scores - beta, column, axis=1)[:, column]
    out = T - T * top_k // E - 1
    within = min(out + 1, T - 1)
    ordered = np.partition(scores - cutoff[:, None], (out, within), axis=0)
    found = (ordered[out] + ordered[within]) / 2.0
    return np.asarray(found - found.mean())
