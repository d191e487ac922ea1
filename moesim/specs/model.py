"""A transformer (dense or Mixture-of-Experts) by the numbers of its configuration file."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from moesim.specs.base import SourcedSpec, Spec

MOST_EXPERTS = 1 << 21
"""Experts of all layers: one layer of a million, a hundred times what was ever trained; more take minutes."""
Size = Annotated[int, Field(strict=True, ge=1, le=1 << 40)]
LayerKind = Literal["dense", "moe"]


class LatentAttention(Spec):
    """Multi-head latent attention (DeepSeek-V2 report, section 2.1); `q_lora_rank` 0 = queries not compressed."""

    q_lora_rank: int = Field(strict=True, ge=0, le=1 << 20)
    kv_lora_rank: Size
    qk_nope: Size
    qk_rope: Size
    v_head: Size


class RouterSpec(Spec):
    """The router's rule and its parameters; each rule reads those that its own description names.

    `renormalize`: kept scores are divided by their sum; `scale` multiplies them; `bias`: a bias steers the choice and
    not the weights; `groups` and `top_groups`: only experts of the best `top_groups` of `groups` groups may be chosen,
    a group's score being its maximum or the sum of its two best (`group_score`). `jitter`: half width of the uniform
    factor on the router's input; `noise`: standard deviation of the normal noise on logits; `second_threshold`: the
    second expert is used with probability min(1, its renormalised gate / threshold). `top_p`: experts are taken until
    their probabilities add up to it, at most `max_choices`. `slots` of each expert (soft mixtures); `table` of a
    hash; `tasks` that a routing network tells apart (0: every sequence is its own); `shuffle`: tokens are shuffled
    among ranks first, an exchange more each way; `tolerance` at which a normalisation stops; `balancing`: whether the
    rule's training-time balancing is on (inference takes the plain best).
    """

    rule: str = "softmax-top-k"
    renormalize: bool = True
    scale: float = 1.0
    bias: bool = False
    groups: int = Field(strict=True, default=1, ge=1, le=1 << 16)
    top_groups: int = Field(strict=True, default=1, ge=1, le=1 << 16)
    group_score: Literal["max", "top2-sum"] = "max"
    jitter: float = Field(default=0.0, ge=0.0, le=1.0)
    noise: float = Field(default=0.0, ge=0.0, le=100.0)
    second_threshold: float | None = Field(default=None, gt=0.0, le=1.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    max_choices: int | None = Field(strict=True, default=None, ge=1, le=1 << 16)
    slots: int = Field(strict=True, default=1, ge=1, le=1 << 16)
    table: Literal["random", "balanced"] = "balanced"
    tasks: int = Field(strict=True, default=0, ge=0, le=1 << 16)
    shuffle: bool = False
    tolerance: float = Field(default=1e-4, gt=0.0, le=1.0)
    balancing: bool = True


class ModelSpec(SourcedSpec):
    """One model. Widths are counted in elements; `d_ff_expert` is one expert's hidden width, `shared_expert_width`
    the width of all shared experts of a layer together; `gated` experts have three matrices, others two."""

    title: str = ""
    arch: Literal["decoder", "encoder-decoder", "vision-encoder"] = "decoder"
    layers: Annotated[int, Field(strict=True, ge=1, le=10000)]
    enc_layers: int | None = Field(strict=True, default=None, ge=0, le=10000)
    dec_layers: int | None = Field(strict=True, default=None, ge=0, le=10000)
    moe_layers: int = Field(strict=True, default=0, ge=0, le=10000)
    moe_layer_pattern: str | None = Field(default=None, max_length=200)
    d_model: Size
    n_heads: Size
    n_kv_heads: Size | None = None
    head_dim: Size | None = None
    mla: LatentAttention | None = None
    d_ff_dense: int | None = Field(strict=True, default=None, ge=0, le=1 << 40)
    dense_beside_experts: bool = Field(default=False, description="a dense FFN stands beside each expert layer")
    n_experts: int = Field(strict=True, default=0, ge=0, le=1 << 20)
    n_shared_experts: int = Field(strict=True, default=0, ge=0, le=1 << 16)
    shared_expert_width: int = Field(
        strict=True,
        default=0,
        ge=0,
        le=1 << 40,
        validation_alias=AliasChoices("shared_expert_width", "shared_expert_d_ff"),
    )
    top_k: int = Field(strict=True, default=0, ge=0, le=1 << 16)
    d_ff_expert: int | None = Field(strict=True, default=None, ge=0, le=1 << 40)
    gated: bool = True
    dense_gated: bool | None = None
    vocab: int = Field(strict=True, default=0, ge=0, le=1 << 30)
    tied_embeddings: bool = False
    mtp_layers: int = Field(strict=True, default=0, ge=0, le=16)
    sequence_length: int | None = Field(strict=True, default=None, ge=1, le=1 << 30)
    sliding_window: int | None = Field(strict=True, default=None, ge=1, le=1 << 30)
    full_attention_every: int = Field(strict=True, default=1, ge=1, le=10000)
    router: RouterSpec = RouterSpec()
    capacity_factor: float | None = Field(default=None, gt=0.0, le=1000.0)
    kernels: str | None = Field(default=None, max_length=100, description="kernels of its own, known to run slower")
    published_total: float | None = None
    published_active: float | None = None
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _absent_numbers(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("shared_expert_d_ff") is None:
            data = {key: value for key, value in data.items() if key != "shared_expert_d_ff"}
        return data

    @model_validator(mode="after")
    def _not_countless(self) -> ModelSpec:
        if self.n_experts * self.moe_layers > MOST_EXPERTS:
            told = f"{self.n_experts:,} experts in each of {self.moe_layers:,} layers"
            raise ValueError(f"n_experts: {told}, at most {MOST_EXPERTS:,} in all layers are computed with")
        return self

    @cached_property
    def kv_heads(self) -> int:
        """Key-value heads; as many as query heads unless stated."""
        return self.n_kv_heads or self.n_heads

    @cached_property
    def head(self) -> int:
        """Width of one attention head."""
        return self.head_dim or max(1, self.d_model // self.n_heads)

    @cached_property
    def qk_width(self) -> int:
        """Width of a query or key head."""
        return self.mla.qk_nope + self.mla.qk_rope if self.mla else self.head

    @cached_property
    def value_width(self) -> int:
        """Width of all heads' attention outputs together."""
        return self.n_heads * (self.mla.v_head if self.mla else self.head)

    @cached_property
    def kv_width(self) -> int:
        """Width of all keys and values of a token together, as attention reads them."""
        return self.kv_heads * (self.qk_width + (self.mla.v_head if self.mla else self.head))

    @cached_property
    def qkv_width(self) -> int:
        """Width of all queries, keys and values of a token together."""
        return self.n_heads * self.qk_width + self.kv_width

    @cached_property
    def attention_blocks(self) -> float:
        """Attention blocks a layer, mean: a decoder layer of an encoder-decoder also attends to the encoder."""
        return 1.0 + (self.dec_layers or 0) / self.layers * (self.arch == "encoder-decoder")

    @cached_property
    def is_moe(self) -> bool:
        """Whether any layer has routed experts."""
        return self.moe_layers > 0 and self.n_experts > 0

    @cached_property
    def dense_matrices(self) -> int:
        """Matrices of a dense FFN: 3 gated, 2 not."""
        gated = self.gated if self.dense_gated is None else self.dense_gated
        return 3 if gated else 2

    @cached_property
    def expert_matrices(self) -> int:
        """Matrices of an expert: 3 gated, 2 not."""
        return 3 if self.gated else 2

    @cached_property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Kind of each layer, first to last (encoder before decoder).

        `moe_layer_pattern`: "all", "all except first N", "every N" (the last of each N), "last N"; where it is
        absent, the dense layers come first. It holds for each half of an encoder-decoder.
        """
        halves = (self.enc_layers, self.dec_layers) if self.enc_layers and self.dec_layers else (self.layers,)
        flags = [
            flag
            for layers in halves
            for flag in _pattern(self.moe_layer_pattern, layers, self.moe_layers * layers // self.layers)
        ]
        return tuple("moe" if flag else "dense" for flag in flags)


def _pattern(text: str | None, layers: int, moe_layers: int) -> list[bool]:
    words = (text or "").lower()
    number = next((int(digits) for digits in re.findall(r"\d+", words)), None)
    if moe_layers in (0, layers):
        flags = [moe_layers > 0] * layers
    elif "every" in words:
        step = number or 2
        flags = [index % step == step - 1 for index in range(layers)]
    elif "last" in words:
        flags = [index >= layers - moe_layers for index in range(layers)]
    else:
        flags = [index >= layers - moe_layers for index in range(layers)]
    return flags
