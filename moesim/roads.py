"""Both roads from a scenario to its result: the closed form and the simulation."""

from __future__ import annotations

from moesim.closed_form.expected import expected_work
from moesim.closed_form.run import estimate_model, even_step_seconds
from moesim.engine.run import Progress, simulate_model
from moesim.results.assemble import require_memory
from moesim.results.result import Result
from moesim.scenario.scenario import Scenario
from moesim.step.memory import memory_parts
from moesim.step.model import StepModel


def estimate(scenario: Scenario, *, even_if_infeasible: bool = False) -> Result:
    """The closed form of `scenario`, in milliseconds.

    Raises `InfeasibleError` where the model does not fit in memory, unless `even_if_infeasible`.
    """
    result = estimate_model(StepModel(scenario))
    if not even_if_infeasible:
        require_memory(scenario, result.memory)
    return result


def simulate(scenario: Scenario, progress: Progress | None = None, *, even_if_infeasible: bool = False) -> Result:
    """The discrete-event simulation of `scenario`; `progress(what, share)` hears how far it is.

    The step at perfectly balanced routing, against which `skew_time` is told, comes from the closed form where all
    ranks are alike, for there both roads are one; with jitter or stragglers it is simulated. Raises `InfeasibleError`
    where the model does not fit in memory, unless `even_if_infeasible`.
    """
    model = StepModel(scenario)
    if not even_if_infeasible:
        require_memory(scenario, memory_parts(model, expected_work(model)))
    disturbed = scenario.simulation.jitter or scenario.simulation.stragglers
    even = even_step_seconds(model) if scenario.model.is_moe and not disturbed else None
    return simulate_model(model, progress, even)
