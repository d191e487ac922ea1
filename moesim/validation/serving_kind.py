"""Serving: a case's scenario by the closed form's steady state, or by the simulation of its requests."""

from __future__ import annotations

from moesim.errors import InfeasibleError, InternalError
from moesim.iteration.stack import band, nearest, stack_note
from moesim.provenance import Basis, worst
from moesim.roads import simulate
from moesim.scenario.loading import load_serving
from moesim.scenario.serving import ServingScenario
from moesim.serving.closed_form import SteadyState, steady_state
from moesim.validation.answer import Prediction, Settings, within
from moesim.validation.cases import Case
from moesim.validation.step_kind import document_of

_MEAN = "_mean"


def serving(case: Case, settings: Settings) -> dict[str, Prediction]:
    """First token, further tokens and throughput; raises `InfeasibleError` where there is no steady state, or where
    nothing can be simulated."""
    if case.scenario is None:
        raise InternalError(f"{case.id}: serving without a scenario")
    scenario = load_serving(document_of(case.scenario, settings.calibration))
    measured = scenario.cluster.calibration
    known = nearest(scenario.stack, measured) in (scenario.stack, scenario.stack.lower())
    basis: Basis = "fitted" if known else "assumed"
    return _simulated(scenario, basis) if settings.simulate else _steady(scenario, basis)


def _steady(scenario: ServingScenario, basis: Basis) -> dict[str, Prediction]:
    measured, state = scenario.cluster.calibration, steady_state(scenario)
    if not state.feasible:
        raise InfeasibleError(state.binding)
    notes = (stack_note(scenario.stack, measured), f"binding: {state.binding}")
    return {
        name: within(value, band(scenario.stack, measured, name), basis, notes)
        for name, value in metrics(scenario, state).items()
        if value
    }


def _simulated(scenario: ServingScenario, basis: Basis) -> dict[str, Prediction]:
    """Every metric of the simulation. A latency without a statistic in its name is a mean, as benchmarks publish it and
    the steady state tells it."""
    found = simulate(scenario).summary
    means = {name.removesuffix(_MEAN): quantity for name, quantity in found.items() if name.endswith(_MEAN)}
    told = (
        stack_note(scenario.stack, scenario.cluster.calibration),
        f"simulated: {scenario.workload.requests:,} requests",
    )
    return {
        name: Prediction(one.value, one.low, one.high, worst((one.basis, basis)), (*told, one.note))
        for name, one in {**found, **means}.items()
    }


def metrics(scenario: ServingScenario, state: SteadyState) -> dict[str, float]:
    """The means of a steady state by the names of `moesim.columns.SERVING`."""
    return {
        "time_to_first_token": state.time_to_first_token,
        "time_per_output_token": state.time_per_output_token,
        "request_latency": state.request_latency,
        "output_tokens_per_second": state.output_tokens_per_second,
        "output_tokens_per_second_per_gpu": state.output_tokens_per_second / scenario.gpus_used,
        "input_tokens_per_second": state.input_tokens_per_second,
        "requests_per_second": state.requests_per_second,
    }
