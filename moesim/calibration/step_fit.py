"""Fits the training step's coefficients to measured steps: shares of the peak, passes, host time, one factor a stack.

Steps are few and each depends on many coefficients, so every coefficient is held to what is shipped by how well that is
known: the most probable set is sought, robust on log time, and what the steps do not tell stays as shipped. One step of
one's own moves a few coefficients a little, a hundred determine most of them.
N steps, C coefficients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from moesim import catalog
from moesim.calibration.statistics import Residual, residual
from moesim.catalog.yaml_files import read_mapping
from moesim.closed_form.run import even_step_seconds
from moesim.costs.compute import gemm_efficiency
from moesim.errors import UserError
from moesim.roads import estimate
from moesim.scenario.loading import load
from moesim.scenario.scenario import Scenario
from moesim.specs.gpu import GpuSpec
from moesim.step.model import StepModel
from moesim.step.stack import nearest
from moesim.validation.cases import Case

Floats = NDArray[np.float64]
Name = tuple[str, ...]
"""The calibration's name and the path to the number in it."""

COMPUTE, STACKS = "training-compute", "stacks"
METRICS = ("step_time", "tokens_per_second_per_gpu", "tokens_per_second")
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
    "time_factor": 0.06,
    "kernels": 0.10,
    "host_moe_layer": 0.30,
}
# Layouts of one model miss by about so much to either side; misses beyond count in proportion, not squared.
_NOISE = 0.05
# A coefficient is told by the steps where they narrow what is known of it by this much.
_NARROWED = 0.9
# Factors on a whole step.
_FACTORS = ((STACKS, "time_factor"), (STACKS, "kernels"))
_DESCENTS, _LARGEST_MOVE, _SETTLED, _DIFFERENCE = 6, 0.3, 0.003, 0.02
# So many steps tell their own misses; fewer narrow the shipped range by half at most.
_MANY, _LEAST_SHARE = 20, 0.5


@dataclass(frozen=True)
class Step:
    """A measured step. `uneven`: the estimate's step time over that at even load, under the shipped coefficients."""

    id: str
    scenario: Scenario
    seconds: float
    uneven: float


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
        return [name for name, spread in self.spread.items() if spread < _NARROWED * _SPREAD[name[1]]]


def fit_steps(cases: Iterable[Case], day: str | None = None) -> dict[str, dict[str, Any]]:
    """The entries "training-compute" and "stacks" that the cases' steps give, with what goes before the catalog's only.

    A case of another kind, with a problem, or marked `known` is left out; `day` (ISO) is today's where None.
    Raises `UserError` where no case can be used.
    """
    steps = read_steps(cases)
    if not steps:
        raise UserError(f"no measured training step: a case of kind train_step with one of {', '.join(METRICS)}")
    found = fit(steps)
    measured = np.array([step.seconds for step in steps])
    shipped = predict(steps, {})
    gpus = list(dict.fromkeys(step.scenario.cluster.gpu.name for step in steps))
    where = f"fit of {len(steps)} training steps ({', '.join(gpus)})"
    source = {"basis": "fitted", "where": where, "date": day or datetime.now(UTC).date().isoformat()}
    head = {
        "source": source,
        "residual": _band(residual(found.predicted, measured)),
        "residual_of_shipped": residual(shipped, measured).as_dict(),
        "rows": {"used": len(steps)},
    }
    entries: dict[str, dict[str, Any]] = {COMPUTE: {**head, **_fitted_on(steps)}, STACKS: dict(head)}
    for name in found.told:
        entry = entries[name[0]]
        entry.setdefault("standard_error", {})[".".join(name[1:])] = float(f"{found.spread[name]:.2g}")
        _place(entry, name[1:], float(f"{found.values[name]:.4g}"))
    return {name: entry for name, entry in entries.items() if "standard_error" in entry}


def read_steps(cases: Iterable[Case]) -> list[Step]:
    """The cases that tell a step time, as scenarios."""
    found = []
    for case in cases:
        metric = next((name for name in METRICS if name in case.measured), None)
        if case.kind != "train_step" or case.problem or case.known or case.scenario is None or metric is None:
            continue
        scenario = load(case.scenario)
        said = estimate(scenario, even_if_infeasible=True).summary
        # Throughput and step time are each other's inverse.
        share = said[metric].value / case.measured[metric]
        seconds = said["step_time"].value * (1.0 / share if metric == "step_time" else share)
        uneven = said["step_time"].value / even_step_seconds(StepModel(scenario))
        found.append(Step(case.id, scenario, seconds, uneven))
    return found


def predict(steps: Sequence[Step], values: Mapping[Name, float]) -> Floats:
    """Step times [N] with `values` in place of the shipped coefficients."""
    with tempfile.TemporaryDirectory() as folder:
        files = {
            own: _written(own, values, Path(folder) / f"{number}.yaml")
            for number, own in enumerate(dict.fromkeys(step.scenario.cluster.calibration for step in steps))
        }
        return np.array([_seconds(step, values, files[step.scenario.cluster.calibration]) for step in steps])


