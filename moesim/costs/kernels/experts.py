"""Expert layer of one rank: permute, two grouped products, activation, combine.

t = base + expert E_local + sum over active experts |arithmetic, weights|_2 + rows (row + bytes / W) + token T 2 H / W
+ fullest max(rows of an expert): the weights of an active expert are read once; T are the tokens that the kernel is
presented with: the whole group's where ranks gather them all, the distinct ones received after an all-to-all; `fullest`
is what passes cost that give each expert equally many thread blocks: its rows go one after another.
Coefficients: "kernel-experts".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from moesim import catalog
from moesim.costs.kernels.choice import Choice, Floats, KernelTime, choose
from moesim.costs.kernels.gemm import OUTPUT_BYTES, Rates, gemm_efficiency, plain, positive, share
from moesim.errors import UnknownNameError, UserError
from moesim.specs.gpu import GpuSpec

Product = Literal["forward", "dgrad", "wgrad"]
GRADIENT_BYTES = 8.0
"""A weight gradient in fp32, read and written."""


@dataclass(frozen=True)
class ExpertWork:
    """What a rank is given: `rows` [..., E_local], and [...] `hidden`, `inter` (after a tensor split), `presented`.

    A number of rows below 1 is the chance of one row. `local` [...]: experts of the rank where `rows` are padded.
    `presented_rows` [...]: tokens presented x choices, over which some kernels run their element-wise part.
    """

    rows: Floats
    hidden: Floats
    inter: Floats
    presented: Floats
    matrices: float = 3.0
    local: Floats | None = None
    presented_rows: Floats | None = None


def experts_time(
    gpu: GpuSpec,
    rows: Any,
    hidden: Any,
    inter: Any,
    dtype: str,
    presented_tokens: Any,
    matrices: int = 3,
    real_weights: bool = False,
    measured: str | None = None,
    kernel: str | None = None,
    *,
    free_share: float = 1.0,
    presented_rows: Any = None,
    release: str | None = None,
) -> KernelTime:
    """Seconds [...] of a rank whose local experts get `rows` [..., E_local]; 3 matrices, 2 where the FFN is not gated.

    Benchmarks of fused kernels seem to run on weights that were never filled, which lets the clock rise: with
    `real_weights` the products sustain no more than dense ones. `presented_rows`: tokens presented x choices, over
    which Triton kernels run their element-wise part (default: the rank's rows). Raises `UserError` as `gemm_time`.
    """
    chosen = choose("kernel-experts", gpu, dtype, measured, kernel, release)
    if real_weights:
        chosen = _with_real_weights(chosen, gpu, dtype, measured)
    counts = np.asarray(rows, dtype=np.float64)
    if counts.ndim < 1 or not np.all(np.isfinite(counts)) or np.any(counts < 0):
        raise UserError("rows: expected an array [..., E_local] of numbers of at least 0")
    hidden, inter, count = positive(hidden=hidden, inter=inter, matrices=matrices)
    (presented,) = positive(presented_tokens=presented_tokens)
    every = None if presented_rows is None else positive(presented_rows=presented_rows)[0]
    work = ExpertWork(counts, hidden, inter, presented, float(count), presented_rows=every)
    seconds = experts_law(chosen.values, work, (chosen.kind, chosen.peak * share(free_share), chosen.bandwidth))
    return chosen.answer(plain(seconds), hidden=hidden, inter=inter, presented_tokens=presented)


def grouped_gemm_time(
    gpu: GpuSpec,
    rows: Any,
    n: Any,
    k: Any,
    dtype: str,
    product: Product = "forward",
    measured: str | None = None,
    *,
    kernel: str | None = None,
    release: str | None = None,
    free_share: float = 1.0,
) -> KernelTime:
    """Seconds [...] of grouped products [rows_e, k] x [k, n] alone, `rows` [..., E], activations already converted.

    Dense coefficients ("kernel-gemm"), an expert's weights read once; `product` is the layer's forward, its "dgrad" or
    its "wgrad" ([k, n] summed over an expert's rows into fp32). Raises `UserError` as `gemm_time` does.
    """
    if product not in ("forward", "dgrad", "wgrad"):
        raise UnknownNameError("product", product, ("forward", "dgrad", "wgrad"))
    chosen = choose("kernel-gemm", gpu, dtype, measured, kernel, release)
    counts = np.asarray(rows, dtype=np.float64)
    n, k = positive(n=n, k=k)
    values, wgrad = chosen.values, product == "wgrad"
    shares = catalog.calibration("kernel-gemm", measured)["grouped"][product]
    compute = values["compute"] * float(shares.get(chosen.kind.coefficients, 1.0))
    length, width = (counts, np.asarray(k)[..., None]) if wgrad else (np.asarray(k)[..., None], counts)
    filled = np.where(counts > 0, length + values["fill"], 0.0)
    arithmetic = 2.0 * filled * width * np.asarray(n)[..., None] / (chosen.peak * share(free_share) * compute)
    held = np.asarray(n * k)[..., None] * (GRADIENT_BYTES if wgrad else chosen.kind.weight)
    moved = np.asarray(chosen.kind.activation * k + (chosen.kind.activation if wgrad else OUTPUT_BYTES) * n)[..., None]
    reading = (np.where(counts > 0, held, 0.0) + counts * moved) / (chosen.bandwidth * values["memory"])
    base = min(values["base"], choose("kernel-gemm", gpu, "bf16", measured).values["base"])
    seconds = base + np.hypot(arithmetic, reading).sum(axis=-1)
    return chosen.answer(plain(seconds), n=n, k=k)


def experts_law(values: Mapping[str, float], work: ExpertWork, on: Rates) -> Floats:
    """Seconds [...] by coefficients `values`; `on` is the format, peak FLOP/s and memory bytes/s."""
    kind, peak, bandwidth = on
    elements = work.matrices * work.hidden * work.inter
    a_row = 2.0 * elements / (peak * values["compute"])
    an_expert = elements * kind.weight / (bandwidth * values["memory"])
    chance, rows = np.minimum(work.rows, 1.0), np.maximum(work.rows, 1.0)
    arithmetic, reading = np.asarray(a_row)[..., None] * rows, np.asarray(an_expert)[..., None]
    products = (chance * np.hypot(arithmetic, reading)).sum(axis=-1)
    all_rows = work.rows.sum(axis=-1)
    if values.get("all_rows") and work.presented_rows is not None:
        all_rows = work.presented_rows
    local = work.rows.shape[-1] if work.local is None else work.local
    inter_bytes = (values["inter_bytes"] + kind.activation) / values["inter_memory"]
    row_bytes = values["hidden_bytes"] * work.hidden + inter_bytes * work.inter
    result: Floats = (
        values["base"]
        + values["expert"] * local
        + products
        + all_rows * (values["row"] + row_bytes / bandwidth)
        + values["token"] * work.presented * 2.0 * work.hidden / bandwidth
        + values.get("fullest", 0.0) * work.rows.max(axis=-1)
    )
    return result


def _with_real_weights(chosen: Choice, gpu: GpuSpec, dtype: str, measured: str | None) -> Choice:
    """No more of the peak than dense products sustain; as much as them where an old kernel was measured."""
    dense = gemm_efficiency(gpu, dtype, measured)
    old = bool(chosen.values.get("old_kernel", 0.0))
    compute = dense if old else min(chosen.values["compute"], dense)
    return replace(chosen, values={**chosen.values, "compute": compute})
