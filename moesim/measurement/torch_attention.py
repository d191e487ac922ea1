"""Attention, forward and backward, by the fastest kernel that torch has for it here, ready to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from moesim.measurement.plan import Words
from moesim.measurement.torch_device import synchronise
from moesim.measurement.torch_door import Tensor, functional, torch
from moesim.measurement.torch_inputs import Inputs, Prepared
from moesim.measurement.torch_products import CannotTimeError, high

_FUSED = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")
_TRIES = 3


def prepare_attention(op: Words, inputs: Inputs) -> Prepared:
    """Scores, softmax and weighted values of `sequences` sequences (by default tokens / length), without projections.

    Backward is the gradient of queries, keys and values alone. On a GPU only fused kernels count, the fastest of them.
    """
    way = _fastest(op, inputs)
    dtype, backward = high(op["dtype"]), op["direction"] == "backward"
    queries, keys = _elements(op)
    touched = dtype.itemsize * (queries + keys) * (2 if backward else 1)
    calls = [_call(op, _tensors(op, inputs, at), way, backward) for at in range(inputs.sets(touched, 2 * touched))]
    # Gradients are computed on the autograd engine's own threads, which a graph's capture does not see everywhere.
    return Prepared(calls, {"kernel": f"torch {way.lower().replace('_', ' ')}"}, graph=not backward)


def _elements(op: Words) -> tuple[int, int]:
    """Elements of queries and output, and of keys and values."""
    both = op["head_dim"] + op["value_dim"]
    return op["tokens"] * op["heads"] * both, sequences_of(op) * op["length"] * op["kv_heads"] * both


def sequences_of(op: Words) -> int:
    """Sequences that the queries belong to."""
    return int(op.get("sequences") or max(1, op["tokens"] // op["length"]))


def _tensors(op: Words, inputs: Inputs, at: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [sequences, heads, length, width], as they come out of their projections."""
    sequences, dtype = sequences_of(op), high(op["dtype"])
    shapes = {
        "q": (sequences, op["tokens"] // sequences, op["heads"], op["head_dim"]),
        "k": (sequences, op["length"], op["kv_heads"], op["head_dim"]),
        "v": (sequences, op["length"], op["kv_heads"], op["value_dim"]),
    }
    q, k, v = (inputs.draw(f"{name}{at}", shape, dtype).transpose(1, 2) for name, shape in shapes.items())
    return q, k, v


def _attend(op: Words, tensors: tuple[Tensor, ...], way: str) -> Tensor:
    q, k, v = tensors
    grouped = {"enable_gqa": True} if op["heads"] != op["kv_heads"] else {}
    if way == "SDPA":
        found: Tensor = functional.scaled_dot_product_attention(q, k, v, is_causal=op["causal"], **grouped)
        return found
    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, way)):
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=op["causal"], **grouped)
    return found


def _call(op: Words, tensors: tuple[Tensor, ...], way: str, backward: bool) -> Callable[[], Any]:
    if not backward:
        return lambda: _attend(op, tensors, way)
    with torch.enable_grad():
        leaves = [tensor.requires_grad_() for tensor in tensors]
        output = _attend(op, tuple(leaves), way)
    gradient = output.detach().clone()
    return lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True)


def _fastest(op: Words, inputs: Inputs) -> str:
    """The name of the fastest kernel for this case; on a processor torch's own choice."""
    if inputs.device.type != "cuda":
        return "SDPA"
    inputs.sets(2 * high(op["dtype"]).itemsize * sum(_elements(op)))
    found: dict[str, float] = {}
    reason = ""
    for way in (name for name in _FUSED if hasattr(torch.nn.attention.SDPBackend, name)):
        try:
            call = _call(op, _tensors(op, inputs, 0), way, op["direction"] == "backward")
            call()
            found[way] = min(_seconds(call, inputs.device) for _ in range(_TRIES))
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().split("\n")[0][:160]
    if not found:
        raise CannotTimeError(f"no fused attention kernel takes it: {reason}")
    return min(found, key=found.__getitem__)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - begin
