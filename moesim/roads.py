"""Both roads from a scenario to its result: the closed form and the simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from moesim.closed_form.expected import expected_work
from moesim.closed_form.run import estimate_model, even_step
from moesim.engine.run import Progress, simulate_model
from moesim.errors import InternalError, UserError
from moesim.network.dispatchers import DISPATCHERS
from moesim.network.topology import group
from moesim.provenance import Quantity
from moesim.results.account import Account
from moesim.results.assemble import require_memory
from moesim.results.dispatcher_table import DispatcherRow, ordered
from moesim.results.link_use import LinkUse, link_use_of
from moesim.results.observed import Observed
from moesim.results.result import Result
from moesim.results.routing_metrics import routing
from moesim.results.uncertainty import Uncertainty
from moesim.scenario.loading import training
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario
from moesim.step.memory import memory_parts
from moesim.step.model import StepModel

if TYPE_CHECKING:
    from moesim.serving.dispatchers import DispatchersCompared
    from moesim.serving.result import ServingResult


@overload
def estimate(scenario: Scenario, *, even_if_infeasible: bool = False) -> Result: ...


@overload
def estimate(scenario: ServingScenario, *, even_if_infeasible: bool = False) -> ServingResult: ...


def estimate(scenario: Scenario | ServingScenario, *, even_if_infeasible: bool = False) -> Result | ServingResult:
    """The closed form of `scenario`, in milliseconds; of serving, its steady state.

    Raises `InfeasibleError` where the model does not fit in memory, or requests come faster than they can be served,
    unless `even_if_infeasible`.
    """
    if isinstance(scenario, ServingScenario):
        from moesim.serving.run import estimate_serving

        return estimate_serving(scenario, even_if_infeasible=even_if_infeasible)
    result = estimate_model(_closed_form(scenario))
    if not even_if_infeasible:
        require_memory(scenario, result.memory)
    return result


@overload
def simulate(scenario: Scenario, progress: Progress | None = None, *, even_if_infeasible: bool = False) -> Result: ...


@overload
def simulate(
    scenario: ServingScenario, progress: Progress | None = None, *, even_if_infeasible: bool = False
) -> ServingResult: ...


def simulate(
    scenario: Scenario | ServingScenario, progress: Progress | None = None, *, even_if_infeasible: bool = False
) -> Result | ServingResult:
    """The discrete-event simulation of `scenario`; `progress(what, share)` hears how far it is.

    The step at perfectly balanced routing, against which `skew_time` is told, comes from the closed form where all
    ranks are alike, for there both roads are one; with jitter, stragglers or flows it is simulated.
    Raises `InfeasibleError` where the model does not fit in memory, unless `even_if_infeasible`; of serving always, for
    without a KV cache there is nothing to simulate.
    """
    if isinstance(scenario, ServingScenario):
        from moesim.serving.run import simulate_serving

        return simulate_serving(scenario, progress)
    model = StepModel(scenario)
    if not even_if_infeasible:
        closed = _closed_form(scenario)
        require_memory(scenario, memory_parts(closed, expected_work(closed)))
    settings = scenario.simulation
    disturbed = settings.jitter or settings.stragglers or settings.network == "max-min"
    even = even_step(model) if scenario.model.is_moe and not disturbed else None
    return simulate_model(model, progress, even)


@overload
def compare_dispatchers(scenario: Scenario) -> list[DispatcherRow]: ...


@overload
def compare_dispatchers(scenario: ServingScenario) -> DispatchersCompared: ...


def compare_dispatchers(scenario: Scenario | ServingScenario) -> list[DispatcherRow] | DispatchersCompared:
    """The closed form of `scenario` under every known dispatcher, the quickest first; those that do not run say why.

    Of serving: under one for both phases, and one for each. Raises `UserError` for a scenario without exchanges.
    """
    if isinstance(scenario, ServingScenario):
        from moesim.serving.dispatchers import compare_serving_dispatchers

        return compare_serving_dispatchers(scenario)
    if not scenario.model.is_moe or scenario.parallelism.expert == 1:
        raise UserError("there is nothing to dispatch: one expert-parallel rank, or a model without experts")
    layout = scenario.parallelism
    network = group(scenario.cluster, layout.expert, stride=layout.expert_tensor)
    found = []
    for name, law in DISPATCHERS.items():
        multiprocessors = law.multiprocessors(scenario.dispatcher.multiprocessors)
        spec = scenario.dispatcher.model_copy(update={"kind": name})
        refusal = law.runs_on(network)
        result = None if refusal else estimate_model(_closed_form(scenario.model_copy(update={"dispatcher": spec})))
        found.append(DispatcherRow(name, multiprocessors, result, refusal))
    return ordered(found)


def link_use(scenario: Scenario) -> LinkUse:
    """How busy one dispatch keeps the links of an expert-parallel group, by the closed form.

    Raises `UserError` for a scenario without exchanges.
    """
    if not scenario.exchanges_tokens:
        raise UserError("no links to look at: one expert-parallel rank, or a model without experts")
    model = _closed_form(scenario)
    routed = expected_work(model)
    if routed is None:
        raise InternalError("a model with experts has routed work")
    return link_use_of(model, routed)


def routing_metrics(scenario: Scenario) -> dict[str, Quantity]:
    """The metrics of routing alone, as the closed form has them, without the step: several times quicker."""
    model = _closed_form(scenario)
    account = Account(model, expected_work(model), Observed((0.0,), {}, {}))
    return routing(account, Uncertainty(account))


def choose_dispatcher(scenario: Scenario) -> tuple[str, str]:
    """What `dispatcher: auto` takes for `scenario`, a training step, and why."""
    spec = training(scenario).dispatcher.model_copy(update={"kind": "auto"})
    found = _closed_form(scenario.model_copy(update={"dispatcher": spec})).mover
    return found.dispatcher.name, found.reason


def _closed_form(scenario: Scenario) -> StepModel:
    """The step as the closed form sees it: it takes the busiest port where the simulation lets flows share links."""
    flows = scenario.simulation.network == "max-min"
    return StepModel(scenario, "port-load" if flows else None)
