"""Routing networks: one choice a layer for a whole sample or task (Rosenbaum et al. 2017)."""

from __future__ import annotations

import numpy as np

from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Batch, Effect, Floats
from moesim.routing.routers.scores import numbered
from moesim.routing.routers.top_k import SoftmaxTopK


class RoutingNetwork(SoftmaxTopK):
    """All tokens of a sequence choose alike, by the softmax of their mean logits; so do all of a task.

    With `tasks` > 0 a sequence's task is its number modulo `tasks`. Without sequences the batch is one. The law of
    logits, and `expected`, speak of a sequence's mean logits: tokens that drew noise of their own would cancel it.
    """

    effect = Effect(
        bytes="K copies a token, all tokens of a sequence to the same ranks.",
        drops="Above a capacity whole stretches of a sequence are dropped together.",
        balance="As few draws as sequences: far less even than by token, and idle experts in small batches.",
    )
    by_sequence = True

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        sequence = batch.sequence
        if sequence is not None and self.spec.tasks:
            sequence = np.asarray(sequence) % self.spec.tasks
        index, counts = numbered(sequence, len(logits))
        sums = np.zeros((len(counts), self.experts))
        np.add.at(sums, index, logits)
        found = super()._assign(sums / counts[:, None], bias, batch)
        return Assignment(found.experts[index], found.weights[index])
