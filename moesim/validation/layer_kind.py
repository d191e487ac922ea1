"""One MoE layer forward: dispatch, the experts of the busiest rank, combine, one after the other."""

from __future__ import annotations

from moesim.routing.expected import distinct_places
from moesim.validation.answer import Prediction, Settings, added
from moesim.validation.compute_kinds import expert_gemm
from moesim.validation.kernel_ops import ExpertOp
from moesim.validation.network_kinds import dispatch_combine
from moesim.validation.ops import LayerOp

_OWN = ("inter", "expert_tensor", "kernel", "matrices", "real_weights", "hidden", "top_k", "experts", "gpu")
_SOFTWARE = ("software", "stack")


def moe_layer(op: LayerOp, settings: Settings) -> dict[str, Prediction]:
    """`time`, and its parts `dispatch_time`, `expert_time` and `combine_time`.

    The experts' kernels are presented with the distinct tokens that the exchange brings to a rank.
    """
    groups = (op.groups.count, op.groups.top) if op.groups else (1, 1)
    distinct = distinct_places(op.ranks, op.experts, op.top_k, *groups)
    experts = ExpertOp(
        **{name: getattr(op, name) for name in (*_OWN, *_SOFTWARE)},
        tokens=op.tokens * op.ranks,
        expert_parallel=op.ranks,
        dtype=op.expert_dtype or op.dtype or "bf16",
        load=op.load or "balanced",
        presented_tokens=max(1, round(op.tokens * distinct)),
    )
    parts = {"expert_time": expert_gemm(experts, settings)["time"]}
    if op.ranks > 1:
        moved = dispatch_combine(op, settings)
        parts |= {name: moved[name] for name in ("dispatch_time", "combine_time")}
    return {**parts, "time": added(parts.values())}
