"""Measured training steps as rows of a fit: read from cases, and priced under trial coefficients.

N steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from moesim import catalog
from moesim.catalog.yaml_files import read_mapping
from moesim.closed_form.run import even_step_seconds
from moesim.errors import MoesimError, shorten
from moesim.roads import estimate
from moesim.scenario.loading import load_training
from moesim.scenario.scenario import Scenario
from moesim.step.model import StepModel
from moesim.step.stack import nearest
from moesim.validation.cases import Case

Floats = NDArray[np.float64]
Name = tuple[str, ...]
"""The calibration's name and the path to the number in it."""

COMPUTE, STACKS = "training-compute", "stacks"
METRICS = ("step_time", "tokens_per_second_per_gpu", "tokens_per_second")
# Factors on a whole step.
FACTORS = ((STACKS, "time_factor"), (STACKS, "kernels"))
_NAMED = 3


@dataclass(frozen=True)
class Step:
    """A measured step. `uneven`: the estimate's step time over that at even load, under the shipped coefficients;
    `metric`, one of `METRICS`, is what was measured, `where` the place in the user's files."""

    id: str
    scenario: Scenario
    seconds: float
    uneven: float
    metric: str = METRICS[0]
    where: str = ""


def read_steps(cases: Iterable[Case]) -> list[Step]:
    """The cases that tell a step time, as scenarios."""
    return sort_out(cases)[0]


def sort_out(cases: Iterable[Case]) -> tuple[list[Step], dict[str, str]]:
    """The cases that tell a step time, and by how many and which they are those that do not, with the reason."""
    found: list[Step] = []
    why: dict[str, list[str]] = {}
    for case in cases:
        step = read_step(case)
        if isinstance(step, Step):
            found.append(step)
        else:
            why.setdefault(step, []).append(f"{case.where} ({case.id})")
    return found, {listed(places): reason for reason, places in why.items()}


def listed(places: Sequence[str]) -> str:
    """How many cases and which, in words."""
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return f"{len(places)} case{'s' if len(places) > 1 else ''}: {', '.join(places[:_NAMED])}{more}"


def read_step(case: Case) -> Step | str:
    """The case as a measured step, or why it is none."""
    metric = next((name for name in METRICS if name in case.measured), None)
    if case.problem:
        return case.problem
    unusable = next((case.refused[name] for name in METRICS if name in case.refused), "")
    if unusable and metric is None:
        return unusable
    if case.kind != "train_step" or case.scenario is None or metric is None:
        return f"not of kind train_step with one of {', '.join(METRICS)}"
    if case.known:
        return f"the law is known to fail there: {case.known}"
    if case.ratio_to is not None:
        return "a ratio of two steps is no step time"
    try:
        scenario = load_training(case.scenario)
        said = estimate(scenario, even_if_infeasible=True).summary
        even = even_step_seconds(StepModel(scenario))
    except MoesimError as error:
        return shorten(" ".join(str(error).split()), 300)
    # Throughput and step time are each other's inverse.
    share = said[metric].value / case.measured[metric]
    seconds = said["step_time"].value * (1.0 / share if metric == "step_time" else share)
    return Step(case.id, scenario, seconds, said["step_time"].value / even, metric, case.where)


def predict(steps: Sequence[Step], values: Mapping[Name, float]) -> Floats:
    """Step times [N] with `values` in place of the shipped coefficients."""
    with tempfile.TemporaryDirectory() as folder:
        files = {
            own: _written(own, values, Path(folder) / f"{number}.yaml")
            for number, own in enumerate(dict.fromkeys(step.scenario.cluster.calibration for step in steps))
        }
        return np.array([_seconds(step, values, files[step.scenario.cluster.calibration]) for step in steps])


def answered(steps: Sequence[Step], entries: Mapping[str, Any]) -> Floats:
    """The whole estimate's step times [N] under a calibration file that holds `entries`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fitted.yaml"
        path.write_text(yaml.safe_dump(dict(entries)), encoding="utf-8")
        seconds = []
        for step in steps:
            cluster = step.scenario.cluster.model_copy(update={"calibration": str(path)})
            scenario = step.scenario.model_copy(update={"cluster": cluster})
            seconds.append(estimate(scenario, even_if_infeasible=True).summary["step_time"].value)
        return np.array(seconds)


def multiplies(step: Step, name: Name) -> bool:
    """Whether a coefficient is a factor on the whole of this step."""
    known = step.scenario.stack if name[1] == "time_factor" else step.scenario.model.kernels
    return name[:2] in FACTORS and known == name[2]


def shipped(entry: Mapping[str, Any], path: Name) -> float:
    """The number at a path; a stack without one of its own is answered by the nearest."""
    place: Any = entry
    for key in path[:-1]:
        place = place[key]
    if path[0] == "time_factor" and path[-1] not in place:
        return float(place[nearest(path[-1])])
    return float(place[path[-1]])


def put(entry: dict[str, Any], path: Name, value: float) -> None:
    """Sets the number at a path."""
    for key in path[:-1]:
        entry = entry.setdefault(key, {})
    entry[path[-1]] = value


def compute_format(scenario: Scenario) -> str:
    """The format by which the calibration knows a step."""
    wanted = scenario.precision.compute
    return "bf16" if wanted == "fp16" else wanted


def _seconds(step: Step, values: Mapping[Name, float], calibration: str) -> float:
    """The step's time under a calibration file; factors on the whole of it are not in the file."""
    cluster, factor = step.scenario.cluster, 1.0
    known = catalog.calibration(STACKS, cluster.calibration)
    for name, value in values.items():
        if multiplies(step, name):
            factor *= value / shipped(known, name[1:])
    scenario = step.scenario.model_copy(update={"cluster": cluster.model_copy(update={"calibration": calibration})})
    return even_step_seconds(StepModel(scenario)) * step.uneven * factor


def _written(own: str | None, values: Mapping[Name, float], path: Path) -> str:
    """The scenario's own calibration with the values in it, as a file."""
    document: dict[str, Any] = read_mapping(Path(own)) if own else {}
    for name, value in values.items():
        if name[:2] not in FACTORS:
            put(document.setdefault(name[0], {}), name[1:], float(value))
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)
