"""Fits the training step's coefficients to measured steps: shares of the peak, passes, host time, one factor a stack.

Steps are few and each depends on many coefficients, so every coefficient is held to what is shipped by how well that is
known: the most probable set is sought, on log time. One step of one's own moves a few coefficients, most of all the
factor of a stack that the catalog does not hold; a hundred determine most of them.
N steps, C coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim import catalog
from moesim.calibration.step_rows import (
    COMPUTE,
    FACTORS,
    STACKS,
    Floats,
    Name,
    Step,
    compute_format,
    multiplies,
    predict,
    read_steps,
    shipped,
)
from moesim.costs.compute import gemm_efficiency
from moesim.scenario.scenario import Scenario
from moesim.specs.gpu import GpuSpec

# How well the shipped coefficients are known: the spread of their logs, by the first word of their path.
_SPREAD = {
    "gemm_efficiency": 0.10,
    "attention_scores": 0.10,
    "grouped_gemm": 0.05,
    "attention_passes": 0.15,
    "dense_passes": 0.30,
    "expert_passes": 0.30,
    "expert_row_seconds": 0.50,
    "tensor_parallel": 0.30,
    "host": 0.30,
    "data_parallel_exposed": 0.30,
    "pipeline_exposed": 0.70,
    "time_factor": 0.06,
    "kernels": 0.10,
    "host_moe_layer": 0.30,
}
# A stack, and a GPU's products, that no row of the catalog tells: published steps of other stacks and GPUs scatter so.
_NEW_STACK, _NEW_GPU = 0.25, 0.20
# Layouts of one model miss by about so much to either side; from `_ROBUST` steps on misses beyond count in proportion,
# not squared, for a blocked run must not bend the law. Fewer steps cannot tell which of them is blocked.
NOISE, _ROBUST = 0.05, 5
# A coefficient is told by the steps where they narrow what is known of it by this much.
_NARROWED = 0.9
_DESCENTS, _LARGEST_MOVE, _SETTLED, _DIFFERENCE = 8, 0.3, 0.003, 0.02
# Slopes are taken again where a log has moved so far since.
_BENT = 0.1


@dataclass(frozen=True)
class StepFit:
    """Coefficients by name with the spread of their logs after the fit, and what the law says of each step [N]."""

    start: dict[Name, float]
    values: dict[Name, float]
    spread: dict[Name, float]
    predicted: Floats

    @property
    def told(self) -> list[Name]:
        """The coefficients that the steps determine better than what was known of them."""
        return [name for name, spread in self.spread.items() if spread < _NARROWED * known(name)]


def known(name: Name) -> float:
    """How well a coefficient is known before any step of one's own: the spread of its log."""
    if name[:2] == (STACKS, "time_factor") and name[2] not in catalog.calibration(STACKS)["time_factor"]:
        return _NEW_STACK
    if name[1] == "gemm_efficiency" and name[3] not in catalog.calibration(COMPUTE)["fitted"].get(name[2], ()):
        return _NEW_GPU
    return _SPREAD[name[1]]


def fit(steps: Sequence[Step]) -> StepFit:
    """The most probable coefficients: Gauss-Newton on logs, each coefficient held to its start by its spread."""
    start = _coefficients(steps)
    names, goal = list(start), np.log([step.seconds for step in steps])
    prior = np.array([known(name) for name in names])
    begin = np.log(list(start.values()))
    logs, sloped, slopes = begin.copy(), begin - np.inf, np.empty((len(steps), len(names)))
    information = np.empty((0, 0))
    for _ in range(_DESCENTS):
        at = _values(names, logs)
        said = np.log(predict(steps, at))
        if np.abs(logs - sloped).max() > _BENT:
            sloped, slopes = logs, _slopes(steps, at, said)
        miss = (goal - said) / NOISE
        weight = 1.0 / np.sqrt(1.0 + miss**2) if len(steps) >= _ROBUST else np.ones(len(steps))
        rows = slopes * (np.sqrt(weight) / NOISE)[:, None]
        information = rows.T @ rows + np.diag(prior**-2.0)
        pull = rows.T @ (np.sqrt(weight) * miss) + (begin - logs) / prior**2
        move = np.clip(np.linalg.solve(information, pull), -_LARGEST_MOVE, _LARGEST_MOVE)
        logs = logs + move
        if np.abs(move).max(initial=0.0) < _SETTLED:
            break
    spread = np.sqrt(np.diag(np.linalg.inv(information)))
    values = _values(names, logs)
    return StepFit(start, values, dict(zip(names, spread.tolist(), strict=True)), predict(steps, values))