def fit(steps: Sequence[Step]) -> StepFit:
    """The most probable coefficients: Gauss-Newton on logs, each coefficient held to its start by its spread."""
    start = _coefficients(steps)
    names, goal = list(start), np.log([step.seconds for step in steps])
    prior = np.array([_SPREAD[name[1]] for name in names])
    begin = np.log(list(start.values()))
    logs, information = begin.copy(), np.empty((0, 0))
    for _ in range(_DESCENTS):
        at = _values(names, logs)
        said = np.log(predict(steps, at))
        slopes = _slopes(steps, at, said)
        miss = (goal - said) / _NOISE
        weight = 1.0 / np.sqrt(1.0 + miss**2)
        rows = slopes * (np.sqrt(weight) / _NOISE)[:, None]
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
        if name[:2] in _FACTORS:
            columns.append(np.array([_multiplies(step, name) for step in steps], dtype=np.float64))
            continue
        moved = predict(steps, {**at, name: at[name] * np.exp(_DIFFERENCE)})
        columns.append((np.log(moved) - said) / _DIFFERENCE)
    return np.stack(columns, axis=1)


def _multiplies(step: Step, name: Name) -> bool:
    """Whether a coefficient is a factor on the whole of this step."""
    known = step.scenario.stack if name[1] == "time_factor" else step.scenario.model.kernels
    return name[:2] in _FACTORS and known == name[2]


def _seconds(step: Step, values: Mapping[Name, float], calibration: str) -> float:
    """The step's time under a calibration file; factors on the whole of it are not in the file."""
    cluster, factor = step.scenario.cluster, 1.0
    shipped = catalog.calibration(STACKS, cluster.calibration)
    for name, value in values.items():
        if _multiplies(step, name):
            factor *= value / _shipped(shipped, name[1:])
    scenario = step.scenario.model_copy(update={"cluster": cluster.model_copy(update={"calibration": calibration})})
    return even_step_seconds(StepModel(scenario)) * step.uneven * factor


def _written(own: str | None, values: Mapping[Name, float], path: Path) -> str:
    """The scenario's own calibration with the values in it, as a file."""
    document: dict[str, Any] = read_mapping(Path(own)) if own else {}
    for name, value in values.items():
        if name[:2] not in _FACTORS:
            _place(document.setdefault(name[0], {}), name[1:], float(value))
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def _coefficients(steps: Sequence[Step]) -> dict[Name, float]:
    """Where the fit starts: every coefficient that one of the steps may depend on, as the scenario has it now."""
    found: dict[Name, float] = {}
    # Where several stacks are told apart, the reference is what the others are measured against.
    several = len({step.scenario.stack for step in steps}) > 1
    for step in steps:
        scenario, measured = step.scenario, step.scenario.cluster.calibration
        compute, stacks = catalog.calibration(COMPUTE, measured), catalog.calibration(STACKS, measured)
        generation = scenario.cluster.gpu.generation
        for word in {"bf16", _format(scenario)}:
            found.setdefault((COMPUTE, "gemm_efficiency", generation, word), _efficiency(scenario.cluster.gpu, word))
        scores = compute["attention_scores"]
        found.setdefault((COMPUTE, "attention_scores", generation), scores.get(generation, scores["other"]))
        for path in _paths(scenario, stacks):
            found.setdefault(path, _shipped(compute if path[0] == COMPUTE else stacks, path[1:]))
        if several:
            found.pop((STACKS, "time_factor", str(stacks["reference"])), None)
    return found


def _format(scenario: Scenario) -> str:
    wanted = scenario.precision.compute
    return "bf16" if wanted == "fp16" else wanted


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
        (STACKS, "time_factor", stack): True,
        (STACKS, "kernels", str(scenario.model.kernels)): scenario.model.kernels in stacks["kernels"],
    }
    return [name for name, does in depends.items() if does]


def _shipped(entry: Mapping[str, Any], path: Name) -> float:
    """The number at a path; a stack without one of its own is answered by the reference."""
    place: Any = entry
    for key in path[:-1]:
        place = place[key]
    if path[0] == "time_factor":
        return float(place[nearest(path[-1])])
    return float(place[path[-1]])


def _place(entry: dict[str, Any], path: Name, value: float) -> None:
    for key in path[:-1]:
        entry = entry.setdefault(key, {})
    entry[path[-1]] = value


def _fitted_on(steps: Sequence[Step]) -> dict[str, Any]:
    """GPUs and formats that the entry holds for, beside those of the catalog's."""
    shipped = catalog.calibration(COMPUTE)
    gpus, formats = list(shipped["fitted_gpus"]), {key: list(words) for key, words in shipped["fitted"].items()}
    for step in steps:
        gpu, words = step.scenario.cluster.gpu, formats.setdefault(step.scenario.cluster.gpu.generation, [])
        gpus += [gpu.name] if gpu.name not in gpus else []
        words += [_format(step.scenario)] if _format(step.scenario) not in words else []
    return {"fitted_gpus": gpus, "fitted": formats}


def _band(found: Residual) -> dict[str, float]:
    """The misses as a range for other steps: few steps fit better than they tell."""
    told = {"median": found.median, "p90": found.p90, "bias": found.bias, "rows": found.rows}
    if found.rows >= _MANY:
        return told
    least = {name: _LEAST_SHARE * value for name, value in catalog.calibration(COMPUTE)["residual"].items()}
    return {**told, **{name: max(told[name], least[name]) for name in ("median", "p90")}}
