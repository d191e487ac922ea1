"""Communication of one layer of an iteration: tensor-parallel sums, and tokens on their way to experts and back.

[G] tokens of an attention replica; seconds of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError
from moesim.network.collectives import all_gather, custom_all_reduce, point_to_point, reduce_scatter
from moesim.network.demand import Choices, Demand, balanced_demand
from moesim.network.dispatchers import DISPATCHERS, Dispatcher, Payload, choose, dispatcher, payload
from moesim.network.topology import GroupNetwork, group, pair
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import InstanceSpec

Floats = NDArray[np.float64]
Work = Literal["prefill", "decode"]
BY_PHASE: dict[Work, str] = {"prefill": "deepep-normal", "decode": "deepep-low-latency"}
"""One library's kernels for throughput, and for low latency."""


@dataclass(frozen=True)
class Exchange:
    """What the ranks of one instance send each other."""

    scenario: ServingScenario
    instance: InstanceSpec

    @cached_property
    def experts_network(self) -> GroupNetwork:
        """The expert-parallel group."""
        return group(self.scenario.cluster, self.instance.expert, stride=self.instance.expert_split)

    @property
    def apart(self) -> bool:
        """Whether ranks hold different tokens, which therefore have to travel."""
        return self.scenario.model.is_moe and self.instance.replicas > 1

    @property
    def exchanges(self) -> bool:
        """Whether a dispatcher moves tokens to experts of other ranks."""
        return self.apart and self.instance.expert > 1

    def all_reduce(self, tokens: Floats, ranks: int) -> Floats:
        """A sum of the residual stream over `ranks` ranks that hold the same tokens."""
        if ranks == 1:
            return np.zeros_like(tokens)
        sent = 2.0 * tokens * self.scenario.model.d_model
        return np.asarray(custom_all_reduce(group(self.scenario.cluster, ranks), sent))

    def gathered(self, tokens: Floats) -> tuple[Floats, Floats]:
        """Gathering the tokens of all ranks that share an expert, and summing what they made of them."""
        split, zero = self.instance.expert_split, np.zeros_like(tokens)
        if not self.apart or split == 1:
            return zero, zero
        model, network = self.scenario.model, group(self.scenario.cluster, split)
        copies = max(1.0, model.top_k / self.instance.expert) if self.instance.expert > 1 else 1.0
        own = tokens / self.instance.tensor * copies * model.d_model
        there = all_gather(network, own * self._dispatch_bytes, "alone")
        return np.asarray(there), np.asarray(reduce_scatter(network, own * 2.0 * split, "alone"))

    @property
    def _dispatch_bytes(self) -> float:
        return self.payload.dispatch / self.scenario.model.d_model

    @cached_property
    def payload(self) -> Payload:
        """Bytes of one copy of a token."""
        model, precision = self.scenario.model, self.scenario.precision
        return payload(precision.dispatch, precision.combine, model.d_model, max(1, model.top_k), model.n_experts)

    def dispatcher(self, work: Work, tokens: float) -> Dispatcher:
        """The dispatcher of a phase for so many tokens a rank; raises `InfeasibleError` where none runs.

        auto: DeepEP's kernels for the phase where they run and are meant for so many tokens, else the fastest.
        """
        named = getattr(self.scenario.dispatcher, work)
        if named != "auto":
            return dispatcher(named)
        demand, network = self.demand(tokens), self.experts_network
        meant = DISPATCHERS[BY_PHASE[work]]
        if meant.runs_on(network) is None and meant.unfit(demand, network) is None:
            return meant
        return choose(demand, network, self.payload, self.scenario.dispatcher.multiprocessors).dispatcher

    def demand(self, tokens: float) -> Demand:
        """What so many tokens a rank ask of the network, at balanced routing."""
        rule, ranks = self.scenario.router, self.instance.expert
        choices = Choices(rule.experts, rule.top_k, rule.spec.groups, rule.spec.top_groups)
        return balanced_demand(choices, ranks, self.experts_network.ranks_per_domain, tokens)

    def exchange(self, work: Work, tokens: Floats) -> tuple[Floats, Floats]:
        """Dispatch and combine at even load, busiest rank."""
        found = np.zeros((2, len(tokens)))
        for index, count in enumerate(tokens / self.instance.tensor if self.exchanges else ()):
            law, demand = self.dispatcher(work, float(count)), self.demand(float(count))
            settings = self.scenario.dispatcher.multiprocessors
            times = law.times(demand, self.experts_network, self.payload, settings, notify=work == "prefill")
            found[:, index] = float(times.dispatch.busiest), float(times.combine.busiest)
        return found[0], found[1]

    def hop(self, tokens: Floats) -> Floats:
        """Activations to the next pipeline stage."""
        stages, cluster = self.instance.pipeline, self.scenario.cluster
        if stages == 1:
            return np.zeros_like(tokens)
        size = 2.0 * tokens * self.scenario.model.d_model / self.instance.tensor
        stage = self.instance.stage_gpus
        crosses = stage >= cluster.gpus_per_domain
        return np.asarray(point_to_point(pair(cluster, stage, crosses), size))


def transfer_seconds(scenario: ServingScenario, instance: InstanceSpec, distinct: Floats) -> Floats:
    """Seconds that `distinct` bytes of KV cache take from one attention replica to another instance, each of its GPUs
    sending an equal part over its own NIC.

    Raises `InfeasibleError` where there is no scale-out network between domains.
    """
    cluster = scenario.cluster
    gpus = instance.tensor * instance.pipeline
    crosses = cluster.domains > 1
    network = pair(cluster, max(1, min(instance.gpus, cluster.gpus - 1)), crosses)
    if crosses and not network.fair_nic_rate:
        raise InfeasibleError("the KV cache cannot move: no scale-out network between domains")
    return np.asarray(point_to_point(network, np.asarray(distinct, np.float64) / gpus))
