"""The dispatcher that moves a scenario's tokens, on the network of one expert-parallel group."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from moesim.errors import Problem, ScenarioError
from moesim.network.demand import Choices, Demand, balanced_demand
from moesim.network.dispatchers import Dispatcher, ExchangeTimes, Payload, PortTimes, choose, dispatcher, payload
from moesim.network.topology import GroupNetwork, group
from moesim.scenario.scenario import Scenario
from moesim.step.stack import time_factor

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mover:
    """A dispatcher on the network of the worst-placed group. `factor`: how much longer the software stack takes;
    `exchanges`: dispatches that the router needs a layer; `parts`: how many exchanges, one after the other, move a
    microbatch, all of them together priced; `even`: times at perfectly balanced routing, of `even_demand`; `reason`:
    why it was chosen."""

    dispatcher: Dispatcher
    network: GroupNetwork
    payload: Payload
    multiprocessors: int | None
    network_model: str
    factor: float
    exchanges: int
    parts: int
    even: ExchangeTimes
    even_demand: Demand
    reason: str

    @property
    def busy_multiprocessors(self) -> int:
        """SMs that its kernels hold while they run."""
        return self.even.multiprocessors

    def times(self, demand: Demand) -> ExchangeTimes:
        """Seconds and bytes of dispatch and combine for a batch of demands."""
        asked = part(demand, self.parts)
        found = self.dispatcher.times(asked, self.network, self.payload, self.multiprocessors, self.network_model)
        return scaled(found, self.factor, self.exchanges * self.parts)


def part(demand: Demand, parts: int) -> Demand:
    """One of so many equal parts of a demand."""
    if parts == 1:
        return demand
    moved = (demand.copies / parts, demand.rank_tokens / parts, demand.domain_tokens / parts)
    return Demand(*moved, demand.tokens / parts, demand.ranks_per_domain)


def scaled(times: ExchangeTimes, factor: float, exchanges: int = 1) -> ExchangeTimes:
    """The same exchange `factor` times as long, done `exchanges` times over."""
    if factor * exchanges == 1.0:
        return times

    def longer(port: PortTimes) -> PortTimes:
        seconds = {name: getattr(port, name) * (factor * exchanges) for name in ("latency", "send", "receive", "own")}
        moved = [field.name for field in fields(port) if field.name not in seconds]
        return replace(port, **seconds, **{name: getattr(port, name) * exchanges for name in moved})

    return replace(times, dispatch=longer(times.dispatch), combine=longer(times.combine))


def even_demand(scenario: Scenario, network: GroupNetwork) -> Demand:
    """What a microbatch moves at perfectly balanced routing, by the copies that the router makes of a token."""
    layout, rule = scenario.parallelism, scenario.router
    tokens, ranks, domain = float(scenario.tokens_per_rank), layout.expert, network.ranks_per_domain
    of_all = tokens * layout.expert_tensor
    each = rule.copies(of_all, scenario.workload.micro_batch) / of_all

    def by_choices(top_k: int) -> Demand:
        return balanced_demand(
            Choices(rule.experts, top_k, rule.spec.groups, rule.spec.top_groups), ranks, domain, tokens
        )

    whole = int(each + 1e-9)
    if not rule.slotted and each - whole < 1e-9:
        return by_choices(whole)
    if rule.slotted:
        # A slot is a row of its own: nothing to share between the experts of a rank.
        sizes = np.diff(np.append(np.arange(0, ranks, domain), ranks))
        square = np.full((ranks, ranks), each * tokens / ranks)
        by_domain = np.tile(each * tokens / ranks * sizes, (ranks, 1))
        return Demand(square, square, by_domain, np.full(ranks, each * tokens), domain)
    more, less = by_choices(whole + 1), by_choices(max(1, whole))
    share = each - whole

    def between(name: str) -> Floats:
        return np.asarray(share * getattr(more, name) + (1 - share) * (whole > 0) * getattr(less, name))

    return Demand(between("copies"), between("rank_tokens"), between("domain_tokens"), more.tokens, domain)


def mover(scenario: Scenario, model_of_network: str) -> Mover:
    """The dispatcher that the scenario names, or, for `auto`, the fastest that runs on its cluster.

    Raises `ScenarioError` where the named one does not run there, `InfeasibleError` where none does.
    """
    layout, model, precision = scenario.parallelism, scenario.model, scenario.precision
    network = group(scenario.cluster, layout.expert, stride=layout.expert_tensor)
    copy = payload(precision.dispatch, precision.combine, model.d_model, max(1, model.top_k), scenario.expert_slots)
    demand = even_demand(scenario, network)
    wanted, multiprocessors = scenario.dispatcher.kind, scenario.dispatcher.multiprocessors
    if wanted == "auto":
        choice = choose(demand, network, copy, multiprocessors)
        chosen, reason = choice.dispatcher, choice.reason
    else:
        chosen, reason = dispatcher(wanted), "named by the scenario"
        refusal = chosen.runs_on(network)
        if refusal is not None:
            raise ScenarioError([Problem("dispatcher.kind", refusal)], scenario.name)
    found = Mover(
        dispatcher=chosen,
        network=network,
        payload=copy,
        multiprocessors=multiprocessors,
        network_model=model_of_network,
        factor=time_factor(scenario.stack, model.kernels, scenario.cluster.calibration),
        exchanges=scenario.router.exchanges,
        parts=scenario.microbatch_parts,
        even=chosen.times(part(demand, scenario.microbatch_parts), network, copy, multiprocessors, model_of_network),
        even_demand=demand,
        reason=reason,
    )
    return replace(found, even=scaled(found.even, found.factor, found.exchanges * found.parts))
