"""A training step on a cluster whose kernels were measured: its rates moved by the ratio of own to shipped timings.

The step's law was fitted on whole steps, a calibration holds isolated kernels. What carries over is by how much this
hardware's kernels differ from what the catalog says of them, at the sizes that the scenario runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moesim import catalog
from moesim.costs import compute
from moesim.costs.compute import Rates
from moesim.costs.kernels import KernelTime, attention_time, experts_time, memory_bound_time
from moesim.scenario.scenario import Scenario
from moesim.step.stack import trusted

Timed = Callable[[str | None], KernelTime]
PASSES = ("permute", "unpermute", "cast", "norm", "activation")
"""What a step's memory-bound work is made of."""


def rates_of(scenario: Scenario, busy_multiprocessors: int = 0) -> Rates:
    """The step's rates on the scenario's cluster, as its own calibration moves them."""
    gpu, dtype, measured = scenario.cluster.gpu, scenario.precision.compute, scenario.cluster.calibration
    rates = trusted(compute.rates(gpu, dtype, busy_multiprocessors, measured), scenario)
    if measured is None:
        return rates
    shipped = compute.rates(gpu, dtype, busy_multiprocessors)
    memory = _ratio(_passes(scenario), measured)
    experts = _ratio(_experts(scenario), measured) if _says(measured, "kernel-experts", scenario) else None
    return replace(
        rates,
        scores=rates.scores / _ratio(_scores(scenario), measured),
        memory=rates.memory / memory,
        grouped_gemm=rates.grouped_gemm if experts is None else shipped.grouped_gemm * memory,
        experts=1.0 if experts is None else experts / memory,
    )


def optimizer_ratio(scenario: Scenario) -> float:
    """How much longer the update takes than the catalog's."""
    measured = scenario.cluster.calibration
    gpu = scenario.cluster.gpu

    def update(path: str | None) -> KernelTime:
        return memory_bound_time(gpu, "optimizer", 1e8, "fp32", path)

    return 1.0 if measured is None else _ratio(update, measured)


def _ratio(timed: Timed, measured: str) -> float:
    return float(np.mean(timed(measured).seconds) / np.mean(timed(None).seconds))


def _says(measured: str, entry: str, scenario: Scenario) -> bool:
    """Whether the file has coefficients of this GPU in the step's format."""
    own, shipped = (catalog.calibration(entry, path)["coefficients"] for path in (measured, None))
    gpu = scenario.cluster.gpu
    return any(own.get(key) != shipped.get(key) for key in (gpu.name, gpu.generation))


def _scores(scenario: Scenario) -> Timed:
    model, length = scenario.model, scenario.workload.sequence_length
    heads = max(1, model.n_heads // scenario.parallelism.tensor)
    kv_heads = max(1, min(heads, model.kv_heads // scenario.parallelism.tensor))
    gpu, tokens, value = scenario.cluster.gpu, scenario.tokens_per_rank, model.value_width // model.n_heads

    def timed(path: str | None) -> KernelTime:
        return attention_time(gpu, tokens, length, heads, kv_heads, model.qk_width, value, measured=path)

    return timed


def _passes(scenario: Scenario) -> Timed:
    gpu, elements = scenario.cluster.gpu, scenario.tokens_per_rank * scenario.model.d_model

    def timed(path: str | None) -> KernelTime:
        parts = [memory_bound_time(gpu, what, elements, "bf16", path) for what in PASSES]
        return replace(parts[0], seconds=np.array([part.seconds for part in parts]))

    return timed


def _experts(scenario: Scenario) -> Timed:
    model, layout = scenario.model, scenario.parallelism
    local = max(1, scenario.expert_slots // layout.expert)
    rows = np.full(local, max(1.0, scenario.copies_per_group / layout.expert / local))
    width = max(1, (model.d_ff_expert or 1) // layout.expert_tensor)
    presented = min(float(rows.sum()), float(scenario.tokens_per_rank * layout.expert))
    gpu, dtype, matrices = scenario.cluster.gpu, scenario.precision.compute, model.expert_matrices

    def timed(path: str | None) -> KernelTime:
        return experts_time(gpu, rows, model.d_model, width, dtype, presented, matrices, True, path)

    return timed
