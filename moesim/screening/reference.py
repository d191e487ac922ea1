"""Candidates one by one, by the closed form itself: what `screen` is held against, and what answers for features that
it does not know in arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moesim.closed_form.expected import expected_work
from moesim.closed_form.run import observe
from moesim.results.account import Account
from moesim.scenario.scenario import Scenario
from moesim.screening.candidates import Candidates, Choices, scenario_of
from moesim.screening.memory import PARTS
from moesim.specs.workload import PlacementSpec
from moesim.step.memory import memory_parts
from moesim.step.model import StepModel

Floats = NDArray[np.float64]


def is_known(scenario: Scenario) -> bool:
    """Whether `screen` has the scenario's laws in arrays: not where experts are elsewhere than their layout says."""
    return scenario.placement == PlacementSpec()


def network_of(scenario: Scenario) -> str:
    """The network model of the closed form: it takes the busiest port where the simulation lets flows share links."""
    return "port-load" if scenario.simulation.network == "max-min" else scenario.simulation.network


def one_by_one(scenario: Scenario, choices: Choices, candidates: Candidates, report: Callable[[float], None]) -> Floats:
    """Step, exposed communication and bubble in seconds, share of copies dropped, bytes by part [C, 4 + parts]."""
    rows = []
    for row in range(len(candidates)):
        rows.append(_one(scenario_of(scenario, choices, candidates, row)))
        report((row + 1) / len(candidates))
    return np.array(rows).reshape(len(candidates), 4 + len(PARTS))


def _one(scenario: Scenario) -> list[float]:
    model = StepModel(scenario, network_of(scenario))
    routed = expected_work(model)
    observed, parts = observe(model, routed), memory_parts(model, routed)
    waited, dropped = observed.waited, 0.0
    exposed = sum(waited.get(kind, 0.0) for kind in ("dispatch", "combine", "data-parallel"))
    exposed += sum(Account(model, routed, observed).collectives.values())
    if routed is not None:
        kept, copies = routed.expert_kept.sum(axis=-1), np.maximum(routed.expert_routed.sum(axis=-1), 1)
        dropped = float((1.0 - kept / copies).mean())
    return [observed.seconds[0], exposed, waited["bubble"], dropped, *(parts.get(name, 0.0) for name in PARTS)]
