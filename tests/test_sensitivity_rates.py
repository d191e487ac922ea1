"""No rate of a GPU that is raised alone makes a step slower, whatever the GPU and the format that computes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, product
from typing import Any, get_args

import pytest

import moesim
from moesim import catalog
from moesim.costs.compute import rates
from moesim.specs.workload import ComputeFormat

FORMATS: tuple[ComputeFormat, ...] = get_args(ComputeFormat)
NEEDED = {"nvfp4": "fp4", "fp8": "fp8", "fp8-block": "fp8", "mxfp8": "fp8"}
RAISED = ("bf16", "fp8", "fp4", "memory_bandwidth", "power")
STEPS = (0.4, 0.8, 0.9, 0.97, 1.0, 1.03, 1.1, 1.4, 3.0)
"""Factors on the datasheet's number, on both sides of every limit of the laws of power."""
ROUNDING = 1.0 + 1e-9


def pairs(names: Iterable[str], formats: Iterable[ComputeFormat]) -> list[tuple[str, ComputeFormat]]:
    """Every GPU with every format that it has a rate for."""
    return [
        (name, compute)
        for name, compute in product(names, formats)
        if getattr(catalog.load("gpus", name), NEEDED.get(compute, "bf16")) is not None
    ]


@pytest.mark.parametrize(("name", "compute"), pairs(catalog.names("gpus"), FORMATS))
def test_no_rate_falls_as_another_rises(name: str, compute: ComputeFormat) -> None:
    gpu = catalog.load("gpus", name)
    for field in RAISED:
        value = getattr(gpu, field)
        if value is None:
            continue
        found = [rates(gpu.model_copy(update={field: value * factor}), compute) for factor in STEPS]
        for less, more in pairwise(found):
            for rate in ("gemm", "grouped_gemm", "bf16_gemm", "scores", "memory"):
                assert getattr(more, rate) * ROUNDING >= getattr(less, rate), (field, rate)


def step(gpu: str, compute: str, field: str, factor: float) -> float:
    """Seconds of a step that the host does not bind, with one number of the GPU changed."""
    changed: dict[str, Any] = {"base": gpu, field: getattr(catalog.load("gpus", gpu), field) * factor}
    scenario = {
        "model": "mixtral-8x7b",
        "cluster": {"gpu": changed, "gpus": 16},
        "parallelism": {"expert": 8},
        "workload": {"sequence_length": 4096, "global_batch": 64},
        "routing": {"load": "bias-balanced"},
        "precision": {"compute": compute},
    }
    result = moesim.estimate(moesim.load(scenario), even_if_infeasible=True)
    return float(result.summary["step_time"].value)


STEPPED = pairs(("h100-sxm", "gb200-nvl72", "b300-sxm", "l40s", "mi355x"), ("bf16", "fp8", "nvfp4"))


@pytest.mark.parametrize(("gpu", "compute"), STEPPED)
def test_no_step_is_slower_for_a_higher_rate(gpu: str, compute: ComputeFormat) -> None:
    known = catalog.load("gpus", gpu)
    for field in (*RAISED, "scale_up_bandwidth"):
        if getattr(known, field) is None:
            continue
        less, as_it_is, more = (step(gpu, compute, field, factor) for factor in (0.9, 1.0, 1.1))
        assert more <= as_it_is * ROUNDING <= less * ROUNDING**2, field


def test_a_rate_that_computes_makes_the_step_faster() -> None:
    """The property above would hold of a law without rates, too."""
    for gpu, compute, field in (("h100-sxm", "fp8", "fp8"), ("gb300-nvl72", "nvfp4", "fp4"), ("l40s", "fp8", "fp8")):
        assert step(gpu, compute, field, 1.1) < step(gpu, compute, field, 1.0), gpu


def test_a_clock_that_power_does_not_sustain_is_no_gain() -> None:
    """GB200 with all rates of a clock 10 % lower and the same power computes as fast."""
    gb200 = catalog.load("gpus", "gb200-nvl72")
    slower = {field: getattr(gb200, field) * 0.9 for field in ("bf16", "fp8", "fp4")}
    for compute in FORMATS:
        own, lower = rates(gb200, compute), rates(gb200.model_copy(update=slower), compute)
        assert lower.gemm == pytest.approx(own.gemm)
        assert lower.bf16_gemm == pytest.approx(own.bf16_gemm)


# NVIDIA-NeMo/Megatron-Bridge, docs/performance-summary-archive.md, container 26.02, DGX-GB300, NVFP4; tokens/s/GPU.
GB300 = [
    ("llama-3.1-70b", 64, 256, {"tensor": 1, "pipeline": 4, "virtual_pipeline": 5}, 6798.0),
    ("llama-3.1-405b", 256, 1536, {"tensor": 4, "pipeline": 8, "virtual_pipeline": 4}, 1333.0),
]


@pytest.mark.parametrize(("model", "gpus", "batch", "layout", "measured"), GB300, ids=lambda value: str(value)[:14])
def test_units_beyond_the_reference_count(
    model: str, gpus: int, batch: int, layout: dict[str, int], measured: float
) -> None:
    """GB300's fp4 peak is 1.5 times GB200's at the same clock: a law that gave it power's share alone is 20 % low."""
    scenario = {
        "model": model,
        "cluster": {"gpu": "gb300-nvl72", "gpus": gpus, "gpus_per_domain": 64},
        "parallelism": {**layout, "data_sharding": "optimizer"},
        "workload": {"sequence_length": 8192, "global_batch": batch, "micro_batch": 1},
        "precision": {"compute": "nvfp4"},
        "stack": "megatron-bridge-26.02",
    }
    result = moesim.estimate(moesim.load(scenario), even_if_infeasible=True)
    assert result.summary["tokens_per_second_per_gpu"].value == pytest.approx(measured, rel=0.08)
