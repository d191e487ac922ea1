"""Experts in host memory: what fetching them adds to a rank's expert work.

Weights of a missing expert come over the host link while others are computed, so that the longer of the two counts;
in the backward they come again, and gradients go back. S samples, R ranks, E local experts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moesim.routing._cache_kernels import stack_distances
from moesim.routing.cache import expected_hits, missed
from moesim.specs.parameters import expert_parameters
from moesim.step.model import StepModel

Floats = NDArray[np.float64]
Seconds = tuple[Floats, Floats, Floats]


def fetched_in_turn(model: StepModel, rows: Floats) -> Floats:
    """Experts that each rank fetches [S, R] in S microbatches, one after the other, from rows [S, R, E]."""
    offload = model.scenario.placement.offload
    if offload is None:
        return np.zeros(rows.shape[:-1])
    return missed(rows > 0.0, offload.resident, offload.keep)


def fetched_on_average(model: StepModel, active: Floats) -> Floats:
    """The same [..., R] from the probability that an expert has a row at all [..., R, E]."""
    offload = model.scenario.placement.offload
    if offload is None:
        return np.zeros(active.shape[:-1])
    return np.asarray((active * (1.0 - expected_hits(active, offload.resident, offload.keep))).sum(axis=-1))


def beside(model: StepModel, seconds: Seconds, fetched: Floats) -> Seconds:
    """Forward, backward and weight seconds [..., R] of experts of which `fetched` come from the host."""
    offload = model.scenario.placement.offload
    if offload is None:
        return seconds
    forward, backward, weight = seconds
    one = expert_bytes(model) / offload.host_bandwidth
    gradient = (4.0 if model.scenario.precision.gradients == "fp32" else 2.0) / 2.0
    wait = fetched * one
    return np.maximum(forward, wait), np.maximum(backward, wait), np.maximum(weight, gradient * wait)


def held_on_average(model: StepModel, chances: Callable[[], Floats]) -> float | None:
    """Share of a token's experts that GPU memory holds, tokens coming one by one, from the `chances` [L, E]."""
    offload = model.scenario.placement.offload
    if offload is None:
        return None
    chance = chances()
    hits = expected_hits(np.minimum(chance, 1.0), _resident(model), offload.keep)
    return float((chance * hits).sum() / chance.sum())


def held_in_turn(model: StepModel, choices: Callable[[int], NDArray[np.uint16]]) -> float | None:
    """The same from the choices [T, K] of a rank's tokens in each MoE layer, one after the other."""
    offload = model.scenario.placement.offload
    if offload is None:
        return None
    experts, resident, hits, wanted = model.scenario.model.n_experts, _resident(model), 0, 0
    if resident >= experts:
        return 1.0
    for layer in range(len(model.moe_index)):
        tokens = choices(layer)
        if offload.keep == "recent":
            distances = stack_distances(np.ascontiguousarray(tokens), experts)
            hits += int(distances[:resident].sum())
            wanted += int(distances.sum())
        else:
            counts = np.sort(np.bincount(tokens.ravel(), minlength=experts + 1)[:experts])[::-1]
            hits += int(counts[:resident].sum())
            wanted += int(counts.sum())
    return hits / max(1, wanted)


def _resident(model: StepModel) -> int:
    """Experts of a layer that the whole expert-parallel group holds in GPU memory."""
    offload = model.scenario.placement.offload
    ranks = model.scenario.parallelism.expert
    return min(model.scenario.model.n_experts, offload.resident * ranks) if offload is not None else 0


def expert_bytes(model: StepModel) -> float:
    """Bytes of one expert's weights on one GPU, as the host keeps them (2 a parameter)."""
    return 2.0 * expert_parameters(model.scenario.model) / model.scenario.parallelism.expert_tensor
