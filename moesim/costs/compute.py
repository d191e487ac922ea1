"""Compute law of a training step: GEMM, attention scores, memory-bound passes, host time.

Coefficients: catalog calibration "training-compute". Each function takes what one GPU does for one microbatch and
returns seconds. T tokens of a rank, E local experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim import catalog
from moesim.costs.kernels.gemm import gemm_efficiency as isolated_gemm_efficiency
from moesim.provenance import Basis, worst
from moesim.specs.gpu import GpuSpec
from moesim.specs.workload import ComputeFormat

Floats = NDArray[np.float64]

_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp8-block": 1.03, "mxfp8": 1.03, "nvfp4": 0.5625}


def coefficients(measured: str | None = None) -> dict[str, Any]:
    """The calibration "training-compute"; what the user's own calibration file `measured` says of it goes first."""
    return catalog.calibration("training-compute", measured)


@dataclass(frozen=True)
class Rates:
    """What a GPU sustains in a training step.

    `gemm`, `grouped_gemm` (in the compute format), `bf16_gemm`, `scores` in FLOP/s; `memory` in bytes/s;
    `quantize` the factor on memory-bound passes; `weight_bytes` bytes a weight element as a GEMM reads it; `experts`
    how many times as long routed rows take as by these rates (expert layers that were measured);
    `band` the relative range (90 % of calibrated rows lie within), `slower` what independent of it may make the step
    longer, not shorter.
    """

    gemm: float
    grouped_gemm: float
    bf16_gemm: float
    scores: float
    memory: float
    quantize: float
    weight_bytes: float
    basis: Basis
    band: float
    experts: float = 1.0
    slower: float = 0.0


def rates(gpu: GpuSpec, compute: ComputeFormat, busy_multiprocessors: int = 0, measured: str | None = None) -> Rates:
    """Sustained rates of `gpu` while `busy_multiprocessors` of its SMs serve communication kernels.

    `measured`: the user's own calibration file. Isolated products that it measured on this very GPU move the training
    step's rate by as much as they differ from the isolated products that the step's law stands on.
    """
    data = coefficients(measured)
    free = 1.0 - busy_multiprocessors / gpu.multiprocessors if gpu.multiprocessors else 1.0
    free = max(free, data["least_free_multiprocessors"])
    bf16 = gpu.bf16 * gemm_efficiency(gpu, "bf16", measured) * free
    gemm = peak(gpu, compute) * gemm_efficiency(gpu, compute, measured) * free
    scores = data["attention_scores"]
    fitted = "bf16" if compute == "fp16" else compute
    known = fitted in data["fitted"].get(gpu.generation, ())
    exact_gpu = known and gpu.name in data["fitted_gpus"]
    # A user's own `residual` is of the steps measured, which `moesim.step.stack` knows apart.
    residual = coefficients()["residual" if exact_gpu else "residual_elsewhere"]
    return Rates(
        gemm=gemm,
        grouped_gemm=gemm * data["grouped_gemm"],
        bf16_gemm=bf16,
        scores=gpu.bf16 * scores.get(gpu.generation, scores["other"]) * free,
        memory=gpu.memory_bandwidth * data["memory_efficiency"],
        quantize=data["quantize_passes"] if _BYTES[compute] < 2 else 1.0,
        weight_bytes=_BYTES[compute],
        basis=worst([data["source"]["basis"], "fitted" if known else "assumed"]),
        band=residual["p90"],
    )


def peak(gpu: GpuSpec, compute: ComputeFormat) -> float:
    """The datasheet's dense peak in a compute format, FLOP/s; the scenario's checks guarantee that it exists."""
    rate = {"nvfp4": gpu.fp4, "bf16": gpu.bf16, "fp16": gpu.bf16}.get(compute, gpu.fp8)
    return float(rate or gpu.bf16)


