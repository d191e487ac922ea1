"""Expert choice: each expert takes its best tokens (Zhou et al. 2022; flaxformer, ExpertsChooseMaskedRouter)."""

from __future__ import annotations

import numpy as np

from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Integers, Router
from moesim.routing.routers.scores import numbered, padded, perturbed, softmax


class ExpertChoice(Router):
    """Each expert takes its C most probable tokens of every sequence; a token gets from none to all of the experts.

    C = T K / E of the sequence's T tokens, rounded, at least one and at most T; without sequences all rows are one.
    Weights are router probabilities. Not causal: whether a token is taken depends on later ones.
    """

    effect = Effect(
        bytes="K copies a token on average, many for some tokens and none for others.",
        drops="No overflow; tokens that no expert takes pass on the residual path.",
        balance="Every expert gets the same rows of each sequence by construction.",
    )
    balanced = True
    variable = True

    def expected(self, weights: Floats) -> Floats:
        """K / E copies [..., E] whatever the weights, but for the rounding of C."""
        return np.full(np.shape(weights), self.top_k / self.experts)

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        scores = softmax(perturbed(logits, self.spec, batch.generator))
        index, counts = numbered(batch.sequence, len(logits))
        taken = _best_tokens(scores, index, counts, self.capacity(counts))
        return padded(taken, scores, scores, self.spec.scale)

    def copies(self, tokens: float, sequences: float) -> float:
        """Rows of so many tokens in so many sequences: what each expert takes of each, rounded."""
        return sequences * self.experts * float(self.capacity(np.array([round(tokens / sequences)]))[0])

    def capacity(self, tokens: Integers) -> Integers:
        """Tokens [S] that each expert takes of sequences of so many `tokens` [S]."""
        rows = np.rint(tokens * self.top_k / self.experts).astype(np.int64)
        return np.clip(rows, np.minimum(tokens, 1), tokens)


def _best_tokens(scores: Floats, index: Integers, counts: Integers, capacity: Integers) -> np.ndarray:
    """Which tokens [T, E] are among the `capacity` best of their sequence, by expert; of equals the earlier is better.

    Tokens are put in order of score, then, keeping that order, by sequence: places are counted from its start.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    order = np.take_along_axis(order, np.argsort(index[order], axis=0, kind="stable"), axis=0)
    start = np.cumsum(counts) - counts
    by_sequence = np.sort(index)
    within = np.arange(len(index)) - start[by_sequence] < capacity[by_sequence]
    taken = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(taken, order, np.broadcast_to(within[:, None], scores.shape), axis=0)
    return taken
