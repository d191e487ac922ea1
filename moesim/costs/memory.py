"""Memory law of one GPU in training: weights, gradients, optimizer, activations, logits, buffers.

Source: physics of the training step, memory line; coefficients in catalog calibration "memory".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim import catalog
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
    """Bytes that one token leaves behind in one layer until its backward, by part."""

    attention: float
    dense: float
    experts: float


def state_bytes(held: float, shards: Shards, precision: PrecisionSpec) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer states of `held` parameters on one GPU."""
    gradient = 4.0 if precision.gradients == "fp32" else 2.0
    optimizer = float(coefficients()["optimizer_bytes"][precision.optimizer])
    return {
        "weights": 2.0 * held / shards.weights,
        "gradients": gradient * held / shards.gradients,
        "optimizer": optimizer * held / shards.optimizer,
    }


@dataclass(frozen=True)
class Split:
    """What is not divided as tokens are: an expert's width over `expert` ranks; inputs are kept `inputs` times."""

    expert: int
    inputs: int


def token_layer_bytes(
    model: ModelSpec, precision: PrecisionSpec, rows: float, recompute: frozenset[str], split: Split
) -> TokenLayer:
    """Bytes a token and layer keeps: `rows` counts the routed copies computed on the rank for each of its tokens.

    `recompute`: names of modules that run again in the backward and so keep less; "full" keeps the layer's input.
    """
    h = float(model.d_model)
    if "full" in recompute:
        return TokenLayer(2.0 * h * split.inputs, 0.0, 0.0)
    q = 2.0 if precision.compute in ("bf16", "fp16") else 1.0
    wide, values = model.qkv_width * model.attention_blocks, model.value_width * model.attention_blocks
    norm = (0.0 if "layernorm" in recompute else 2.0 * h * split.inputs) + q * h
    if model.mla is not None and "mla_up_proj" in recompute:
        # What is left of queries, keys and values are the latent vectors they are computed from.
        wide = float(model.mla.q_lora_rank + model.mla.kv_lora_rank + model.mla.qk_rope)
    attention = norm + 2.0 * wide + (0.0 if "core_attn" in recompute else 2.0 * values)
    dense_width = 0.0 if "mlp" in recompute else float(model.d_ff_dense or 0)
    dense = _hidden(dense_width, model.dense_matrices - 1, q)
    gates, width = model.expert_matrices - 1, float(model.d_ff_expert or 0) / split.expert
    routed = q * h + _hidden(width, gates, 0.0 if "moe_act" in recompute else q)
    routed = 0.0 if "moe" in recompute else rows * routed
    shared_width = 0.0 if "shared_experts" in recompute else float(model.shared_expert_width)
    shared = _hidden(shared_width, gates, q)
    beside = dense if model.dense_beside_experts else 0.0
    return TokenLayer(attention, norm + dense, norm + routed + shared + beside)


def _hidden(width: float, gates: int, activated: float) -> float:
    """Bytes of a feed-forward layer's inner values: gate inputs in bf16, the activated product as the GEMM reads it."""
    return width * (2.0 * gates + activated)


def verdict(need: float, have: float) -> str:
    """ "fits", "tight" (needs off-load or recompute) or "infeasible"."""
    ratio = need / have
    if ratio <= coefficients()["fits"]:
        return "fits"
    return "tight" if ratio <= coefficients()["infeasible"] else "infeasible"