def _values(names: Sequence[Name], logs: Floats) -> dict[Name, float]:
    return dict(zip(names, np.exp(logs).tolist(), strict=True))


def _slopes(steps: Sequence[Step], at: Mapping[Name, float], said: Floats) -> Floats:
    """d log time / d log coefficient [N, C]. A factor on whole steps needs no trial."""
    columns = []
    for name in at:
        if name[:2] in FACTORS:
            columns.append(np.array([multiplies(step, name) for step in steps], dtype=np.float64))
            continue
        moved = predict(steps, {**at, name: at[name] * np.exp(_DIFFERENCE)})
        columns.append((np.log(moved) - said) / _DIFFERENCE)
    return np.stack(columns, axis=1)


def _coefficients(steps: Sequence[Step]) -> dict[Name, float]:
    """Where the fit starts: every coefficient that one of the steps may depend on, as the scenario has it now."""
    found: dict[Name, float] = {}
    # Where several stacks are told apart, the reference is what the others are measured against.
    several = len({step.scenario.stack for step in steps}) > 1
    for step in steps:
        scenario, measured = step.scenario, step.scenario.cluster.calibration
        compute, stacks = catalog.calibration(COMPUTE, measured), catalog.calibration(STACKS, measured)
        generation = scenario.cluster.gpu.generation
        for word in dict.fromkeys(("bf16", compute_format(scenario))):
            found.setdefault((COMPUTE, "gemm_efficiency", generation, word), _efficiency(scenario.cluster.gpu, word))
        scores = compute["attention_scores"]
        found.setdefault((COMPUTE, "attention_scores", generation), scores.get(generation, scores["other"]))
        for path in _paths(scenario, stacks):
            found.setdefault(path, shipped(compute if path[0] == COMPUTE else stacks, path[1:]))
        if several:
            found.pop((STACKS, "time_factor", str(stacks["reference"])), None)
    return found


def _efficiency(gpu: GpuSpec, word: str) -> float:
    """The shipped share of the peak without what the fit does not touch: the factor of a GPU's power."""
    fitted = catalog.calibration(COMPUTE)["gemm_efficiency"].get(gpu.generation, {}).get(word)
    return float(fitted) if fitted is not None else gemm_efficiency(gpu, word)  # type: ignore[arg-type]


def _paths(scenario: Scenario, stacks: Mapping[str, Any]) -> list[Name]:
    """Names of the numbers that this step depends on, shares of the peak apart."""
    kinds, stack = set(scenario.model.layer_kinds), scenario.stack
    own_host = stack in stacks["host_moe_layer"]
    buffers = scenario.parallelism.tensor > 1 and scenario.stack_options.user_buffers is not False
    depends: dict[Name, bool] = {
        (COMPUTE, "attention_passes"): True,
        (COMPUTE, "dense_passes"): "dense" in kinds,
        (COMPUTE, "host", "dense_layer"): "dense" in kinds,
        (COMPUTE, "grouped_gemm"): "moe" in kinds,
        (COMPUTE, "expert_passes"): "moe" in kinds,
        (COMPUTE, "expert_row_seconds"): "moe" in kinds,
        (COMPUTE, "host", "moe_layer"): "moe" in kinds and not own_host,
        (STACKS, "host_moe_layer", stack): "moe" in kinds and own_host,
        (COMPUTE, "tensor_parallel", "user_buffers"): buffers,
        (COMPUTE, "data_parallel_exposed"): scenario.data_parallel > 1 and scenario.overlap.data_parallel,
        (COMPUTE, "pipeline_exposed"): scenario.parallelism.pipeline > 1 and scenario.overlap.pipeline,
        (STACKS, "time_factor", stack): True,
        (STACKS, "kernels", str(scenario.model.kernels)): scenario.model.kernels in stacks["kernels"],
    }
    return [name for name, does in depends.items() if does]


__all__ = ["COMPUTE", "STACKS", "StepFit", "fit", "known", "predict", "read_steps"]
