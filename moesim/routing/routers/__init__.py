"""Routers by name; a new rule is a file here, a line in `ROUTERS` and an entry of its name in the catalog."""

from __future__ import annotations

from moesim.errors import UnknownNameError
from moesim.routing.routers.base import Router
from moesim.routing.routers.base_layers import Base
from moesim.routing.routers.expert_choice import ExpertChoice
from moesim.routing.routers.gshard import GShardTop2
from moesim.routing.routers.hash_layer import Hash
from moesim.routing.routers.hierarchical import HierarchicalTopK
from moesim.routing.routers.noisy import NoisyTopK
from moesim.routing.routers.quantile import QuantileBalanced
from moesim.routing.routers.remoe import ReMoE
from moesim.routing.routers.routing_network import RoutingNetwork
from moesim.routing.routers.sinkhorn import Sinkhorn
from moesim.routing.routers.soft_moe import SoftMoE
from moesim.routing.routers.switch import SwitchTop1
from moesim.routing.routers.top_k import SigmoidTopK, SoftmaxTopK
from moesim.routing.routers.top_p import TopP
from moesim.specs.model import RouterSpec

ROUTERS: dict[str, type[Router]] = {
    "softmax-top-k": SoftmaxTopK,
    "sigmoid-top-k": SigmoidTopK,
    "switch-top-1": SwitchTop1,
    "noisy-top-k": NoisyTopK,
    "hierarchical-top-k": HierarchicalTopK,
    "gshard-top-2": GShardTop2,
    "expert-choice": ExpertChoice,
    "soft-moe": SoftMoE,
    "base": Base,
    "hash": Hash,
    "sinkhorn": Sinkhorn,
    "quantile-balanced": QuantileBalanced,
    "top-p": TopP,
    "remoe": ReMoE,
    "routing-network": RoutingNetwork,
}


def router(spec: RouterSpec, experts: int, top_k: int) -> Router:
    """The router that a spec describes, for a layer of `experts`; raises UserError where the numbers do not fit."""
    return _rule(spec.rule)(spec, experts, top_k)


def describe(rule: str) -> dict[str, str]:
    """What a rule is, in a sentence, and what it does to dispatched bytes, to drops and to balance."""
    found = _rule(rule)
    summary = (found.__doc__ or "").split("\n\n")[0]
    effect = found.effect
    return {
        "summary": " ".join(summary.split()),
        "bytes": effect.bytes,
        "drops": effect.drops,
        "balance": effect.balance,
    }


def _rule(name: str) -> type[Router]:
    if name not in ROUTERS:
        raise UnknownNameError("router rule", name, ROUTERS)
    return ROUTERS[name]
