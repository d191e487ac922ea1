"""ReLU routing (ReMoE, Wang et al. 2024): every positive logit is an expert."""

from __future__ import annotations

import numpy as np

from moesim.routing.assignment import Assignment
from moesim.routing.inclusion import inclusion
from moesim.routing.routers.base import Batch, Effect, Floats, Router
from moesim.routing.routers.scores import padded, perturbed


class ReMoE(Router):
    """Every expert whose logit is above the threshold at which tokens have K on average; weight = the logit above it.

    In training an adaptive L1 penalty moves the logits until the share of zeros is 1 - K / E; its end state is this
    threshold, found in each batch. Weights are not renormalised.
    """

    effect = Effect(
        bytes="K copies a token on average; easy tokens have few or none, hard ones many.",
        drops="None of its own.",
        balance="As uneven as popularity; its L1 penalty can weigh experts by their load.",
    )
    variable = True

    def expected(self, weights: Floats) -> Floats:
        """Copies [..., E] of one token of a large batch: 1 - exp(-tau w) with sum K, exact here."""
        weights = np.asarray(weights, dtype=np.float64)
        if self.top_k == self.experts:
            return np.ones_like(weights)
        return inclusion(weights, self.top_k)

    def threshold(self, logits: Floats) -> float:
        """The number that T K of the logits [T, E] are above (fewer where several are equal there)."""
        T, E = logits.shape
        if T == 0 or self.top_k == E:
            return float(np.nextafter(logits.min(initial=0.0), -np.inf))
        below = T * (E - self.top_k) - 1
        return float(np.partition(logits, below, axis=None)[below])

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        logits = perturbed(logits, self.spec, batch.generator)
        above = logits - self.threshold(logits)
        return padded(above > 0.0, above, above, self.spec.scale)
