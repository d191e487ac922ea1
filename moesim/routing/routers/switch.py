"""Switch routing: one expert a token (Fedus et al. 2021; mesh_tensorflow/transformer/moe.py, _switch_gating)."""

from __future__ import annotations

from moesim.routing.routers.base import Effect
from moesim.routing.routers.top_k import SoftmaxTopK


class SwitchTop1(SoftmaxTopK):
    """The most probable expert, weighted by its probability, which is not renormalised; logits jittered in training."""

    effect = Effect(
        bytes="One copy a token: the least that any rule without empty tokens can send.",
        drops="Meant for a capacity: an expert's excess passes the layer on the residual path alone.",
        balance="As uneven as first choices are, the least even of all; needs the auxiliary loss E sum f P.",
    )
    only_top_k = 1

    @property
    def renormalizes(self) -> bool:
        """Never: the probability is what trains the router."""
        return False
