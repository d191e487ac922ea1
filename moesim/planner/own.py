"""The layout that a plan's scenario states itself, where it is searched anew: one more candidate, to be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import Any

from moesim.errors import ScenarioError, UserError
from moesim.planner.fields import one_recompute, searched_anew
from moesim.planner.reading import Question
from moesim.scenario.loading import from_document
from moesim.scenario.scenario import Scenario
from moesim.screening import Candidates, Choices
from moesim.specs.cluster import ClusterSpec

_COLUMNS = tuple(field.name for field in fields_of(Candidates))
_KINDS = ("recompute", "schedule", "capacity", "dispatcher", "overlap")
_LISTS = ("recomputes", "schedules", "capacities", "dispatchers", "overlaps")


def with_own(question: Question, folder: Path) -> Question:
    """The question with the layout that its scenario states among the candidates, and a note that says so; the same
    question where the scenario states none, or all that it states stays."""
    spec = question.spec
    document = spec.scenario
    if spec.models or not isinstance(document, Mapping) or not searched_anew(spec.search, document):
        return question
    try:
        own = from_document(_document(question, document), spec.name, folder=folder)
    except UserError as error:
        why = error.problems[0] if isinstance(error, ScenarioError) else error
        return _noted(question, f"the scenario's own layout is no candidate: {why}")
    note = (
        "the scenario's own layout is searched anew; as it stands it is one of the candidates, answered like the best"
    )
    place = _cluster(question, own.cluster)
    if place is None:
        return _elsewhere(question, own)
    kept = own.stack_options.pipeline_layout
    options = question.base.stack_options.model_copy(update={"pipeline_layout": kept})
    base = question.base.model_copy(update={"stack_options": options})
    choices, row = _row(question.choices, own, place)
    return _noted(replace(question, base=base, choices=choices, own=row), note)


def _document(question: Question, document: Mapping[str, Any]) -> dict[str, Any]:
    """The scenario's keys with the batch and the length of the run that all candidates have."""
    work = question.base.workload
    said = document.get("workload") or {}
    shared = {"global_batch": work.global_batch, "total_tokens": work.total_tokens}
    return {"name": question.spec.name, **document, "workload": {**said, **shared}}


def _noted(question: Question, note: str) -> Question:
    return replace(question, notes=(note, *question.notes))


def _cluster(question: Question, own: ClusterSpec) -> int | None:
    """The place of its cluster among those that are searched."""
    for place, tried in enumerate(question.choices.clusters):
        if (tried.gpu, tried.gpus, tried.fabric) == (own.gpu, own.gpus, own.fabric):
            return place
    return None


def _elsewhere(question: Question, own: Scenario) -> Question:
    """The question with a layout to compare with that stands on a cluster that is not searched."""
    name = f"{own.cluster.gpus:,} {own.cluster.gpu.name}"
    price = question.spec.prices.get(own.cluster.gpu.name, question.base.prices.gpu_hour)
    if (price is None) is question.priced:
        return _noted(
            question, f"the scenario's own layout is not compared: {name} are not searched, and have no price"
        )
    prices = question.base.prices.model_copy(update={"gpu_hour": price})
    found = replace(question, elsewhere=own.model_copy(update={"prices": prices}))
    where = f"{name} (fabric {own.cluster.fabric.name}), which is not among the clusters searched"
    return _noted(found, f"the scenario's own layout is compared on its own {where}")


def _row(choices: Choices, own: Scenario, place: int) -> tuple[Choices, tuple[int, ...]]:
    """The scenario as values by column, and the choices with those that only it has."""
    degrees = own.parallelism
    capacity, dispatcher = own.routing.capacity, own.dispatcher.kind
    said = (one_recompute(own.recompute), own.schedule, capacity, dispatcher, own.overlap)
    lists = {
        name: tuple(dict.fromkeys([*getattr(choices, name), value])) for name, value in zip(_LISTS, said, strict=True)
    }
    values = {kind: lists[name].index(value) for kind, name, value in zip(_KINDS, _LISTS, said, strict=True)}
    values |= {"cluster": place, "micro_batch": own.workload.micro_batch}
    row = tuple(int(values[name]) if name in values else int(getattr(degrees, name)) for name in _COLUMNS)
    return replace(choices, **lists), row
