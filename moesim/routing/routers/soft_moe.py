"""Soft MoE: every slot is a mix of all tokens (Puigcerver et al. 2023; vmoe/projects/soft_moe/router.py)."""

from __future__ import annotations

import numpy as np

from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Router
from moesim.routing.routers.scores import numbered


class SoftMoE(Router):
    """No choice: each expert computes `slots` rows of every sequence, each a mix of all its tokens.

    Rows of the assignment are slots, E x `slots` for each sequence, expert by expert; the weight of each is 1, the
    mixing being done before and after the experts. Logits say nothing but how many tokens and sequences there are.
    """

    effect = Effect(
        bytes="E x slots rows of a sequence, whatever the routing and however many its tokens.",
        drops="None: every token is part of every slot.",
        balance="Perfect by construction.",
    )
    only_top_k = 1
    balanced = True
    slotted = True

    def expected(self, weights: Floats) -> Floats:
        """Copies [..., E] of one slot: 1 / E."""
        return np.full(np.shape(weights), 1.0 / self.experts)

    def copies(self, tokens: float, sequences: float) -> float:
        """Slots of so many sequences."""
        return sequences * self.experts * self.spec.slots

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        _, counts = numbered(batch.sequence, len(logits))
        rows = np.tile(np.repeat(np.arange(self.experts), self.spec.slots), len(counts))
        return Assignment(rows[:, None], np.full((rows.size, 1), self.spec.scale, dtype=np.float32))
