"""`moesim.plan`: which GPUs and which layout train a model within the limits, for least."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, overload

from pydantic import ValidationError

from moesim.catalog.yaml_files import read_mapping
from moesim.errors import Problem, ScenarioError, shorten
from moesim.files import plain_name
from moesim.planner.conclude import conclude
from moesim.planner.fields import with_stated
from moesim.planner.own import with_own
from moesim.planner.plan import Plan
from moesim.planner.pool import Pool
from moesim.planner.reading import questions
from moesim.planner.search import search
from moesim.planner.serving_plan import ServingPlan
from moesim.planner.serving_run import from_file, run_serving, serves
from moesim.planner.serving_run import statement as serving_statement
from moesim.planner.serving_spec import Objective as ServingObjective
from moesim.planner.serving_spec import ServingPlanSpec
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario
from moesim.specs.explain import explain
from moesim.specs.plan import Objective, PlanSpec

Progress = Callable[[str, float], None]
_OF_ONE_GPU = ("gpus_per_domain", "fabric", "scale_up_bandwidth", "nic_bandwidth", "nics_per_domain", "degraded")


@overload
def plan(
    scenario: Scenario | Mapping[str, Any] | str | os.PathLike[str],
    search: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    objective: Objective | None = None,
    simulate: int | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    **more: Any,
) -> Plan: ...


@overload
def plan(
    scenario: ServingScenario,
    search: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    objective: ServingObjective | None = None,
    simulate: int | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    **more: Any,
) -> ServingPlan: ...


def plan(
    scenario: Scenario | ServingScenario | Mapping[str, Any] | str | os.PathLike[str],
    search: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    objective: Objective | ServingObjective | None = None,
    simulate: int | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    **more: Any,
) -> Plan | ServingPlan:
    """The plan of a scenario (a `Scenario`, its keys, or its file), or of a plan file where nothing else is said.

    `search` maps fields of the scenario to values to try, `limits` and `objective` are those of a plan file, and so are
    `more`: `prices`, `models`, `candidates`, `question`. What is not searched stays as the scenario has it. Degrees,
    micro-batch, recompute, schedule and overlap are searched anew where a `Scenario` or a scenario's file is given;
    what a mapping or a plan file states of them stays, unless `search` names it. `workers`: processes that
    answer, one a core unless stated.
    A scenario whose `workload.kind` is prefill, decode or serving makes a `ServingPlan`: the GPUs and engines that
    serve its requests within latency limits.
    Raises `ScenarioError` with all that is wrong. Nothing feasible is an answer: `plan.feasible` is false.
    """
    said = {"search": search, "limits": limits, "objective": objective, "simulate": simulate, **more}
    said = {key: value for key, value in said.items() if value is not None}
    asked = _of_serving(scenario, said)
    if asked is not None:
        return run_serving(*asked, progress, workers)
    spec, folder = statement(scenario, said)  # type: ignore[arg-type]
    return run(spec, folder, progress, workers)


def _of_serving(scenario: object, said: Mapping[str, Any]) -> tuple[ServingPlanSpec, Path] | None:
    """What a plan of serving asks, and its folder; None where the scenario is one of training."""
    if isinstance(scenario, ServingScenario):
        return serving_statement(scenario, said, "plan", anew=True), Path()
    if isinstance(scenario, Mapping):
        return (serving_statement(scenario, said, "plan", anew=False), Path()) if serves(scenario, Path()) else None
    if not isinstance(scenario, (str, os.PathLike)):
        return None
    path = Path(scenario)
    document = read_mapping(path)
    return from_file(document, path, said) if serves(document, path.parent) else None


def statement(
    scenario: Scenario | Mapping[str, Any] | str | os.PathLike[str], said: Mapping[str, Any]
) -> tuple[PlanSpec, Path]:
    """What a plan asks, checked by itself, and the folder in which files are looked up; `said`: keys of a plan file."""
    if isinstance(scenario, (str, os.PathLike)):
        return _from_file(Path(scenario), said)
    asked = {**said, "scenario": _document(scenario, said.get("search") or {})}
    return read_spec(asked if isinstance(scenario, Scenario) else _kept(asked), "plan"), Path()


def run(spec: PlanSpec, folder: Path, progress: Progress | None = None, workers: int | None = None) -> Plan:
    """The plan of a specification; names of files in it are looked up in `folder`."""
    spec, folder = _with_scenario(spec, folder)
    asked = [with_own(question, folder) for question in questions(spec, folder)]
    with Pool(workers) as pool:
        if spec.simulate > 1:
            pool.start_ahead()
        return Plan(spec, tuple(conclude(search(question, pool, progress), pool) for question in asked))


def read_spec(document: Mapping[str, Any], where: str) -> PlanSpec:
    """The specification in a mapping; raises `ScenarioError` with all that is wrong."""
    try:
        return PlanSpec.model_validate({"name": plain_name(where), **document})
    except ValidationError as error:
        raise ScenarioError(explain(error, PlanSpec), where) from error


def load_spec(path: Path) -> PlanSpec:
    """The specification in a plan file."""
    return read_spec({"name": plain_name(path.stem), **_kept(read_mapping(path))}, str(path))


def _from_file(path: Path, given: Mapping[str, Any]) -> tuple[PlanSpec, Path]:
    """A plan file, or a scenario file with what is said beside it."""
    document = read_mapping(path)
    if "scenario" in document or "models" in document:
        return read_spec({"name": plain_name(path.stem), **_kept({**document, **given})}, str(path)), path.parent
    return read_spec({"name": plain_name(path.stem), **given, "scenario": document}, str(path)), path.parent


def _kept(document: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's keys where what its own scenario states of a layout stays, unless `search` names it."""
    scenario, search = document.get("scenario"), document.get("search") or {}
    if not isinstance(scenario, Mapping) or not isinstance(search, Mapping):
        return dict(document)
    return {**document, "search": with_stated(search, scenario)}


def _with_scenario(spec: PlanSpec, folder: Path) -> tuple[PlanSpec, Path]:
    """The specification with the scenario file that it names read."""
    if not isinstance(spec.scenario, str):
        return spec, folder
    path = folder / spec.scenario
    return spec.model_copy(update={"scenario": read_mapping(path)}), path.parent


def _document(scenario: Scenario | Mapping[str, Any], search: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's keys. What a resolved one says of its own GPU's links is left out where other GPUs are tried."""
    if not isinstance(scenario, Scenario):
        if not isinstance(scenario, Mapping):
            problem = Problem("scenario", f"expected a scenario, a mapping or a file, got {shorten(scenario)}")
            raise ScenarioError([problem], "plan")
        return dict(scenario)
    document = scenario.document()
    if "cluster.gpu" in search:
        document["cluster"] = {key: value for key, value in document["cluster"].items() if key not in _OF_ONE_GPU}
    return {key: value for key, value in document.items() if key not in ("name", "question")}
