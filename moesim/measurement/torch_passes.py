"""Passes that memory bounds, copies, and launches, ready to be timed.

T tokens, K choices, H hidden width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moesim.measurement.plan import Words
from moesim.measurement.torch_door import functional, torch
from moesim.measurement.torch_inputs import Inputs, Prepared
from moesim.measurement.torch_matrices import gated, places, weighted_sum
from moesim.measurement.torch_products import FP8, PLAIN, CannotTimeError

_FORMATS = PLAIN | {"fp8": FP8}
_VOCABULARY = 32768
Call = Callable[[], Any]


def prepare_pass(op: Words, inputs: Inputs) -> Prepared:
    """One memory-bound pass by its `what`."""
    if op["what"] not in _PASSES:
        raise CannotTimeError(f"no pass {op['what']!r} is known; allowed: {', '.join(_PASSES)}")
    return _PASSES[op["what"]](op, inputs)


def prepare_launch(op: Words, inputs: Inputs) -> Prepared:
    """One call on one element: from the processor one by one (`stream`), or replayed from a CUDA graph (`graph`)."""
    replayed = op["what"] == "graph"
    if replayed and inputs.device.type != "cuda":
        raise CannotTimeError("only a GPU has graphs to replay")
    x = inputs.draw("x", (1,), torch.float32)
    return Prepared([lambda: x.add_(1.0)], {"kernel": "torch add_"}, graph=replayed)


def _format(op: Words) -> torch.dtype:
    if op["dtype"] not in _FORMATS:
        raise CannotTimeError(f"no pass in {op['dtype']} is known; allowed: {', '.join(_FORMATS)}")
    return _FORMATS[op["dtype"]]


def _sets(inputs: Inputs, touched: int, make: Callable[[int], Call]) -> Prepared:
    """A call a set, each made from its number."""
    return Prepared([make(at) for at in range(inputs.sets(touched))])


def _copy(op: Words, inputs: Inputs) -> Prepared:
    dtype = _format(op)

    def make(at: int) -> Call:
        source = inputs.draw(f"x{at}", (op["elements"],), dtype)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return _sets(inputs, 2 * op["elements"] * dtype.itemsize, make)


def _over_host(op: Words, inputs: Inputs) -> Prepared:
    """To or from pinned memory of the host."""
    if inputs.device.type != "cuda":
        raise CannotTimeError("a processor has no link to a host")
    here = inputs.draw("x", (op["elements"],), _format(op))
    there = here.cpu().pin_memory()
    target, source = (here, there) if op["what"] == "host-to-device" else (there, here)
    return Prepared([lambda: target.copy_(source, non_blocking=True)], graph=False)


def _cast(op: Words, inputs: Inputs) -> Prepared:
    wide = torch.bfloat16 if inputs.device.type == "cuda" else torch.float32
    dtype = _format(op)

    def make(at: int) -> Call:
        x = inputs.draw(f"x{at}", (op["elements"],), wide)
        return lambda: x.to(dtype)

    return _sets(inputs, op["elements"] * (wide.itemsize + dtype.itemsize), make)


def _activation(op: Words, inputs: Inputs) -> Prepared:
    dtype, elements = _format(op), op["elements"]
    width = min(elements, 1 << 11)

    def make(at: int) -> Call:
        x = inputs.draw(f"x{at}", (elements // width, 2 * width), dtype)
        return lambda: gated(x)

    return _sets(inputs, 3 * elements * dtype.itemsize, make)


def _norm(op: Words, inputs: Inputs) -> Prepared:
    dtype, hidden = _format(op), op["hidden"]
    weight = inputs.draw("weight", (hidden,), dtype)

    def make(at: int) -> Call:
        x = inputs.draw(f"x{at}", (op["tokens"], hidden), dtype)
        return lambda: functional.rms_norm(x, (hidden,), weight)

    return _sets(inputs, 2 * op["elements"] * dtype.itemsize, make)


def _embedding(op: Words, inputs: Inputs) -> Prepared:
    dtype = _format(op)
    inputs.sets(_VOCABULARY * op["hidden"] * dtype.itemsize)
    table = inputs.draw("table", (_VOCABULARY, op["hidden"]), dtype)

    def make(at: int) -> Call:
        ids = inputs.on_device(inputs.numbers(f"ids{at}").integers(0, _VOCABULARY, op["tokens"]))
        return lambda: functional.embedding(ids, table)

    return _sets(inputs, 2 * op["elements"] * dtype.itemsize, make)


def _router(op: Words, inputs: Inputs) -> Prepared:
    """Logits, softmax in fp32, top-k."""
    dtype, hidden, experts = _format(op), op["hidden"], op["experts"]

    def make(at: int) -> Call:
        x = inputs.draw(f"x{at}", (op["tokens"], hidden), dtype)
        w = inputs.draw(f"w{at}", (experts, hidden), dtype, hidden**-0.5)
        return lambda: torch.mm(x, w.t()).float().softmax(dim=-1).topk(op["top_k"], dim=-1)

    return _sets(inputs, (op["elements"] + experts * hidden) * dtype.itemsize, make)


def _top_k(op: Words, inputs: Inputs) -> Prepared:
    dtype = _format(op)

    def make(at: int) -> Call:
        logits = inputs.draw(f"x{at}", (op["tokens"], op["experts"]), dtype)
        return lambda: logits.softmax(dim=-1).topk(op["top_k"], dim=-1)

    return _sets(inputs, op["elements"] * dtype.itemsize, make)


def _permute(op: Words, inputs: Inputs) -> Prepared:
    """Rows of tokens, sorted by expert, from the tokens; experts are balanced."""
    dtype = _format(op)

    def make(at: int) -> Call:
        token, _ = places(_balanced(op), op["tokens"], op["top_k"], inputs.numbers(f"token{at}"))
        x, index = inputs.draw(f"x{at}", (op["tokens"], op["hidden"]), dtype), inputs.on_device(token)
        return lambda: x.index_select(0, index)

    return _sets(inputs, (op["elements"] + op["tokens"] * op["hidden"]) * dtype.itemsize, make)


def _unpermute(op: Words, inputs: Inputs) -> Prepared:
    """The weighted sum of each token's rows."""
    dtype = _format(op)

    def make(at: int) -> Call:
        token, place = places(_balanced(op), op["tokens"], op["top_k"], inputs.numbers(f"token{at}"))
        rows, index = inputs.draw(f"x{at}", (token.size, op["hidden"]), dtype), inputs.on_device(place)
        share = inputs.draw(f"share{at}", (op["tokens"], op["top_k"]), dtype).softmax(dim=-1)
        return lambda: weighted_sum(rows, index, share)

    return _sets(inputs, (op["elements"] + op["tokens"] * op["hidden"]) * dtype.itemsize, make)


