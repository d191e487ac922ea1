"""Serving: a case's scenario by the closed form's steady state."""

from __future__ import annotations

from moesim.errors import InfeasibleError, InternalError
from moesim.iteration.stack import band, nearest, stack_note
from moesim.provenance import Basis
from moesim.scenario.loading import load_serving
from moesim.scenario.serving import ServingScenario
from moesim.serving.closed_form import SteadyState, steady_state
from moesim.validation.answer import Prediction, Settings, within
from moesim.validation.cases import Case
from moesim.validation.step_kind import document_of


def serving(case: Case, settings: Settings) -> dict[str, Prediction]:
    """First token, further tokens and throughput of the steady state; raises `InfeasibleError` where there is none."""
    if case.scenario is None:
        raise InternalError(f"{case.id}: serving without a scenario")
    scenario = load_serving(document_of(case.scenario, settings.calibration))
    state = steady_state(scenario)
    if not state.feasible:
        raise InfeasibleError(state.binding)
    measured = scenario.cluster.calibration
    known = nearest(scenario.stack, measured) in (scenario.stack, scenario.stack.lower())
    basis: Basis = "fitted" if known else "assumed"
    notes = (stack_note(scenario.stack, measured), f"binding: {state.binding}")
    return {
        name: within(value, band(scenario.stack, measured, name), basis, notes)
        for name, value in metrics(scenario, state).items()
        if value
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
