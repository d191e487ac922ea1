"""A plan of serving from its keys to its answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moesim.catalog.yaml_files import read_mapping
from moesim.errors import ScenarioError
from moesim.files import plain_name
from moesim.planner.pool import Pool
from moesim.planner.search import Progress
from moesim.planner.serving_conclude import conclude
from moesim.planner.serving_fields import with_stated
from moesim.planner.serving_plan import ServingPlan
from moesim.planner.serving_reading import questions
from moesim.planner.serving_search import search
from moesim.planner.serving_spec import ServingPlanSpec
from moesim.scenario.serving import ServingScenario
from moesim.specs.explain import explain

_KINDS = ("serving", "prefill", "decode")
_OF_ONE_GPU = ("gpus_per_domain", "fabric", "scale_up_bandwidth", "nic_bandwidth", "nics_per_domain", "degraded")


def serves(document: Mapping[str, Any], folder: Path) -> bool:
    """Whether a plan file or a scenario's keys are about serving; a scenario that they name is in `folder`."""
    scenario = document.get("scenario", document)
    if isinstance(scenario, str):
        scenario = read_mapping(folder / scenario)
    work = scenario.get("workload") if isinstance(scenario, Mapping) else None
    return isinstance(work, Mapping) and work.get("kind") in _KINDS


def statement(
    scenario: ServingScenario | Mapping[str, Any], said: Mapping[str, Any], where: str, *, anew: bool
) -> ServingPlanSpec:
    """What a plan asks; `said`: keys of a plan file. What the scenario states of its engines stays unless it is
    searched `anew`."""
    search: Any = said.get("search") or {}
    document = _document(scenario, search) if isinstance(scenario, ServingScenario) else dict(scenario)
    if not anew and isinstance(search, Mapping):
        search = with_stated(search, document)
    return read_serving_spec({**said, "search": search, "scenario": document}, where)


def read_serving_spec(document: Mapping[str, Any], where: str) -> ServingPlanSpec:
    """The specification in a mapping; raises `ScenarioError` with all that is wrong."""
    try:
        return ServingPlanSpec.model_validate({"name": plain_name(where), **document})
    except ValidationError as error:
        raise ScenarioError(explain(error, ServingPlanSpec), where) from error


def from_file(document: Mapping[str, Any], path: Path, said: Mapping[str, Any]) -> tuple[ServingPlanSpec, Path]:
    """The specification in a plan file, or in a scenario file whose engines are searched anew; and its folder."""
    name, folder = plain_name(path.stem), path.parent
    if "scenario" not in document and "models" not in document:
        return statement(document, {"name": name, **said}, str(path), anew=True), folder
    scenario, plan = document.get("scenario") or {}, {"name": name, **document, **said}
    if isinstance(scenario, str):
        path = folder / scenario
        return statement(read_mapping(path), plan, str(path), anew=True), path.parent
    return statement(scenario, plan, str(path), anew=False), folder


def run_serving(
    spec: ServingPlanSpec, folder: Path, progress: Progress | None = None, workers: int | None = None
) -> ServingPlan:
    """The plan of a specification; names of files in it are looked up in `folder`."""
    asked = questions(spec, folder)
    with Pool(workers) as pool:
        pool.start_ahead()
        return ServingPlan(spec, tuple(conclude(search(question, pool, progress), pool) for question in asked))


def _document(scenario: ServingScenario, search: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's keys. What a resolved one says of its own GPU's links is left out where other GPUs are tried."""
    document = scenario.document()
    if "cluster.gpu" in search:
        document["cluster"] = {key: value for key, value in document["cluster"].items() if key not in _OF_ONE_GPU}
    return {key: value for key, value in document.items() if key not in ("name", "question") and value is not None}
