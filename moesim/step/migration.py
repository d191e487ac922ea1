"""What it costs to move experts between the ranks of a group: bytes over its links, seconds, and room to stage them.

All pipeline ranks' groups move at once, each its own layers, one layer after the other, so that one layer's arrivals
are all that is staged. A layer's experts travel as NCCL's sends and receives do, as serving engines move them (vLLM
`rebalance_execute.py`, SGLang `expert_location_updater.py`: batched point-to-point): the law of the plain all-to-all
on the group's busiest port. In training an expert's optimizer states go with its weights; gradients do not, for a
placement changes between steps.

L layers, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.costs.memory import Shards, state_bytes
from moesim.network.demand import Demand
from moesim.network.dispatchers import DISPATCHERS, Payload
from moesim.network.topology import GroupNetwork
from moesim.specs import parameters
from moesim.step.data_parallel import replicas
from moesim.step.layout import chunks_on
from moesim.step.model import StepModel

Floats = NDArray[np.float64]
LIBRARY = "nccl-all-to-all"


@dataclass(frozen=True)
class Cost:
    """Of one change of placement: `seconds` on the links, bytes that the busiest GPU sends inside its domain (`up`) and
    out of it (`out`), and bytes of staging on the GPU that most comes to."""

    seconds: float
    up: float
    out: float
    staged: float


@dataclass(frozen=True)
class Carrier:
    """The links of an expert-parallel group, the bytes of one expert on one GPU, and how many MoE layers the fullest
    pipeline rank holds."""

    network: GroupNetwork
    expert_bytes: float
    layers: int

    def cost(self, moved: Floats) -> Cost:
        """The cost of moving experts [L, R, R] from rank (row) to rank (column); the layers given stand for all."""
        if not moved.any():
            return Cost(0.0, 0.0, 0.0, 0.0)
        size, domain = self.expert_bytes, self.network.ranks_per_domain
        by_domain = np.add.reduceat(moved, np.arange(0, self.network.ranks, domain), axis=-1)
        demand = Demand(moved, moved, by_domain, np.ones(self.network.ranks), domain)
        sent = DISPATCHERS[LIBRARY].times(demand, self.network, Payload(size, size)).dispatch
        each = np.where(moved.any(axis=(-2, -1)), sent.busiest, 0.0)
        up, out = (self.layers * float(tier.mean(axis=0).max()) for tier in (sent.bytes_up, sent.bytes_out))
        return Cost(self.layers * float(each.mean()), up, out, size * float(moved.sum(axis=-2).max()))


def carrier(model: StepModel) -> Carrier:
    """How a training scenario moves experts; raises what `StepModel` does."""
    scenario, layout = model.scenario, model.scenario.parallelism
    count = parameters.expert_parameters(scenario.model) / layout.expert_tensor
    ranks, kind = replicas(scenario).expert, layout.data_sharding
    shards = Shards(
        weights=ranks if kind == "full" else 1, gradients=1, optimizer=1 if kind == "none" else ranks
    )  # fmt: skip
    states = state_bytes(count, shards, scenario.precision)
    kinds = scenario.model.layer_kinds
    moe = [
        sum(kinds[layer] == "moe" for index in chunks_on(scenario, device) for layer in model.chunks[index].layers)
        + sum(model.chunks[index].mtp_layers * (kinds[-1] == "moe") for index in chunks_on(scenario, device))
        for device in range(layout.pipeline)
    ]
    return Carrier(model.mover.network, states["weights"] + states["optimizer"], max(moe))