def gemm_efficiency(gpu: GpuSpec, compute: ComputeFormat, measured: str | None = None) -> float:
    """Share of the dense peak that training GEMMs reach: fitted for the generation, else by the datasheet rule.

    Power is held against the rate of the format that computes: what a GPU could do in another takes none of it.
    """
    data = coefficients(measured)
    compute = "bf16" if compute == "fp16" else compute
    fitted = data["gemm_efficiency"].get(gpu.generation, {}).get(compute)
    own = _own_gemm(gpu, compute, measured)
    teraflops = peak(gpu, compute) / 1e12 / data["rate_against_bf16"][compute]
    if fitted is not None:
        moved = own / isolated_gemm_efficiency(gpu, compute) if own is not None else 1.0
        return float(min(float(fitted) * _power_factor(gpu, teraflops) * moved, data["gemm_rule_limit"]))
    rule = data["gemm_rule"]
    watts_per_teraflop = gpu.power / teraflops if gpu.power else rule["watts_per_teraflop"]
    alone = own or rule[compute] * watts_per_teraflop ** rule["exponent"]
    return float(min(alone * data["gemm_rule_training"][compute], data["gemm_rule_limit"]))


def _own_gemm(gpu: GpuSpec, compute: str, measured: str | None) -> float | None:
    """The share of peak of isolated products that the user's file measured on this GPU."""
    if measured is None:
        return None
    found = catalog.calibration("kernel-gemm", measured)["coefficients"].get(gpu.name, {}).get(compute)
    return float(found["compute"]) if found else None


def _power_factor(gpu: GpuSpec, teraflops: float) -> float:
    """The clock that power sustains as a share of the peak's own, against that of the reference.

    `teraflops`: the peak as one of bf16. Up to the reference's a peak is a clock, which power binds; what goes beyond
    it is more units at that clock.
    """
    reference = coefficients()["power_reference"]
    if gpu.generation not in reference["generations"] or gpu.power is None:
        return 1.0
    clock = min(1.0, teraflops / reference["bf16_tflops"])
    return float(min(gpu.power / reference["watts"] / clock, reference["limit"]))


def gemm_seconds(flops: float, rate: float) -> float:
    """Seconds of dense matrix products."""
    return flops / rate


def passes_seconds(elements: float, passes: float, rates: Rates) -> float:
    """Seconds of memory-bound work: `passes` over `elements` bf16 values."""
    return 2.0 * elements * passes * rates.quantize / rates.memory


def experts_seconds(
    rows: Floats, flops_per_row: float, weight_elements: float, rates: Rates, active: Floats | None = None
) -> Floats:
    """Seconds of the grouped GEMM [...] from rows of each local expert [..., E].

    Per active expert the 2-norm of arithmetic and of reading its weights once: sqrt((f n)^2 + b^2). Where rows are
    expectations, `active` is the probability of a row at all: an expert then has n / active rows that often.
    """
    return grouped_seconds(rows, *grouped_costs(flops_per_row, weight_elements, rates), active)


def grouped_costs(flops_per_row: float, weight_elements: float, rates: Rates) -> tuple[float, float]:
    """Seconds of a row's arithmetic and of reading one expert's weights."""
    return flops_per_row / rates.grouped_gemm, weight_elements * rates.weight_bytes / rates.memory


def grouped_seconds(rows: Floats, row: Floats | float, weights: Floats | float, active: Floats | None = None) -> Floats:
    """`experts_seconds` by what a row and an expert's weights take."""
    chance = (rows > 0).astype(np.float64) if active is None else active
    total: Floats = np.hypot(rows * row, chance * weights).sum(axis=-1)
    return total


def smooth_max(left: Floats | float, right: Floats | float, exponent: float) -> Any:
    """(a^p + b^p)^(1/p): a maximum whose edge is rounded, as host and GPU interleave."""
    high, low = np.maximum(left, right), np.minimum(left, right)
    safe = np.where(high > 0, high, 1.0)
    return high * (1.0 + (low / safe) ** exponent) ** (1.0 / exponent)
