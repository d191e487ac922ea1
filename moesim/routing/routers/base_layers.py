"""BASE layers: a balanced assignment of tokens to experts (Lewis et al. 2021; fairseq, base_layer.py)."""

from __future__ import annotations

import numpy as np

from moesim.routing.assignment import Assignment
from moesim.routing.routers.auction import balanced_assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Router
from moesim.routing.routers.scores import perturbed, sigmoid
from moesim.routing.routers.successive import among_first
from moesim.specs.model import RouterSpec


class Base(Router):
    """The assignment of highest total logit in which every expert gets T / E tokens; weight = sigmoid of the logit.

    Exact up to `auction.EXACT_TOKENS` tokens, beyond within 2 % of a standard deviation of the best mean.
    Without `balancing` (inference) each token takes its highest logit. `shuffle`: tokens are first spread at random
    over the ranks, so that each rank's batch is mixed: a second pair of all-to-alls, and no other choice here.
    """

    effect = Effect(
        bytes="One copy a token; with the shuffle each token crosses the network twice as often.",
        drops="None in training; greedy inference drops above a capacity.",
        balance="Perfect in training by construction; greedy at inference, hence as uneven as first choices.",
    )
    only_top_k = 1

    def __init__(self, spec: RouterSpec, experts: int, top_k: int) -> None:
        super().__init__(spec, experts, top_k)
        self.balanced = spec.balancing

    @property
    def exchanges(self) -> int:
        """Two where tokens are shuffled first."""
        return 2 if self.spec.shuffle else 1

    def expected(self, weights: Floats) -> Floats:
        """1 / E copies [..., E] where balanced, else the share of the weight."""
        weights = np.asarray(weights, dtype=np.float64)
        return np.full(weights.shape, 1.0 / self.experts) if self.balanced else among_first(weights, 1)

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        logits = perturbed(logits, self.spec, batch.generator)
        experts = balanced_assignment(logits) if self.balanced else logits.argmax(axis=1)
        gate = sigmoid(np.take_along_axis(logits, experts[:, None], axis=1))
        return Assignment(experts[:, None], (gate * self.spec.scale).astype(np.float32))
