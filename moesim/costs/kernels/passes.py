"""Memory-bound work and what is built of it: copies, permute, casts, norms, router, head, MTP, optimizer, launch.

t = base + bytes / (W memory): `bytes` a pass moves for each of its elements, `memory` the share of the datasheet's
bandwidth that it reaches. Coefficients: "kernel-passes".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim import catalog
from moesim.costs.kernels.choice import Floats, KernelTime
from moesim.costs.kernels.formats import number_format
from moesim.costs.kernels.gemm import gemm_time, plain, positive
from moesim.errors import UnknownNameError
from moesim.provenance import Basis, worst
from moesim.specs.gpu import GpuSpec

Data = dict[str, Any]
Numbers = tuple[dict[str, float], Basis, float, tuple[str, ...]]
"""Base and share of bandwidth, with basis, band and notes."""


def memory_bound_time(
    gpu: GpuSpec,
    what: str,
    elements: Any,
    dtype: str = "bf16",
    measured: str | None = None,
    *,
    top_k: float | None = None,
) -> KernelTime:
    """Seconds of a pass `what` over `elements` values of `dtype`; what counts as an element is in "kernel-passes".

    `top_k`: rows of which an unpermute makes one (1 where it is not stated). Raises `UnknownNameError`.
    """
    data = catalog.calibration("kernel-passes", measured)
    name = _pass_name(data, what)
    shape = data["passes"][name]
    numbers, basis, band, notes = _numbers(data, gpu, name, dtype)
    each = shape["moves"] * _bytes(dtype) + shape.get("extra_bytes", 0.0)
    if name == "unpermute":
        each += _bytes(dtype) / (top_k or data["top_k"])
    width = _host_bandwidth(data, gpu) if shape.get("host") else gpu.memory_bandwidth
    (count,) = positive(elements=elements)
    seconds = numbers["base"] + count * each / (width * numbers["memory"])
    return KernelTime(plain(seconds), basis, band, notes)


def launch_time(gpu: GpuSpec, measured: str | None = None) -> KernelTime:
    """Seconds between the starts of two empty kernels on one stream."""
    data = catalog.calibration("kernel-passes", measured)
    numbers, basis, band, notes = _numbers(data, gpu, "launch", "bf16")
    return KernelTime(float(numbers["base"]), basis, band, notes)


def router_time(
    gpu: GpuSpec, tokens: Any, hidden: Any, experts: Any, dtype: str = "bf16", measured: str | None = None
) -> KernelTime:
    """Seconds of the router: projection to the experts' logits, scores and top-k."""
    count, width, choices = positive(tokens=tokens, hidden=hidden, experts=experts)
    projection = gemm_time(gpu, count, choices, width, dtype, measured)
    return _together(projection, memory_bound_time(gpu, "top-k", count * choices, "fp32", measured))


def head_time(
    gpu: GpuSpec, tokens: Any, hidden: Any, vocabulary: Any, dtype: str = "bf16", measured: str | None = None
) -> KernelTime:
    """Seconds of the language-model head: projection to logits, softmax and cross entropy over them."""
    count, width, words = positive(tokens=tokens, hidden=hidden, vocabulary=vocabulary)
    projection = gemm_time(gpu, count, words, width, dtype, measured)
    return _together(projection, memory_bound_time(gpu, "cross-entropy", count * words, "bf16", measured))


def mtp_time(gpu: GpuSpec, tokens: Any, hidden: Any, dtype: str = "bf16", measured: str | None = None) -> KernelTime:
    """Seconds of what a multi-token-prediction module adds before its layer and head: two norms and the projection
    of state and embedding, side by side, to one hidden state."""
    count, width = positive(tokens=tokens, hidden=hidden)
    projection = gemm_time(gpu, count, width, 2.0 * width, dtype, measured)
    return _together(projection, memory_bound_time(gpu, "norm", 2.0 * count * width, "bf16", measured))


def optimizer_time(
    gpu: GpuSpec, parameters: Any, bytes_a_parameter: float | None = None, measured: str | None = None
) -> KernelTime:
    """Seconds of an Adam step over the parameters of a GPU's shard; by default with fp32 master copy and moments."""
    data = catalog.calibration("kernel-passes", measured)
    numbers, basis, band, notes = _numbers(data, gpu, "optimizer", "fp32")
    (count,) = positive(parameters=parameters)
    each = data["optimizer_bytes"] if bytes_a_parameter is None else bytes_a_parameter
    seconds = numbers["base"] + count * float(each) / (gpu.memory_bandwidth * numbers["memory"])
    return KernelTime(plain(seconds), basis, band, notes)


def pass_bytes(what: str, dtype: str, top_k: float | None = None) -> float:
    """Bytes that a pass moves for each of its elements."""
    data = catalog.calibration("kernel-passes")
    name = _pass_name(data, what)
    shape = data["passes"][name]
    rows = _bytes(dtype) / (top_k or data["top_k"]) if name == "unpermute" else 0.0
    return float(shape["moves"] * _bytes(dtype) + shape.get("extra_bytes", 0.0) + rows)


def _numbers(data: Data, gpu: GpuSpec, what: str, dtype: str) -> Numbers:
    """The GPU's own numbers, its generation's, else those by the datasheet's bandwidth."""
    for key in (gpu.name, gpu.generation):
        by_format = data["coefficients"].get(key, {})
        found = by_format.get(_storage(dtype), by_format.get("bf16", {})).get(what)
        if found is not None:
            band = found.get("residual", data["residual"])["p90"]
            return {**data["datasheet"]["bf16"][what], **found}, data["source"]["basis"], float(band), ()
    sheet = data["datasheet"]["bf16"][what]
    known = gpu.generation in data["rule"]["generations"]
    basis: Basis = sheet.get("basis", "paper") if known else "assumed"
    band = sheet.get("band", data["residual_datasheet"]["p90"]) if known else data["rule"]["doubtful_band"]
    return sheet, basis, float(band), (f"{what}: by the datasheet's bandwidth",)


def _pass_name(data: Data, what: str) -> str:
    plain_name = str(what).strip().lower().replace("_", "-")
    name = data["spellings"].get(plain_name, plain_name)
    if name not in data["passes"]:
        raise UnknownNameError("memory-bound pass", str(what), data["passes"])
    return str(name)


def _storage(dtype: str) -> str:
    return str(dtype).strip().lower().removeprefix("torch.").replace("_", "-")


def _bytes(dtype: str) -> float:
    """Bytes of a stored value: number formats of products, and those that are only stored."""
    stored = catalog.calibration("kernel-passes")["stored_bytes"].get(_storage(dtype))
    return float(stored) if stored is not None else number_format(dtype).weight


def _host_bandwidth(data: Data, gpu: GpuSpec) -> float:
    return float(data["host_bandwidth"].get(gpu.generation, data["host_bandwidth"]["other"]))


def _together(*parts: KernelTime) -> KernelTime:
    """Kernels one after another: the range of the whole is that of the widest part."""
    seconds: Floats = np.sum(np.broadcast_arrays(*[np.asarray(part.seconds) for part in parts]), axis=0)
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return KernelTime(plain(seconds), worst([part.basis for part in parts]), max(part.band for part in parts), notes)
