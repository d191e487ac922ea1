"""Top-k routers: the K experts of highest score, after a softmax over all experts or a sigmoid of each one."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Floats, Router
from moesim.routing.routers.group_limited import check_groups, limit_to_groups
from moesim.specs.model import RouterSpec


class TopKRouter(Router):
    """Scores, an optional limit to the best groups, the K best; of equal scores the lower expert is better.

    Where log(w) plus Gumbel noise are the logits, an expert's score is 1 / (`race_offset` + its arrival time in a race
    at rate w), up to a factor common to the token: the sampler's form of the same rule.
    """

    race_offset: ClassVar[float]

    def __init__(self, spec: RouterSpec, experts: int, top_k: int) -> None:
        super().__init__(spec, experts, top_k)
        check_groups(spec, experts, top_k)

    @abstractmethod
    def scores(self, logits: Floats) -> Floats:
        """Positive scores [T, E]."""

    def choose(self, logits: Floats, bias: Floats | None = None) -> Assignment:
        """Assign tokens by their logits [T, E]; a bias [E] counts in the choice and not in the weights."""
        scores = self.scores(np.asarray(logits, dtype=np.float64))
        chosen_by = scores if bias is None else scores + bias
        if self.spec.groups > 1:
            chosen_by = limit_to_groups(chosen_by, self.spec.groups, self.spec.top_groups, self.spec.group_score)
        experts = np.argsort(-chosen_by, axis=1, kind="stable")[:, : self.top_k]
        weights = np.take_along_axis(scores, experts, axis=1)
        if self.spec.renormalize:
            weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return Assignment(experts, (weights * self.spec.scale).astype(np.float32))


class SoftmaxTopK(TopKRouter):
    """Softmax over all experts, then the K best (Mixtral, Qwen, DeepSeek-V2)."""

    race_offset = 0.0

    def scores(self, logits: Floats) -> Floats:
        """Softmax over the experts."""
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class SigmoidTopK(TopKRouter):
    """Sigmoid of each logit, then the K best (DeepSeek-V3)."""

    race_offset = 1.0

    def scores(self, logits: Floats) -> Floats:
        """Sigmoid of each logit, stable at both ends."""
        small = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1.0, small) / (1.0 + small)
