"""The dispatcher that moves a scenario's tokens, on the network of one expert-parallel group."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.errors import Problem, ScenarioError
from moesim.network.demand import Choices, Demand, balanced_demand
from moesim.network.dispatchers import Dispatcher, ExchangeTimes, Payload, PortTimes, choose, dispatcher, payload
from moesim.network.topology import GroupNetwork, group
from moesim.scenario.scenario import Scenario
from moesim.step.stack import time_factor


@dataclass(frozen=True)
class Mover:
    """A dispatcher on its network. `factor`: how much longer the software
    stack takes; `even`: its times at perfectly balanced routing, of `even_demand`; `reason`: why it was chosen."""

    dispatcher: Dispatcher
    network: GroupNetwork
    payload: Payload
    multiprocessors: int | None
    network_model: str
    factor: float
    even: ExchangeTimes
    even_demand: Demand
    reason: str

    @property
    def busy_multiprocessors(self) -> int:
        """SMs that its kernels hold while they run."""
        return self.even.multiprocessors

    def times(self, demand: Demand) -> ExchangeTimes:
        """Seconds and bytes of dispatch and combine for a batch of demands."""
        found = self.dispatcher.times(demand, self.network, self.payload, self.multiprocessors, self.network_model)
        return scaled(found, self.factor)


def scaled(times: ExchangeTimes, factor: float) -> ExchangeTimes:
    """The same exchange `factor` times as long."""
    if factor == 1.0:
        return times

    def longer(port: PortTimes) -> PortTimes:
        send, receive = port.send * factor, port.receive * factor
        return replace(port, latency=port.latency * factor, send=send, receive=receive)

    return replace(times, dispatch=longer(times.dispatch), combine=longer(times.combine))


def mover(scenario: Scenario) -> Mover:
    """The dispatcher that the scenario names, or, for `auto`, the fastest that runs on its cluster.

    Raises `ScenarioError` where the named one does not run there, `InfeasibleError` where none does.
    """
    layout, model, precision = scenario.parallelism, scenario.model, scenario.precision
    network = group(scenario.cluster, layout.expert, stride=layout.expert_tensor)
    copy = payload(precision.dispatch, precision.combine, model.d_model, max(1, model.top_k))
    choices = Choices(max(1, model.n_experts), max(1, model.top_k), model.router.groups, model.router.top_groups)
    demand = balanced_demand(choices, layout.expert, network.ranks_per_domain, float(scenario.tokens_per_rank))
    wanted, multiprocessors = scenario.dispatcher.kind, scenario.dispatcher.multiprocessors
    if wanted == "auto":
        choice = choose(demand, network, copy, multiprocessors)
        chosen, reason = choice.dispatcher, choice.reason
    else:
        chosen, reason = dispatcher(wanted), "named by the scenario"
        refusal = chosen.runs_on(network)
        if refusal is not None:
            raise ScenarioError([Problem("dispatcher.kind", refusal)], scenario.name)
    even = chosen.times(demand, network, copy, multiprocessors, scenario.simulation.network)
    factor = time_factor(scenario.stack, model.kernels)
    network_model = scenario.simulation.network
    return Mover(chosen, network, copy, multiprocessors, network_model, factor, scaled(even, factor), demand, reason)
