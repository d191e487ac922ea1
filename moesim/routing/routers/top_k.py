"""Top-k routers: the K experts of highest score, after a softmax over all experts or a sigmoid of each one.

Shazeer et al. 2017; transformers sources of Mixtral and Qwen; DeepSeek-V2 report 2.2; DeepSeek-V3 report 2.1.2.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Router
from moesim.routing.routers.group_limited import check_groups, limit_to_groups
from moesim.routing.routers.scores import best, perturbed, renormalized, sigmoid, softmax
from moesim.routing.routers.successive import among_first, tempered
from moesim.specs.model import RouterSpec


class TopKRouter(Router):
    """Scores, an optional limit to the best groups, the K best; of equal scores the lower expert is better.

    Where log(w) plus Gumbel noise are the logits, an expert's score is 1 / (`race_offset` + its arrival time in a race
    at rate w), up to a factor common to the token: the sampler's form of the same rule. `jitter` and `noise` of the
    spec act where the batch brings a generator.
    """

    effect = Effect(
        bytes="K copies a token, fewer where copies to one rank or node share a row; a group limit caps the nodes.",
        drops="None of its own; above a capacity the excess of each expert is dropped.",
        balance="As uneven as the experts are popular; an auxiliary loss or a bias has to level it.",
    )
    race_offset: ClassVar[float]
    takes_bias = True
    takes_groups = True

    def __init__(self, spec: RouterSpec, experts: int, top_k: int) -> None:
        super().__init__(spec, experts, top_k)
        check_groups(spec, experts, top_k)

    @abstractmethod
    def scores(self, logits: Floats) -> Floats:
        """Positive scores [T, E]."""

    @property
    def renormalizes(self) -> bool:
        """Whether the kept scores are divided by their sum."""
        return self.spec.renormalize

    def expected(self, weights: Floats) -> Floats:
        """Copies [..., E] of one token by inclusion: exact for K up to 2. A group limit is left out, which is exact
        for even weights alone; so is jitter. Noise is taken as drawn."""
        return among_first(tempered(np.asarray(weights, dtype=np.float64), self.spec.noise, self.top_k), self.top_k)

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        scores = self.scores(perturbed(logits, self.spec, batch.generator))
        chosen_by = scores if bias is None else scores + bias
        if self.spec.groups > 1:
            chosen_by = limit_to_groups(chosen_by, self.spec.groups, self.spec.top_groups, self.spec.group_score)
        experts = best(chosen_by, self.top_k)
        weights = np.take_along_axis(scores, experts, axis=1)
        if self.renormalizes:
            weights = renormalized(weights)
        return Assignment(experts, (weights * self.spec.scale).astype(np.float32))


class SoftmaxTopK(TopKRouter):
    """Softmax over all experts, then the K best (Mixtral, Qwen, DeepSeek-V2); renormalised, it is the softmax over the
    K best logits (gpt-oss)."""

    race_offset = 0.0

    def scores(self, logits: Floats) -> Floats:
        """Softmax over the experts."""
        return softmax(logits)


class SigmoidTopK(TopKRouter):
    """Sigmoid of each logit, then the K best (DeepSeek-V3; Llama-4, whose gate scales the expert's input)."""

    race_offset = 1.0

    def scores(self, logits: Floats) -> Floats:
        """Sigmoid of each logit."""
        return sigmoid(logits)
