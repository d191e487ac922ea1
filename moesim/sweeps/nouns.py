"""What a sweep varies, training or serving: how such a scenario is read, answered, and which metrics it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from moesim import roads
from moesim.columns import SERVING, SUMMARY, Column
from moesim.errors import Problem, ScenarioError, UserError, nearest_hint, shorten
from moesim.provenance import Quantity
from moesim.results.result import Road
from moesim.scenario.loading import AnyScenario
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import KINDS

Noun = Literal["training", "serving"]

COLUMNS: dict[Noun, dict[str, Column]] = {"training": SUMMARY, "serving": SERVING}
UNITS_OF = {name: column.unit for columns in COLUMNS.values() for name, column in columns.items()}
"""Unit of every metric; training and serving have the same one where they share a name."""
HEADLINES: dict[Noun, tuple[str, ...]] = {
    "training": ("step_time", "model_flops_utilization", "memory_per_gpu", "cost"),
    "serving": (
        "time_to_first_token",
        "time_per_output_token",
        "output_tokens_per_second_per_gpu",
        "goodput_fraction",
        "cost_per_million_output_tokens",
    ),
}


def noun_of(document: Mapping[str, Any]) -> Noun:
    """What a scenario's document is of, by its `workload.kind`; training where that is not known."""
    work = document.get("workload")
    kind = work.get("kind", "training") if isinstance(work, Mapping) else "training"
    return "serving" if kind in KINDS and kind != "training" else "training"


def require(scenario: AnyScenario, noun: Noun, where: str) -> AnyScenario:
    """`scenario`, which has to be of that noun: the table of a sweep has one set of metrics."""
    found: Noun = "training" if isinstance(scenario, Scenario) else "serving"
    if found == noun:
        return scenario
    raise ScenarioError([Problem("workload.kind", f"is of {found}, the sweep is of {noun}: sweep them apart")], where)


def metrics_of(noun: Noun, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics of the table: those chosen, or all. Raises `UserError` for one that this noun has not."""
    known = COLUMNS[noun]
    for name in chosen:
        if name not in known:
            raise UserError(f"metrics: {noun} has no {shorten(name)}{nearest_hint(name, known)}")
    return chosen or tuple(known)


def summary_of(noun: Noun, text: str, road: Road) -> Mapping[str, Quantity]:
    """The answer to a scenario that is given as JSON, every name in it resolved."""
    if noun == "serving":
        served = ServingScenario.model_validate_json(text)
        return (roads.estimate(served) if road == "estimate" else roads.simulate(served)).summary
    scenario = Scenario.model_validate_json(text)
    return (roads.estimate(scenario) if road == "estimate" else roads.simulate(scenario)).summary
