"""Training steps: a case's scenario by the closed form, or by the simulation."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from moesim.errors import InternalError, UserError
from moesim.provenance import Quantity, worst
from moesim.results.result import Result
from moesim.roads import estimate, simulate
from moesim.scenario.loading import load_training
from moesim.validation.answer import Prediction, Settings
from moesim.validation.cases import Case
from moesim.validation.words import gpu_name

NOT_FITTING = "does not fit in memory by the law's account; answered all the same"
_TOLD = ("software stack", "dispatcher", "host-bound")


def train_step(case: Case, settings: Settings) -> dict[str, Prediction]:
    """Every metric of the summary, or its ratio to another scenario's where the case is about that."""
    if case.scenario is None:
        raise InternalError(f"{case.id}: a training step without a scenario")
    found = _predicted(case.scenario, settings)
    if case.ratio_to is None:
        return found
    other = _predicted({**case.scenario, **case.ratio_to}, settings)
    return {name: _over(found[name], other[name]) for name in found if name in other and other[name].value > 0}


def _predicted(document: dict[str, Any], settings: Settings) -> dict[str, Prediction]:
    scenario = load_training(document_of(document, settings.calibration))
    if settings.simulate:
        result = simulate(scenario, even_if_infeasible=True)
    else:
        result = estimate(scenario, even_if_infeasible=True)
    notes = _notes(result)
    return {name: _prediction(quantity, notes) for name, quantity in result.summary.items()}


def _over(first: Prediction, second: Prediction) -> Prediction:
    """A ratio of two steps: as far off as one of them may be, for what they share misses in both."""
    notes, basis = tuple(dict.fromkeys([*first.notes, *second.notes])), worst([first.basis, second.basis])
    share = 1.0 / second.value
    return Prediction(first.value * share, first.low * share, first.high * share, basis, notes)


def document_of(scenario: dict[str, Any], calibration: str | None) -> dict[str, Any]:
    """The case's scenario with the GPU by its catalog name and the user's calibration in its place."""
    document = dict(scenario)
    cluster = document.get("cluster")
    if not isinstance(cluster, dict):
        return document
    cluster = dict(cluster)
    if isinstance(cluster.get("gpu"), str):
        with suppress(UserError):  # the scenario's own message is the better one
            cluster["gpu"] = gpu_name(cluster["gpu"])
    if calibration is not None:
        cluster.setdefault("calibration", calibration)
    return {**document, "cluster": cluster}


def _notes(result: Result) -> tuple[str, ...]:
    told = [note for note in result.notes if note.startswith(_TOLD)]
    return (*([NOT_FITTING] if not _fits(result) else []), *told)


def _fits(result: Result) -> bool:
    share = result.summary.get("fits_in_memory")
    return share is None or share.value <= 1.0


def _prediction(quantity: Quantity, notes: tuple[str, ...]) -> Prediction:
    own = (quantity.note,) if quantity.note else ()
    return Prediction(quantity.value, quantity.low, quantity.high, quantity.basis, (*notes, *own))
