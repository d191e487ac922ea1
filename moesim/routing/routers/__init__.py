"""Routers by name; a new rule is a file here and a line in `ROUTERS`."""

from __future__ import annotations

from moesim.errors import UnknownNameError
from moesim.routing.routers.base import Router
from moesim.routing.routers.top_k import SigmoidTopK, SoftmaxTopK
from moesim.specs.model import RouterSpec

ROUTERS: dict[str, type[Router]] = {"softmax-top-k": SoftmaxTopK, "sigmoid-top-k": SigmoidTopK}


def router(spec: RouterSpec, experts: int, top_k: int) -> Router:
    """The router that a spec describes, for a layer of `experts`; raises UserError where the numbers do not fit."""
    if spec.rule not in ROUTERS:
        raise UnknownNameError("router rule", spec.rule, ROUTERS)
    return ROUTERS[spec.rule](spec, experts, top_k)
