"""What a case of each kind says about its operation: the keys of `op`, with units and defaults."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from moesim.errors import UserError, shorten
from moesim.specs.base import Spec
from moesim.units import BytesPerSecond, parse
from moesim.validation.words import key_name, unknown_key

MOST = 1 << 40
MOST_TOKENS = 1 << 24


def _count(value: object) -> int:
    """A whole number, from text or float too."""
    try:
        number = parse(value, "token")
    except UserError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"expected a whole number, got {shorten(value)}")
    return int(number)


def _bytes(value: object) -> float:
    number = parse(value, "B")
    if not 0 < number <= 1e15:
        raise ValueError(f"must be above 0 and at most 1e15 B, got {number:g}")
    return number


def _list(value: object) -> object:
    """A list, from the JSON text that measurement tables hold too."""
    return json.loads(value) if isinstance(value, str) else value


Count = Annotated[int, BeforeValidator(_count), Field(ge=1, le=MOST)]
Tokens = Annotated[int, BeforeValidator(_count), Field(ge=1, le=MOST_TOKENS)]
Ranks = Annotated[int, BeforeValidator(_count), Field(ge=1, le=4096)]
Small = Annotated[int, BeforeValidator(_count), Field(ge=1, le=1 << 20)]
Size = Annotated[float, BeforeValidator(_bytes)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class GpuOp(Spec):
    """An operation of one GPU: a catalog name, or `{base: NAME, field: value}`; the release is told, not used."""

    gpu: Name | dict[str, Any]
    release: str | float | None = None


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
    load: Name | None = None
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
        _enough_experts(self.top_k, self.experts)
        return self


class GemmOp(GpuOp):
    """x [m, k] times w [k, n]. `quantize`: whether the time holds bringing x to the format."""

    m: Count
    n: Count
    k: Count
    dtype: Name = "bf16"
    kernel: str | None = None
    quantize: bool = True


class ExpertOp(GpuOp):
    """The expert layer on the busiest rank; `tokens` of the whole expert-parallel group, `inter` before the tensor
    split, `slots` expert places with redundant copies, `rows` of each local expert where they are known."""

    tokens: Tokens
    hidden: Small
    inter: Small
    top_k: Small
    experts: Small
    expert_parallel: Small = 1
    expert_tensor: Small = 1
    dtype: Name = "bf16"
    load: Name = "balanced"
    kernel: str | None = None
    matrices: Annotated[int, Field(ge=2, le=3)] = 3
    real_weights: bool = False
    presented_tokens: Tokens | None = None
    slots: Small | None = None
    rows: Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(_list)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> ExpertOp:
        if self.expert_parallel > self.experts:
            raise ValueError(f"{self.experts} experts cannot be spread over {self.expert_parallel} ranks")
        _enough_experts(self.top_k, self.experts)
        return self


class LayerOp(ExchangeOp):
    """One MoE layer forward: dispatch, experts, combine; `tokens` a rank, `ranks` hold all experts."""

    inter: Small
    expert_tensor: Small = 1
    expert_dtype: str | None = None
    kernel: str | None = None
    matrices: Annotated[int, Field(ge=2, le=3)] = 3
    real_weights: bool = True

    @model_validator(mode="after")
    def _spread(self) -> LayerOp:
        if self.ranks > self.experts:
            raise ValueError(f"{self.experts} experts cannot be spread over {self.ranks} ranks")
        if self.tokens * self.ranks > MOST_TOKENS:
            raise ValueError(f"{self.ranks} ranks of {self.tokens} tokens: at most {MOST_TOKENS} tokens are predicted")
        return self


class AttentionOp(GpuOp):
    """Core attention of `tokens` queries, all `sequences` together, against `length` keys of each; `latent` where keys
    and values are one tensor."""

    tokens: Count
    length: Count
    heads: Small
    kv_heads: Small | None = None
    head_dim: Small = 128
    value_dim: Small | None = None
    causal: bool = True
    direction: Name = "forward"
    dtype: Name = "bf16"
    sequences: Count | None = None
    latent: bool = False
    kernel: str | None = None


class MemoryOp(GpuOp):
    """A pass over memory; what `elements` counts is said in the columns of measurement tables. `top_k`: rows of which
    an unpermute makes one."""

    what: Name
    elements: Count
    dtype: Name = "bf16"
    top_k: Small | None = None
    tokens: Tokens | None = None
    hidden: Small | None = None
    experts: Small | None = None
    kernel: str | None = None


class RoutingOp(Spec):
    """Batches of `sequences` sequences drawn from a load profile, their experts spread over `expert_parallel` ranks.

    `layer` of the profile's model (None: mean over its layers); `tokens` of a sequence (None: as long as recorded);
    `domain`: of that domain's sequences alone. `experts` and `top_k` where the profile does not know them.
    """

    profile: Name
    layer: Annotated[int, BeforeValidator(_count), Field(ge=0, le=10_000)] | None = None
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
    "attention": AttentionOp,
    "memory_bound": MemoryOp,
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


def _enough_experts(top_k: int, experts: int) -> None:
    if top_k > experts:
        raise ValueError(f"top_k {top_k} of only {experts} experts")