def _optimizer(op: Words, inputs: Inputs) -> Prepared:
    """One fused AdamW step over one tensor; gradient and moments have the parameters' format."""
    dtype, shape = _format(op), (op["elements"],)

    def make(at: int) -> Call:
        parameter = [inputs.draw(f"parameter{at}", shape, dtype)]
        gradient = [inputs.draw(f"gradient{at}", shape, dtype)]
        first = [inputs.draw(f"first{at}", shape, dtype, 1e-3)]
        second = [inputs.draw(f"second{at}", shape, dtype, 1e-3).square_()]
        step = [torch.ones((), device=inputs.device)]
        rates: dict[str, Any] = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "eps": 1e-8}
        kind: dict[str, Any] = {"amsgrad": False, "maximize": False}
        return lambda: torch._fused_adamw_(parameter, gradient, first, second, [], step, **rates, **kind)

    return _sets(inputs, 4 * op["elements"] * dtype.itemsize, make)


def _balanced(op: Words) -> list[int]:
    each, left = divmod(op["tokens"] * op["top_k"], op["experts"])
    found: list[int] = (each + (np.arange(op["experts"]) < left)).tolist()
    return found


_PASSES: dict[str, Callable[[Words, Inputs], Prepared]] = {
    "copy": _copy,
    "host-to-device": _over_host,
    "device-to-host": _over_host,
    "cast": _cast,
    "activation": _activation,
    "norm": _norm,
    "embedding": _embedding,
    "router": _router,
    "top-k": _top_k,
    "permute": _permute,
    "unpermute": _unpermute,
    "optimizer": _optimizer,
}
