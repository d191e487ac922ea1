"""What a case of each kind says about its operation: the keys of `op`, with units and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from moesim.errors import UserError, shorten
from moesim.specs.base import Spec
from moesim.units import BytesPerSecond
from moesim.validation.fields import (
    MOST_TOKENS,
    GpuOp,
    Load,
    Name,
    Ranks,
    Size,
    Small,
    Tokens,
    Told,
    enough_experts,
    whole,
)
from moesim.validation.kernel_ops import AttentionOp, ExpertOp, GemmOp, GroupedOp, LaunchOp, MemoryOp
from moesim.validation.words import key_name, unknown_key


class GroupOp(GpuOp):
    """An operation of `ranks` GPUs, `ranks_per_domain` of them in one scale-up domain."""

    ranks: Small
    ranks_per_domain: Small | None = None
    nodes: Small | None = None
    nic: BytesPerSecond | None = None
    nics_per_domain: Small | None = None
    fabric: Name | dict[str, Any] | None = None
    library: Name = "nccl"

    @model_validator(mode="after")
    def _fits(self) -> GroupOp:
        if self.nodes and self.ranks % self.nodes:
            raise ValueError(f"{self.ranks} ranks do not fill {self.nodes} nodes evenly")
        if self.nodes and self.ranks_per_domain and self.ranks != self.nodes * self.ranks_per_domain:
            raise ValueError(f"{self.nodes} nodes of {self.ranks_per_domain} ranks are not {self.ranks} ranks")
        return self


class CollectiveOp(GroupOp):
    """One collective. `bytes` as nccl-tests count them: the send buffer of a rank, of an all-gather the gathered whole.
    `imbalance`: bytes of the busiest rank over the mean."""

    collective: Name = "all-to-all"
    bytes: Size
    dtype: str | None = None
    imbalance: Annotated[float, Field(ge=1.0, le=1e6)] = 1.0


class Groups(Spec):
    """Group-limited routing: a token chooses among the experts of `top` of `count` groups."""

    count: Small
    top: Small

    @model_validator(mode="after")
    def _fewer(self) -> Groups:
        if self.top > self.count:
            raise ValueError(f"{self.top} of {self.count} groups")
        return self


class ExchangeOp(GroupOp):
    """Dispatch and combine of `tokens` tokens a rank. `load`: uniform (random experts), balanced (forced), or one of
    the uneven loads of expert kernels; None: what the library's own benchmarks run. `imbalance`: tokens of the busiest
    rank over the mean. `notify`: with the agreement on counts that stands beside the kernel."""

    ranks: Ranks
    tokens: Tokens
    hidden: Small
    top_k: Small
    experts: Small
    dispatch: Name = "bf16"
    combine: Name = "bf16"
    dtype: str | None = None
    sms: Small | None = None
    groups: Groups | None = None
    load: Load | None = None
    imbalance: Annotated[float, Field(ge=1.0, le=1e6)] | None = None
    notify: bool = False

    @model_validator(mode="before")
    @classmethod
    def _groups_in_two_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and "top_groups" in data:
            data = dict(data)
            data["groups"] = {"count": data.get("groups", 1), "top": data.pop("top_groups")}
        if isinstance(data, dict) and "dtype" in data and "dispatch" not in data:
            data = {**data, "dispatch": data["dtype"]}
        return data

    @model_validator(mode="after")
    def _possible(self) -> ExchangeOp:
        enough_experts(self.top_k, self.experts)
        return self


class LayerOp(ExchangeOp):
    """One MoE layer forward: dispatch, experts, combine; `tokens` a rank, `ranks` hold all experts."""

    inter: Small
    expert_tensor: Small = 1
    expert_dtype: str | None = None
    matrices: Annotated[int, Field(ge=2, le=3)] = 3
    real_weights: bool = True

    @model_validator(mode="after")
    def _spread(self) -> LayerOp:
        if self.ranks > self.experts:
            raise ValueError(f"{self.experts} experts cannot be spread over {self.ranks} ranks")
        if self.tokens * self.ranks > MOST_TOKENS:
            raise ValueError(f"{self.ranks} ranks of {self.tokens} tokens: at most {MOST_TOKENS} tokens are predicted")
        return self


class RoutingOp(Told):
    """Batches of `sequences` sequences drawn from a load profile, their experts spread over `expert_parallel` ranks.

    `layer` of the profile's model (None: mean over its layers); `tokens` of a sequence (None: as long as recorded);
    `domain`: of that domain's sequences alone. `experts` and `top_k` where the profile does not know them.
    """

    profile: Name
    layer: Annotated[int, BeforeValidator(whole), Field(ge=0, le=10_000)] | None = None
    sequences: Small = 1
    expert_parallel: Small = 8
    tokens: Tokens | None = None
    experts: Small | None = None
    top_k: Small | None = None
    model: Name | None = None
    domain: Name | None = None
    moment: Name | None = None
    seed: int = 0


KINDS: dict[str, type[Spec]] = {
    "all_to_all": CollectiveOp,
    "collective": CollectiveOp,
    "dispatch_combine": ExchangeOp,
    "expert_gemm": ExpertOp,
    "gemm": GemmOp,
    "grouped_gemm": GroupedOp,
    "attention": AttentionOp,
    "memory_bound": MemoryOp,
    "launch": LaunchOp,
    "moe_layer": LayerOp,
    "routing": RoutingOp,
}
"""The kinds that are described by an `op`; `train_step` and `serving` are described by a scenario."""

TOLD = {
    "backend", "framework", "system", "device", "note", "comment", "model", "source", "driver", "repeats", "spread",
    "op_name", "src_file", "implementation", "simulation_mode", "moe_kernel", "dp_num_tokens", "duplicate_of", "name",
}  # fmt: skip
"""Keys that may tell where a number comes from; they change no prediction."""

ROUTING_KEYS = {"sequence_length": "tokens", "seq_len": "tokens", "length": "tokens", "batch": "sequences"}


def read_op(kind: str, op: Mapping[str, Any]) -> Spec:
    """The operation of a case; raises `UserError` for a key that is not known, pydantic's error for a wrong value."""
    spec = KINDS[kind]
    known = {*spec.model_fields, *({"top_groups"} if "groups" in spec.model_fields else ())}
    found: dict[str, Any] = {}
    for key, value in op.items():
        name = key_name(str(key), known)
        if spec is RoutingOp:
            name = ROUTING_KEYS.get(name, name)
        if name not in known:
            if name in TOLD:
                continue
            raise UserError(unknown_key(str(key), known))
        if name in found and found[name] != value:
            raise UserError(f"op.{shorten(key)}: {name} is given twice")
        found[name] = value
    return spec.model_validate({key: value for key, value in found.items() if value is not None})
