"""Gradient reduction, parameter gathering and the optimizer: what a step costs once, by pipeline rank."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.costs.compute import coefficients
from moesim.network.collectives import all_gather, reduce_scatter
from moesim.network.topology import group
from moesim.scenario.scenario import Scenario
from moesim.specs import parameters
from moesim.step.layout import Chunk, chunks_on
from moesim.step.stack import time_factor


@dataclass(frozen=True)
class Held:
    """Parameters on one GPU: replicated over data x context (dense) or over the expert-data group (expert)."""

    dense: float
    expert: float


@dataclass(frozen=True)
class DataParallel:
    """Once a step on one pipeline rank: seconds of the gradient reduction, of the parameter gathering, of the update.

    `exposed_share`: the least share of each collective that no compute hides. `per_microbatch`: seconds of gathering
    and reducing that full sharding repeats for every microbatch, forward and backward.
    """

    reduce: float
    gather: float
    optimizer: float
    exposed_share: float
    per_microbatch: tuple[float, float]


def held_parameters(scenario: Scenario, chunks: tuple[Chunk, ...], device: int) -> Held:
    """Parameters that one GPU of a pipeline rank stores, before any data-parallel sharding."""
    model, layout = scenario.model, scenario.parallelism
    dense = expert = 0.0
    for index in chunks_on(scenario, device):
        chunk = chunks[index]
        kinds = [model.layer_kinds[layer] for layer in chunk.layers] + [model.layer_kinds[-1]] * chunk.mtp_layers
        moe = kinds.count("moe")
        dense += len(kinds) * model.attention_blocks * parameters.attention_parameters(model)
        dense += (len(kinds) - moe) * parameters.dense_ffn_parameters(model)
        dense += moe * (parameters.shared_expert_parameters(model) + model.d_model * model.n_experts)
        dense += moe * model.dense_beside_experts * parameters.dense_ffn_parameters(model)
        expert += moe * model.n_experts * parameters.expert_parameters(model)
        table = model.d_model * model.vocab
        dense += table * (chunk.embedding + (chunk.head and not (model.tied_embeddings and chunk.embedding)))
    return Held(dense / layout.tensor, expert / (layout.expert * layout.expert_tensor) if expert else 0.0)


def data_parallel(scenario: Scenario, held: Held) -> DataParallel:
    """Times of one pipeline rank. Law: ring reduce-scatter of gradients, ring all-gather of bf16 parameters."""
    layout, sharding = scenario.parallelism, scenario.parallelism.data_sharding
    dense_ranks = scenario.data_parallel * layout.context
    expert_ranks = scenario.expert_data_parallel
    gradient = 4.0 if scenario.precision.gradients == "fp32" else 2.0
    dense_net = group(scenario.cluster, dense_ranks, stride=layout.tensor)
    expert_net = group(scenario.cluster, expert_ranks, stride=layout.expert * layout.expert_tensor)
    factor, data = time_factor(scenario.stack, scenario.model.kernels), coefficients()

    def both(operation: object, size: float) -> float:
        call = all_gather if operation == "gather" else reduce_scatter
        seconds = 0.0
        for net, ranks, count in ((dense_net, dense_ranks, held.dense), (expert_net, expert_ranks, held.expert)):
            if ranks > 1 and count:
                payload = count * size
                seconds += float(call(net, payload / ranks if operation == "gather" else payload))
        return seconds * factor

    reduce, gather = both("reduce", gradient), both("gather", 2.0)
    shards = 1 if sharding == "none" else dense_ranks
    expert_shards = 1 if sharding == "none" else expert_ranks
    local = held.dense / shards + held.expert / expert_shards
    update = data["optimizer_bytes"] * local / (data["memory_efficiency"] * scenario.cluster.gpu.memory_bandwidth)
    full = sharding == "full"
    return DataParallel(
        reduce=0.0 if full else reduce + (both("gather", gradient) if sharding == "none" else 0.0),
        gather=0.0 if full or sharding == "none" else gather,
        optimizer=(update + data["optimizer_seconds"]) * factor,
        exposed_share=data["data_parallel_exposed"] if scenario.overlap.data_parallel else 1.0,
        per_microbatch=(gather, gather + both("reduce", 2.0)) if full else (0.0, 0.0),
    )


def exposed(duration: float, hidden_behind: float, share: float) -> float:
    """Seconds of a data-parallel collective that compute waits for: what does not fit, at least `share` of it."""
    return max(share * duration, duration - hidden_behind) if share < 1.0 else duration
