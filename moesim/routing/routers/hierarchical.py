"""Two-level gating: groups first, then experts within them (Shazeer et al. 2017, appendix B; mesh_tensorflow's
transformer_moe_layer_v2)."""

from __future__ import annotations

import numpy as np

from moesim.errors import UserError
from moesim.randomness import Streams
from moesim.routing.assignment import Assignment
from moesim.routing.routers.base import Batch, Effect, Floats, Router
from moesim.routing.routers.group_limited import check_groups
from moesim.routing.routers.scores import best, perturbed, softmax
from moesim.routing.routers.successive import among_first, tempered
from moesim.specs.model import RouterSpec

_SAMPLE = 8192
_GUMBEL_DEVIATION = np.pi / np.sqrt(6.0)


class HierarchicalTopK(Router):
    """The best `top_groups` of `groups` groups, then the K / `top_groups` best experts of each; weights multiply.

    A group's logit is the log of its experts' summed powers, so that its primary probability is theirs together. Each
    level is a softmax over what it keeps; the groups are contiguous runs of experts. T tokens, G groups, L kept.
    """

    effect = Effect(
        bytes="K copies a token in two hops: to the groups kept (one row each), then within them.",
        drops="None of its own; a capacity acts at each level.",
        balance="Each level has a balance of its own: a popular group makes all its experts busy.",
    )
    takes_groups = True

    def __init__(self, spec: RouterSpec, experts: int, top_k: int) -> None:
        super().__init__(spec, experts, top_k)
        if top_k % spec.top_groups:
            raise UserError(f"router: top_k {top_k} is not shared out evenly over top_groups {spec.top_groups}")
        check_groups(spec, experts, top_k)

    @property
    def exchanges(self) -> int:
        """Two: one a level."""
        return 2

    def expected(self, weights: Floats) -> Floats:
        """Copies [..., E] of one token: the chance of the group times that of the expert within it.

        A group's score is a sum of Frechet numbers, less random than a single one: its mean log and deviation are
        taken from a fixed sample, its shape as Gumbel's. K / L choices within are as if the group were a layer.
        """
        weights = np.asarray(weights, dtype=np.float64)
        G, L = self.spec.groups, self.spec.top_groups
        grouped = weights.reshape(*weights.shape[:-1], G, self.experts // G)
        generator, shape = Streams(0).generator("routing/hierarchical"), (_SAMPLE, self.experts // G)
        powers = np.exp(generator.gumbel(size=shape) + self.spec.noise * generator.standard_normal(shape))
        logs = np.log(np.tensordot(powers, grouped, axes=(1, grouped.ndim - 1)))
        steeper = _GUMBEL_DEVIATION / logs.std(axis=0).mean(axis=-1, keepdims=True)
        middle = logs.mean(axis=0) * steeper
        groups = among_first(np.exp(middle - middle.max(axis=-1, keepdims=True)), L)
        within = among_first(tempered(grouped, self.spec.noise, self.top_k // L), self.top_k // L)
        return np.asarray((groups[..., None] * within).reshape(weights.shape))

    def _assign(self, logits: Floats, bias: Floats | None, batch: Batch) -> Assignment:
        G, L = self.spec.groups, self.spec.top_groups
        T, size = len(logits), self.experts // G
        grouped = perturbed(logits, self.spec, batch.generator).reshape(T, G, size)
        peak = grouped.max(axis=2)
        group_logits = peak + np.log(np.exp(grouped - peak[:, :, None]).sum(axis=2))
        groups = best(group_logits, L)
        primary = softmax(np.take_along_axis(group_logits, groups, axis=1))
        within = np.take_along_axis(grouped, groups[:, :, None], axis=1)
        places = best(within, self.top_k // L)
        weights = primary[:, :, None] * softmax(np.take_along_axis(within, places, axis=2))
        experts = (groups[:, :, None] * size + places).reshape(T, self.top_k)
        weights = weights.reshape(T, self.top_k)
        order = best(weights, self.top_k)
        sorted_weights = np.take_along_axis(weights, order, axis=1) * self.spec.scale
        return Assignment(np.take_along_axis(experts, order, axis=1), sorted_weights.astype(np.float32))
