"""What a case says about a kernel of one GPU: the keys of `op`, with units and defaults."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from moesim.specs.base import Spec
from moesim.validation.fields import Count, GpuOp, Load, Name, Share, Small, Tokens, as_list, enough_experts

Rows = Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(as_list)]


class GemmOp(GpuOp):
    """x [m, k] times w [k, n]. `quantize`: whether the time holds bringing x to the format; `free_share` of the
    multiprocessors compute, for others carry messages."""

    m: Count
    n: Count
    k: Count
    dtype: Name = "bf16"
    quantize: bool = True
    free_share: Share = 1.0


class GroupedOp(GpuOp):
    """Products [rows_e, k] x [k, n] of several experts in one kernel, activations already converted: `rows` of each, or
    `groups` of `m` rows. `product`: forward, dgrad or wgrad of the layer."""

    n: Count
    k: Count
    m: Count | None = None
    groups: Small | None = None
    rows: Rows | None = None
    dtype: Name = "bf16"
    product: Name = "forward"
    free_share: Share = 1.0

    @model_validator(mode="after")
    def _some_rows(self) -> GroupedOp:
        if (self.rows is None) == (self.m is None):
            raise ValueError("give either rows of each group, or m rows of each of `groups` groups")
        return self

    @property
    def each(self) -> tuple[float, ...]:
        """Rows of each group."""
        return self.rows if self.rows is not None else (float(self.m or 0),) * (self.groups or 1)


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
    load: Load = "balanced"
    matrices: Annotated[int, Field(ge=2, le=3)] = 3
    real_weights: bool = False
    presented_tokens: Tokens | None = None
    slots: Small | None = None
    rows: Rows | None = None

    @model_validator(mode="after")
    def _possible(self) -> ExpertOp:
        if self.expert_parallel > self.experts:
            raise ValueError(f"{self.experts} experts cannot be spread over {self.expert_parallel} ranks")
        enough_experts(self.top_k, self.experts)
        return self


class Latent(Spec):
    """Sizes of MLA's heads; the defaults are DeepSeek-V3's."""

    rank: Small = 512
    nope: Small = 128
    rope: Small = 64
    value: Small = 128
    absorbed: bool = False


class AttentionOp(GpuOp):
    """Core attention of `tokens` queries, all `sequences` together, against `length` keys of each. `latent`: keys and
    values are one tensor; or the heads of MLA, `{rank, nope, rope, value, absorbed}`, for the sizes of heads."""

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
    latent: bool | Latent = False
    free_share: Share = 1.0


class MemoryOp(GpuOp):
    """A pass over memory, or what is built of passes and products. What `elements` counts is said in the columns of
    measurement tables; without it, `tokens` x `hidden`. `top_k`: rows of which an unpermute makes one. Router:
    `tokens`, `hidden`, `experts`; head: `tokens`, `hidden`, `vocabulary`; mtp: `tokens`, `hidden`; optimizer:
    `parameters`."""

    what: Name
    elements: Count | None = None
    dtype: Name = "bf16"
    top_k: Small | None = None
    tokens: Tokens | None = None
    hidden: Small | None = None
    experts: Small | None = None
    vocabulary: Small | None = None
    parameters: Count | None = None
    bytes_a_parameter: Annotated[float, Field(gt=0, le=1000)] | None = None


class LaunchOp(GpuOp):
    """Two empty kernels on one stream, one after the other."""

    what: Any = None
    dtype: Any = None
    elements: Any = None
