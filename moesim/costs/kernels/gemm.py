"""Dense matrix products x [m, k] w [k, n] -> bf16, alone on a GPU.

t = base + |arithmetic, bytes, loop|_2 (+ quantising x): arithmetic 2 m n (k + fill) at a share of peak, where `fill` is
what filling and emptying a tile costs; bytes of weights, x and result at a share of memory bandwidth;
loop (k / 1024)^loop_power the serial K loop of one thread block, its power below 1 where a library splits long sums.
Coefficients: "kernel-gemm".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from moesim.costs.kernels.choice import Choice, Floats, KernelTime, choose
from moesim.costs.kernels.formats import Format
from moesim.errors import UserError
from moesim.specs.gpu import GpuSpec

Rates = tuple[Format, float | Floats, float | Floats]
"""A number format, the datasheet's peak in it (FLOP/s), the memory bandwidth (bytes/s)."""

OUTPUT_BYTES = 2.0
LOOP = 1024.0


def gemm_time(
    gpu: GpuSpec,
    m: Any,
    n: Any,
    k: Any,
    dtype: str,
    measured: str | None = None,
    kernel: str | None = None,
    *,
    quantize: bool = True,
    free_share: float = 1.0,
    release: str | None = None,
) -> KernelTime:
    """Seconds of products [m, k] x [k, n], arrays broadcast; `free_share` of the multiprocessors compute.

    x arrives in bf16 and is converted in the call; without `quantize` it arrives converted and one kernel runs.
    Raises `UserError` for a format that the GPU lacks or a size below 1.
    """
    chosen = choose("kernel-gemm", gpu, dtype, measured, kernel, release)
    if not quantize and chosen.kind.quantized:
        chosen = _product_alone(chosen, gpu, measured)
    m, n, k = positive(m=m, n=n, k=k)
    seconds = gemm_law(chosen.values, m, n, k, (chosen.kind, chosen.peak * share(free_share), chosen.bandwidth))
    return chosen.answer(plain(seconds), m=m, n=n, k=k)


def gemm_law(values: Mapping[str, float], m: Floats, n: Floats, k: Floats, on: Rates) -> Floats:
    """Seconds by coefficients `values`; `on` is the format, peak FLOP/s and memory bytes/s."""
    kind, peak, bandwidth = on
    arithmetic = 2.0 * m * n * (k + values["fill"]) / (peak * values["compute"])
    moved = kind.weight * n * k + kind.activation * m * k + OUTPUT_BYTES * m * n
    reading = moved / (bandwidth * values["memory"])
    loop = values["loop"] * (k / LOOP) ** values["loop_power"]
    seconds = values["base"] + np.sqrt(arithmetic**2 + reading**2 + loop**2)
    if kind.quantized:
        seconds = seconds + (2.0 + kind.activation) * m * k / (bandwidth * values["quantize"])
    result: Floats = seconds
    return result


def _product_alone(chosen: Choice, gpu: GpuSpec, measured: str | None) -> Choice:
    """Without the kernel that converts x: one kernel starts, as in a bf16 product."""
    base = min(chosen.values["base"], choose("kernel-gemm", gpu, "bf16", measured).values["base"])
    return replace(chosen, kind=replace(chosen.kind, quantized=False), values={**chosen.values, "base": base})


def gemm_efficiency(gpu: GpuSpec, dtype: str, measured: str | None = None, k: float | None = None) -> float:
    """Share of the datasheet's peak that large dense products sustain, of sums of length `k` (default: endless)."""
    values = choose("kernel-gemm", gpu, dtype, measured).values
    return float(values["compute"] * (1.0 if k is None else k / (k + values["fill"])))


def positive(**sizes: Any) -> tuple[Floats, ...]:
    """Sizes as float arrays; raises `UserError` naming one that is not a number of at least 1."""
    for name, value in sizes.items():
        array = np.asarray(value, dtype=np.float64)
        if not np.all(np.isfinite(array)) or np.any(array < 1):
            raise UserError(f"{name}: must be at least 1, got {value!r:.60}")
    return tuple(np.asarray(value, dtype=np.float64) for value in sizes.values())


def share(free: float) -> float:
    """A share of multiprocessors, above 0 and at most 1; raises `UserError`."""
    if not 0 < free <= 1:
        raise UserError(f"free_share: must be above 0 and at most 1, got {free}")
    return free


def plain(seconds: Floats) -> Any:
    """A float where there is one number, else the array."""
    return float(seconds) if np.ndim(seconds) == 0 else seconds
