"""Dynamic top-p routing: as many experts as it takes to be sure (Huang et al. 2024, Harder Tasks Need More Experts)."""

from __future__ import annotations

import numpy as np

from moesim.errors import UserError
from moesim.randomness import Streams
from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Integers, Router
from moesim.routing.routers.scores import best, padded, perturbed, renormalized, softmax
from moesim.routing.routers.successive import among_first
from moesim.specs.model import RouterSpec

_SAMPLE = 1024


class TopP(Router):
    """Experts in falling probability until these add up to `top_p`; one at least, `max_choices` at most.

    K plays no part in the choice. Weights are the probabilities, divided by their sum where the spec renormalises.
    """

    effect = Effect(
        bytes="As many copies as the token is uncertain: one where the router is sure, up to max_choices.",
        drops="None of its own.",
        balance="As uneven as popularity; an entropy loss keeps the number of experts from growing.",
    )
    variable = True

    def __init__(self, spec: RouterSpec, experts: int, top_k: int) -> None:
        super().__init__(spec, experts, top_k)
        if spec.top_p is None:
            raise UserError("router rule top-p needs top_p, the probability to reach (0 to 1)")
        if spec.max_choices is not None and spec.max_choices > experts:
            raise UserError(f"router: max_choices is {spec.max_choices}, but there are only {experts} experts")
        self.top_p = spec.top_p
        self.most = spec.max_choices or experts

    def expected(self, weights: Floats) -> Floats:
        """Copies [..., E] of one token: inclusion, averaged over the number of choices.

        That number is taken from a fixed sample of 1024 tokens, stratified by expert, and taken to be independent of
        which experts come first; its mean is then within 2 % of the true one. Jitter and noise are left out.
        """
        weights = np.asarray(weights, dtype=np.float64)
        rows = weights.reshape(-1, self.experts)
        # How many are needed does not depend on the experts' names: rows alike but for the order are sampled once.
        kinds, kind = np.unique(np.sort(rows, axis=1), axis=0, return_inverse=True)
        times = _stratified_times(self.experts)
        needed = np.stack([self._needed(softmax(np.log(one) - np.log(times))) for one in kinds])[kind.reshape(-1)]
        found = np.zeros_like(rows)
        for count in np.unique(needed):
            found += (needed == count).mean(axis=1, keepdims=True) * among_first(rows, int(count))
        return found.reshape(weights.shape)

    def _needed(self, scores: Floats) -> Integers:
        """How many experts [T] it takes to reach top_p, by probabilities [T, E]."""
        falling = np.sort(scores, axis=1)[:, ::-1]
        short = np.cumsum(falling, axis=1)[:, :-1] < self.top_p
        return np.asarray(np.minimum(1 + short.sum(axis=1), self.most))

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        scores = softmax(perturbed(logits, self.spec, batch.generator))
        first = np.arange(self.experts) < self._needed(scores)[:, None]
        chosen = np.zeros(scores.shape, dtype=bool)
        np.put_along_axis(chosen, best(scores, self.experts), first, axis=1)
        weights = np.where(chosen, scores, 0.0)
        return padded(chosen, scores, renormalized(weights) if self.spec.renormalize else weights, self.spec.scale)


def _stratified_times(experts: int) -> Floats:
    """Exponential times [1024, E], those of each expert one from each of as many equal parts of their law."""
    generator = Streams(0).generator("routing/top-p")
    parts = np.arange(_SAMPLE)[:, None] + generator.random((_SAMPLE, experts))
    return np.asarray(-np.log1p(-generator.permuted(parts, axis=0) / _SAMPLE))
