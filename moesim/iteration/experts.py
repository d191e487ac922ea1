"""Seconds of an expert layer on the busiest rank: router, experts, what stands beside them. One layer, [G] each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.costs.kernels import experts_time, router_time
from moesim.iteration.formats import expert_format
from moesim.iteration.routed import RoutedLoad
from moesim.iteration.stack import expert_kernels
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import InstanceSpec

Floats = NDArray[np.float64]


def router_seconds(scenario: ServingScenario, tokens: Floats) -> Floats:
    """Seconds of the router for the tokens of a rank."""
    model, cluster = scenario.model, scenario.cluster
    return np.asarray(
        router_time(cluster.gpu, tokens, model.d_model, model.n_experts, measured=cluster.calibration).seconds
    )


def experts_seconds(
    load: RoutedLoad, instance: InstanceSpec, tokens: Floats, sequences: Floats, free_share: float = 1.0
) -> Floats:
    """Seconds of the routed experts of `tokens` of the whole stage; the mean over layers of the busiest rank.

    Where tokens are spread over ranks, a rank is presented with those that have an expert there; where all ranks hold
    all tokens, with all of them.
    """
    scenario = load.scenario
    model, cluster = scenario.model, scenario.cluster
    rows = load.busiest(tokens, sequences)
    presented = np.broadcast_to(tokens[:, None], rows.shape[:2])
    if instance.replicas > 1:
        presented = np.minimum(presented, rows.sum(axis=-1))
    # What a dispatcher brings is laid out for grouped products, whatever a stack runs elsewhere.
    travels = instance.replicas > 1 and instance.expert > 1
    kernels = None if travels else expert_kernels(scenario.stack, cluster.calibration)
    found = experts_time(
        cluster.gpu, rows, model.d_model, (model.d_ff_expert or 1) / instance.expert_split,
        expert_format(scenario.precision), np.maximum(presented, 1.0), model.expert_matrices, True,
        cluster.calibration, kernels, free_share=free_share,
    ).seconds  # fmt: skip
    return np.asarray(np.asarray(found).mean(axis=-1))
