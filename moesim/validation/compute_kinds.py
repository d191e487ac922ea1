"""Kernels of one GPU: dense GEMM, expert layers, attention, passes over memory."""

from __future__ import annotations

from typing import Literal

import numpy as np

from moesim.costs.kernels import (
    KernelTime,
    attention_time,
    expert_rows,
    experts_time,
    gemm_time,
    memory_bound_time,
)
from moesim.errors import UnknownNameError, UserError
from moesim.validation.answer import Prediction, Settings, rate, within
from moesim.validation.ops import AttentionOp, ExpertOp, GemmOp, MemoryOp
from moesim.validation.places import gpu_of
from moesim.validation.words import format_name


def gemm(op: GemmOp, settings: Settings) -> dict[str, Prediction]:
    """`time` of a dense GEMM, and the rate it amounts to."""
    gpu = gpu_of(op.gpu)
    sizes = (op.m, op.n, op.k, format_name(op.dtype))
    time = _timed(gemm_time(gpu, *sizes, settings.calibration, op.kernel, quantize=op.quantize))
    return {"time": time, "flops_per_second": rate(2.0 * op.m * op.n * op.k, time)}


def expert_gemm(op: ExpertOp, settings: Settings) -> dict[str, Prediction]:
    """`time` of the expert layer on the busiest rank."""
    return {"time": _timed(expert_layer(op, settings))}


def expert_layer(op: ExpertOp, settings: Settings) -> KernelTime:
    """The layer's time, the mean over draws of a random load."""
    gpu = gpu_of(op.gpu)
    if op.inter % op.expert_tensor:
        raise UserError(f"op.expert_tensor: inter {op.inter} does not split into {op.expert_tensor} parts")
    if op.rows is not None:
        rows = np.asarray(op.rows, float)
    else:
        places = op.slots or op.experts
        rows = expert_rows(op.load, op.tokens, op.top_k, places, op.expert_parallel)
    presented = op.presented_tokens or op.tokens
    return experts_time(
        gpu,
        rows,
        op.hidden,
        op.inter // op.expert_tensor,
        format_name(op.dtype),
        presented,
        op.matrices,
        op.real_weights,
        settings.calibration,
        op.kernel,
        presented_rows=presented * op.top_k,
    )


def attention(op: AttentionOp, settings: Settings) -> dict[str, Prediction]:
    """`time` of core attention."""
    found = attention_time(
        gpu_of(op.gpu),
        op.tokens,
        op.length,
        op.heads,
        op.kv_heads or op.heads,
        op.head_dim,
        op.value_dim or op.head_dim,
        op.causal,
        _direction(op.direction),
        format_name(op.dtype),
        settings.calibration,
        sequences=op.sequences,
        latent=op.latent,
    )
    return {"time": _timed(found)}


def _direction(name: str) -> Literal["forward", "backward"]:
    """Forward, or backward alone."""
    word = name.strip().lower()
    if word in ("forward", "fwd", "f"):
        return "forward"
    if word in ("backward", "bwd", "b"):
        return "backward"
    raise UnknownNameError("direction", name, ("forward", "backward"))


def memory_bound(op: MemoryOp, settings: Settings) -> dict[str, Prediction]:
    """`time` of a pass over memory."""
    gpu, kind = gpu_of(op.gpu), format_name(op.dtype)
    return {"time": _timed(memory_bound_time(gpu, op.what, op.elements, kind, settings.calibration, top_k=op.top_k))}


def _timed(found: KernelTime) -> Prediction:
    """The mean over samples, with the law's band."""
    return within(float(np.mean(found.seconds)), found.band, found.basis, found.notes)
