"""Memory laws of one GPU in training: states by sharding, what a token leaves behind in a layer, and temporaries.

Source: physics of the training step, memory line, checked against the published memory of DeepSeek-V3 under Megatron
Core (arXiv:2603.07685, tables 3 and 4); coefficients in catalog calibration "memory". Attention is taken as fused:
scores are never stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from moesim import catalog
from moesim.costs.tensor_split import attention_widths, key_value_copies
from moesim.specs.model import ModelSpec
from moesim.specs.workload import PrecisionSpec


def coefficients() -> dict[str, Any]:
    """The calibration "memory"."""
    return catalog.calibration("memory")


@dataclass(frozen=True)
class Shards:
    """Over how many ranks each state is spread: 1 where it is replicated."""

    weights: int
    gradients: int
    optimizer: int


@dataclass(frozen=True)
class TokenLayer:
    """Bytes of one token in one layer, by part of the layer: an FFN is dense or holds experts."""

    attention: float
    dense: float
    experts: float

    @property
    def largest(self) -> float:
        """Bytes in the larger of a dense layer and one with experts."""
        return self.attention + max(self.dense, self.experts)


def gradient_bytes(precision: PrecisionSpec) -> float:
    """Bytes of one parameter's gradient."""
    return 4.0 if precision.gradients == "fp32" else 2.0


def state_bytes(held: float, shards: Shards, precision: PrecisionSpec) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer states of `held` parameters on one GPU."""
    optimizer = float(coefficients()["optimizer_bytes"][precision.optimizer])
    return {
        "weights": 2.0 * held / shards.weights,
        "gradients": gradient_bytes(precision) * held / shards.gradients,
        "optimizer": optimizer * held / shards.optimizer,
    }


def gathered_bytes(held: Any, room: Any, shards: Shards, precision: PrecisionSpec) -> Any:
    """Buffers in which sharded weights are gathered, and gradients reduced, `room` parameters at a time.

    Full sharding reduces in bf16 whatever the format of addition (`step.data_parallel` prices it so): a gradient is
    there twice, as the backward leaves it and as it travels (PyTorch, torch/distributed/fsdp/_fully_shard,
    foreach_reduce). Where gradients alone are sharded they are reduced in the format of addition, which takes as much
    in fp32. Buffers are never larger than all that is sharded.
    """
    weights, gradients = (held * (1.0 - 1.0 / ranks) for ranks in (shards.weights, shards.gradients))
    twice = 2 * 2.0 * room
    return np.minimum(2.0 * room, 2.0 * weights) + np.minimum(twice, gradient_bytes(precision) * gradients)


def channel_bytes(model: ModelSpec, tokens: Any, replica_tokens: Any, tensor: Any) -> tuple[Any, Any]:
    """Buffers of microbatches of `tokens` a rank between pipeline ranks, and of the keys and values of `replica_tokens`
    that go round a context ring, split over `tensor` ranks."""
    ring = 4.0 * model.kv_width * replica_tokens * key_value_copies(model, tensor) / tensor
    return 4.0 * (2.0 * model.d_model * tokens), ring


def communicator_bytes() -> float:
    """Buffers of one communicator."""
    return float(prod(coefficients()["communicator"].values()))


def optimizer_step_bytes(held: float, shards: Shards, precision: PrecisionSpec) -> float:
    """What the update allocates: fp32 copies of bf16 gradients, of the rank's own shard. An optimizer whose states
    are kept in bf16 converts gradients, too, within its kernel."""
    copies = precision.gradients != "fp32" and precision.optimizer == "adam"
    return 4.0 * held / shards.optimizer if copies else 0.0


@dataclass(frozen=True)
class Split:
    """What is not divided as tokens are: an expert's width over `expert` ranks; inputs are kept `inputs` times, keys
    and values `keys` times (`costs.tensor_split`)."""

    expert: int
    inputs: int
    keys: int = 1


def token_layer_bytes(
    model: ModelSpec, precision: PrecisionSpec, rows: float, recompute: frozenset[str], split: Split
) -> TokenLayer:
    """Bytes a token and layer keeps until the backward: `rows` routed copies are computed on the rank for each of its
    own tokens.

    `recompute`: names of modules that run again in the backward and so keep less; "full" keeps the layer's input.
    A quantized product keeps its input in its own format; the output of a recomputed norm is made again from its
    input, which the residual stream holds anyway. Experts are weighted before their last product, so that their
    outputs need not be kept.
    """
    whole = float(model.d_model * split.inputs)
    stream = 2.0 * whole
    if "full" in recompute:
        return TokenLayer(stream, 0.0, 0.0)
    q = input_bytes(precision)
    normed = 0.0 if "layernorm" in recompute else q * whole
    attention = stream + normed + _attention_bytes(model, q, recompute, split)
    dense_width = 0.0 if "mlp" in recompute else float(model.d_ff_dense or 0)
    dense = _hidden(dense_width, model.dense_matrices - 1, q)
    beside = dense if model.dense_beside_experts else 0.0
    # The router reads the norm's output in bf16, whatever the products' format.
    routed = 0.0 if "layernorm" in recompute else max(2.0, q) * whole
    experts = stream + routed + _expert_bytes(model, rows, q, recompute, split) + beside
    return TokenLayer(attention, stream + normed + dense, experts)


def input_bytes(precision: PrecisionSpec) -> float:
    """Bytes of one value of a product's input, as it is kept for the weight gradient."""
    return 2.0 if precision.compute in ("bf16", "fp16") else 1.0


