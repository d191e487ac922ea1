"""Kernels of one GPU: products, dense and grouped, expert layers, attention, passes over memory, launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from moesim.costs.kernels import (
    KernelTime,
    attention_time,
    experts_time,
    gemm_time,
    grouped_gemm_time,
    head_time,
    latent_heads,
    launch_time,
    memory_bound_time,
    mtp_time,
    optimizer_time,
    router_time,
)
from moesim.errors import UnknownNameError, UserError
from moesim.specs.gpu import GpuSpec
from moesim.validation.answer import Prediction, Settings, rate, within
from moesim.validation.kernel_ops import AttentionOp, ExpertOp, GemmOp, GroupedOp, LaunchOp, MemoryOp
from moesim.validation.loads import rows_of
from moesim.validation.places import gpu_of
from moesim.validation.told import untold
from moesim.validation.words import format_name


def gemm(op: GemmOp, settings: Settings) -> dict[str, Prediction]:
    """`time` of a dense GEMM, and the rate it amounts to."""
    found = gemm_time(
        gpu_of(op.gpu),
        op.m,
        op.n,
        op.k,
        format_name(op.dtype),
        settings.calibration,
        _kernel(op),
        quantize=op.quantize,
        free_share=op.free_share,
        release=op.told_release,
    )
    return _with_rate(2.0 * op.m * op.n * op.k, found)


def grouped_gemm(op: GroupedOp, settings: Settings) -> dict[str, Prediction]:
    """`time` of grouped products, and the rate it amounts to."""
    found = grouped_gemm_time(
        gpu_of(op.gpu),
        np.asarray(op.each, float),
        op.n,
        op.k,
        format_name(op.dtype),
        _product(op.product),
        settings.calibration,
        kernel=_kernel(op),
        release=op.told_release,
        free_share=op.free_share,
    )
    return _with_rate(2.0 * sum(op.each) * op.n * op.k, found)


def _with_rate(work: float, found: KernelTime) -> dict[str, Prediction]:
    time = _timed(found)
    return {"time": time, "flops_per_second": rate(work, time)}


def _product(name: str) -> Literal["forward", "dgrad", "wgrad"]:
    word = name.strip().lower().replace("_", "")
    if word in ("forward", "fwd", "fprop"):
        return "forward"
    if word in ("dgrad", "backwarddata", "bwddata"):
        return "dgrad"
    if word in ("wgrad", "backwardweight", "bwdweight"):
        return "wgrad"
    raise UnknownNameError("product", name, ("forward", "dgrad", "wgrad"))


def expert_gemm(op: ExpertOp, settings: Settings) -> dict[str, Prediction]:
    """`time` of the expert layer on the busiest rank, the mean over draws of a random load."""
    gpu = gpu_of(op.gpu)
    if op.inter % op.expert_tensor:
        raise UserError(f"op.expert_tensor: inter {op.inter} does not split into {op.expert_tensor} parts")
    rows, notes = np.asarray(op.rows or (), float), tuple[str, ...]()
    if op.rows is None:
        rows, notes = rows_of(op.load, op.tokens, op.top_k, op.slots or op.experts, op.expert_parallel)
    presented = op.presented_tokens or op.tokens
    found = experts_time(
        gpu,
        rows,
        op.hidden,
        op.inter // op.expert_tensor,
        format_name(op.dtype),
        presented,
        op.matrices,
        op.real_weights,
        settings.calibration,
        _kernel(op),
        presented_rows=presented * op.top_k,
        release=op.told_release,
    )
    return {"time": _timed(found, notes)}


def attention(op: AttentionOp, settings: Settings) -> dict[str, Prediction]:
    """`time` of core attention."""
    heads, kv_heads, width, value = op.heads, op.kv_heads or op.heads, op.head_dim, op.value_dim or op.head_dim
    shared = op.latent is True
    if not isinstance(op.latent, bool):
        sizes = op.latent
        mla = latent_heads(heads, sizes.nope, sizes.rope, sizes.value, sizes.rank, sizes.absorbed)
        heads, kv_heads, width, value, shared = mla.heads, mla.kv_heads, mla.head_dim, mla.value_dim, mla.latent
    found = attention_time(
        gpu_of(op.gpu),
        op.tokens,
        op.length,
        heads,
        kv_heads,
        width,
        value,
        op.causal,
        _direction(op.direction),
        format_name(op.dtype),
        settings.calibration,
        sequences=op.sequences,
        latent=shared,
        free_share=op.free_share,
        kernel=_kernel(op),
        release=op.told_release,
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
    """`time` of a pass over memory, or of what is built of passes and products."""
    gpu, what = gpu_of(op.gpu), op.what.strip().lower().replace("_", "-")
    built = _BUILT.get(what)
    found = built(gpu, op, settings.calibration) if built is not None else None
    if found is None:
        if op.elements is None and (op.tokens is None or op.hidden is None):
            _needed(op, "elements")
        count = op.elements or (op.tokens or 0) * (op.hidden or 0)
        kind = format_name(op.dtype)
        found = memory_bound_time(gpu, what, count, kind, settings.calibration, top_k=_rows_together(op))
    return {"time": _timed(untold(found, op, "kernel-passes"))}


def _rows_together(op: MemoryOp) -> float | None:
    """Rows of which an unpermute makes one: as told, or as the sizes tell."""
    if op.top_k is not None or op.elements is None or op.tokens is None or op.hidden is None:
        return op.top_k
    return max(1.0, op.elements / (op.tokens * op.hidden))


def _needed(op: MemoryOp, *names: str) -> tuple[Any, ...]:
    """The sizes that a pass needs; raises `UserError` naming those it lacks."""
    lack = [name for name in names if getattr(op, name) is None]
    if lack:
        raise UserError(f"op.{lack[0]}: {op.what} needs {', '.join(names)}")
    return tuple(getattr(op, name) for name in names)


def _router(gpu: GpuSpec, op: MemoryOp, calibration: str | None) -> KernelTime | None:
    if op.elements is not None:
        return None
    tokens, hidden, experts = _needed(op, "tokens", "hidden", "experts")
    return router_time(gpu, tokens, hidden, experts, format_name(op.dtype), calibration)


def _head(gpu: GpuSpec, op: MemoryOp, calibration: str | None) -> KernelTime:
    tokens, hidden, words = _needed(op, "tokens", "hidden", "vocabulary")
    return head_time(gpu, tokens, hidden, words, format_name(op.dtype), calibration)


def _mtp(gpu: GpuSpec, op: MemoryOp, calibration: str | None) -> KernelTime:
    tokens, hidden = _needed(op, "tokens", "hidden")
    return mtp_time(gpu, tokens, hidden, format_name(op.dtype), calibration)


def _optimizer(gpu: GpuSpec, op: MemoryOp, calibration: str | None) -> KernelTime:
    count = op.parameters or op.elements
    if count is None:
        raise UserError("op.parameters: optimizer needs parameters (of the GPU's shard)")
    return optimizer_time(gpu, count, op.bytes_a_parameter, calibration)


def _launch(gpu: GpuSpec, op: Any, calibration: str | None) -> KernelTime:
    return launch_time(gpu, calibration)


_BUILT: dict[str, Callable[[GpuSpec, MemoryOp, str | None], KernelTime | None]] = {
    "router": _router,
    "gate": _router,
    "head": _head,
    "lm-head": _head,
    "mtp": _mtp,
    "optimizer": _optimizer,
    "adam": _optimizer,
    "launch": _launch,
}


def launch(op: LaunchOp, settings: Settings) -> dict[str, Prediction]:
    """`time` between the starts of two empty kernels."""
    return {"time": _timed(untold(launch_time(gpu_of(op.gpu), settings.calibration), op, "kernel-passes"))}


def _kernel(op: Any) -> str | None:
    return None if op.kernel is None else str(op.kernel)


def _timed(found: KernelTime, notes: tuple[str, ...] = ()) -> Prediction:
    """The mean over samples, with the law's band."""
    basis = "assumed" if notes else found.basis
    return within(float(np.mean(found.seconds)), found.band, basis, (*notes, *found.notes))
