"""Sinkhorn routing (S-BASE: Clark et al. 2022; Megatron-LM, moe_utils.sinkhorn and router.sinkhorn_load_balancing)."""

from __future__ import annotations

import numpy as np

from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Router
from moesim.routing.routers.scores import best, perturbed, sigmoid, softmax
from moesim.routing.routers.successive import among_first

_SMALL = 1e-8
_MOST_ROUNDS = 1000


class Sinkhorn(Router):
    """The K highest of exp(logits), its rows and columns normalised in turn until the columns' factors stand still.

    Weights are the sigmoid (K = 1) or the softmax over all experts (K > 1) of the raw logits, as Megatron has it,
    never renormalised. Without `balancing` (inference) the K highest logits. `tolerance`: mean change that ends it.
    """

    effect = Effect(
        bytes="K copies a token, as top-k.",
        drops="None of its own, and few above a capacity.",
        balance="Soft: the normalised matrix is even, the K highest of it nearly so; takes no auxiliary loss.",
    )

    @property
    def evened(self) -> bool:
        """Whether what is popular is undone within each batch, all but for rounding."""
        return self.spec.balancing

    def expected(self, weights: Floats) -> Floats:
        """K / E copies [..., E] of a large batch, whose factors undo the weights; inclusion where not balancing."""
        weights = np.asarray(weights, dtype=np.float64)
        if not self.spec.balancing:
            return among_first(weights, self.top_k)
        return np.full(weights.shape, self.top_k / self.experts)

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        logits = perturbed(logits, self.spec, batch.generator)
        balancing = self.spec.balancing and len(logits) > 0
        # A row's own factor does not change its order.
        factors = np.log(column_factors(logits, self.spec.tolerance)) if balancing else 0.0
        experts = best(logits + factors, self.top_k)
        gates = sigmoid(logits) if self.top_k == 1 else softmax(logits)
        weights = np.take_along_axis(gates, experts, axis=1)
        return Assignment(experts, (weights * self.spec.scale).astype(np.float32))


def column_factors(logits: Floats, tolerance: float) -> Floats:
    """Positive factors [E] that, with factors of the rows, make the rows and the columns of exp(logits [T, E]) even."""
    T, E = logits.shape
    cost = np.exp(logits - logits.max(axis=1, keepdims=True))
    factors = np.ones(E)
    for _ in range(_MOST_ROUNDS):
        rows = 1.0 / (T * (cost @ factors + _SMALL))
        following = 1.0 / (E * (rows @ cost + _SMALL))
        moved = np.abs(following - factors).mean()
        factors = following
        if moved <= tolerance:
            break
    return factors