def _attention_bytes(model: ModelSpec, q: float, recompute: frozenset[str], split: Split) -> float:
    """Queries, keys, values, the scores' statistics, the output and, where it is quantized, its copy."""
    blocks, mla = model.attention_blocks, model.mla
    wide = 2.0 * attention_widths(model, split.keys) * blocks
    if mla is not None:
        latent = float(split.inputs * (mla.q_lora_rank + mla.kv_lora_rank))
        # The up-projection works from the latent vectors; without recompute their norms' outputs are kept as well.
        wide = (0.0 if "mla_up_proj" in recompute else wide + q * latent) + 2.0 * (latent + split.inputs * mla.qk_rope)
    values = model.value_width * blocks
    if "core_attn" in recompute:
        return wide + q * values
    statistics = float(coefficients()["score_statistics_bytes"]) * model.n_heads * blocks
    return wide + (2.0 if q == 2.0 else 2.0 + q) * values + statistics


def _expert_bytes(model: ModelSpec, rows: float, q: float, recompute: frozenset[str], split: Split) -> float:
    """Router, routed copies and the shared experts of a layer; nothing where the whole of it runs again."""
    if "moe" in recompute:
        return 0.0
    gates, width = model.expert_matrices - 1, float(model.d_ff_expert or 0) / split.expert
    routed = rows * (q * model.d_model + _hidden(width, gates, 0.0 if "moe_act" in recompute else q))
    shared_width = 0.0 if "shared_experts" in recompute else float(model.shared_expert_width)
    return routed + _hidden(shared_width, gates, q) + float(coefficients()["router_bytes"]) * model.n_experts


def _hidden(width: float, gates: int, activated: float) -> float:
    """Bytes of a feed-forward layer's inner values: gate inputs in bf16, the activated product as the GEMM reads it."""
    return width * (2.0 * gates + activated)


def gradient_pass_bytes(model: ModelSpec, rows: Any, split: Split) -> Any:
    """Bytes a token needs beside what was kept while its fullest layer's backward runs, all in bf16.

    At once live a module's output gradients and input gradients: of attention's queries, keys, values and output, or
    of a feed-forward layer's inner values and its input; and the gradient of the residual stream.
    """
    stream = 2.0 * model.d_model * split.inputs
    attention = 2.0 * (attention_widths(model, split.keys) + model.value_width)
    dense = 2.0 * (model.d_model * split.inputs + model.dense_matrices * float(model.d_ff_dense or 0))
    width = float(model.d_ff_expert or 0) / split.expert
    experts = 2.0 * rows * (model.d_model + model.expert_matrices * width) if model.is_moe else 0.0
    return stream + np.maximum(max(attention, dense if "dense" in model.layer_kinds else 0.0), experts)


def verdict(need: float, have: float) -> str:
    """ "fits", "tight" (needs off-load or recompute) or "infeasible"."""
    ratio = need / have
    if ratio <= coefficients()["fits"]:
        return "fits"
    return "tight" if ratio <= coefficients()["infeasible"] else "infeasible"
