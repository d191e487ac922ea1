"""Top-2 gating with a second expert by chance (GShard, Lepikhin et al. 2020, algorithm 1; mesh_tensorflow's
_top_2_gating)."""

from __future__ import annotations

import numpy as np

from moesim.routing.assignment import NO_EXPERT, Assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Router
from moesim.routing.routers.scores import best, perturbed, softmax
from moesim.routing.routers.successive import others, second
from moesim.specs.model import RouterSpec

_LIKELY = 0.5


class GShardTop2(Router):
    """The two most probable experts, gates renormalised; the second is used with chance min(1, gate / threshold).

    `second_threshold` is the dialect: 0.5 is GShard's (chance 2 g2), 0.2 that of mesh-tf's policy "random"; without
    one the second is always used (mesh-tf's "all"). A second expert that loses the draw takes no slot, and the first
    keeps its gate. Without a generator the likelier outcome is taken.
    """

    effect = Effect(
        bytes="One to two copies a token: fewer, the surer the first choice is.",
        drops="Meant for a capacity, filled by all first choices before any second one.",
        balance="First choices weigh more than in plain top-2, so that load is less even; needs the auxiliary loss.",
    )
    only_top_k = 2

    def __init__(self, spec: RouterSpec, experts: int, top_k: int) -> None:
        super().__init__(spec, experts, top_k)
        self.variable = spec.second_threshold is not None

    def expected(self, weights: Floats) -> Floats:
        """Copies [..., E] of one token with chance drawn: exact (jitter and noise left out).

        The arrival times of the first two have the ratio u with P(u <= x) = x / (r + (1 - r) x), r the share of all
        weight but the first's; the second gate is u / (1 + u).
        """
        weights = np.asarray(weights, dtype=np.float64)
        total = weights.sum(axis=-1, keepdims=True)
        kept: Floats | float = 1.0
        if self.spec.second_threshold is not None:
            kept = _mean_chance(np.asarray(others(weights) / total), self.spec.second_threshold)
        return np.asarray(weights / total + second(weights, kept))

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        logits = perturbed(logits, self.spec, batch.generator)
        experts = best(logits, 2)
        gates = softmax(np.take_along_axis(logits, experts, axis=1))
        if self.spec.second_threshold is not None:
            chance = gates[:, 1] / self.spec.second_threshold
            drawn = _LIKELY if batch.generator is None else batch.generator.random(len(logits))
            lost = chance < drawn
            experts[:, 1] = np.where(lost, NO_EXPERT, experts[:, 1])
            gates[:, 1] = np.where(lost, 0.0, gates[:, 1])
        return Assignment(experts, (gates * self.spec.scale).astype(np.float32))


def _mean_chance(rest: Floats, threshold: float) -> Floats:
    """Mean of min(1, g / threshold) over second gates g, for each share `rest` of weight without the first's.

    P(g <= x) = x / (r + (1 - 2r) x) up to g = 1/2; its integral is x/b - r/b^2 log(1 + b x / r) with b = 1 - 2r.
    """
    top = min(threshold, 0.5)
    slope = 1.0 - 2.0 * rest
    flat = np.abs(slope) < 1e-4
    safe = np.where(flat, 1.0, slope)
    r = np.maximum(rest, np.finfo(np.float64).tiny)
    curved = top / safe - r / safe**2 * np.log1p(safe * top / r)
    area = np.where(flat, top**2 / (2.0 * np.maximum(rest, 0.25)), curved)
    return np.asarray(1.0 - (area + (threshold - top)) / threshold)
