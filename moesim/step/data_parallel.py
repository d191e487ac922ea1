"""Gradient reduction, parameter gathering and the optimizer: what a step costs once, by pipeline rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.costs.compute import coefficients
from moesim.costs.tensor_split import attention_products, key_value_copies
from moesim.network.collectives import Use, all_gather, reduce_scatter, ring_bandwidth
from moesim.network.topology import GroupNetwork, group
from moesim.scenario.scenario import Scenario
from moesim.specs import parameters
from moesim.step.groups import mirrored_stages
from moesim.step.layout import Chunk, chunks_on
from moesim.step.own_kernels import optimizer_ratio
from moesim.step.stack import time_factor


@dataclass(frozen=True)
class Held:
    """Parameters on one GPU: replicated over data x context (dense) or over the expert-data group (expert), of which
    `redundant` are those of an even share of copies of experts that the expert-parallel group holds already."""

    dense: float
    expert: float
    redundant: float = 0.0


@dataclass(frozen=True)
class DataParallel:
    """Once a step on one pipeline rank: seconds of the gradient reduction, of the parameter gathering, of the update.

    `exposed_share`: the least share of each collective that no compute hides. `a_slot`: seconds of collectives that
    every forward and every backward slot repeats: under full sharding gathering and gathering and reduction, under
    sharded gradients the reduction. `wire`: the part
    of `reduce` for which the links are taken; `leaves_domain`: whether those are the links between domains.
    """

    reduce: float
    gather: float
    optimizer: float
    exposed_share: float
    a_slot: tuple[float, float]
    wire: float = 0.0
    leaves_domain: bool = False


@dataclass(frozen=True)
class Replicas:
    """Ranks that hold the same parameters: of the dense part and of one expert."""

    dense: int
    expert: int


def replicas(scenario: Scenario) -> Replicas:
    """Over how many ranks gradients are summed. DualPipe holds every chunk twice, on mirrored pipeline ranks."""
    copies = 2 if mirrored_stages(scenario) else 1
    dense = scenario.data_parallel * scenario.parallelism.context
    return Replicas(dense * copies, scenario.expert_data_parallel * copies)


def held_parameters(scenario: Scenario, chunks: tuple[Chunk, ...], device: int) -> Held:
    """Parameters that one GPU of a pipeline rank stores, before any data-parallel sharding."""
    model, layout = scenario.model, scenario.parallelism
    keys, dense, expert = int(key_value_copies(model, layout.tensor)), 0.0, 0.0
    tables: list[bool] = []
    for index in chunks_on(scenario, device):
        chunk = chunks[index]
        kinds = [model.layer_kinds[layer] for layer in chunk.layers] + [model.layer_kinds[-1]] * chunk.mtp_layers
        moe = kinds.count("moe")
        dense += len(kinds) * model.attention_blocks * attention_products(model, keys, 1)
        dense += (len(kinds) - moe) * parameters.dense_ffn_parameters(model)
        dense += moe * (parameters.shared_expert_parameters(model) + model.d_model * model.n_experts)
        dense += moe * model.dense_beside_experts * parameters.dense_ffn_parameters(model)
        expert += moe * scenario.expert_slots * parameters.expert_parameters(model)
        dense += chunk.mtp_layers * 2 * model.d_model**2
        tables += [chunk.embedding, chunk.head]
    shared_table = model.tied_embeddings and all(any(tables[end::2]) for end in (0, 1))
    dense += model.d_model * model.vocab * (sum(tables) - shared_table)
    held = expert / (layout.expert * layout.expert_tensor) if expert else 0.0
    redundant = scenario.placement.redundant_experts / max(1, scenario.expert_slots)
    return Held(dense / layout.tensor, held, held * redundant)


def gradient_networks(scenario: Scenario) -> tuple[GroupNetwork, GroupNetwork]:
    """The networks over which gradients are summed: of the dense part and of an expert, each of the worst-placed."""
    layout, ranks, cluster = scenario.parallelism, replicas(scenario), scenario.cluster
    mirrored, whole = mirrored_stages(scenario), layout.expert * layout.expert_tensor
    return (
        group(cluster, ranks.dense, stride=layout.tensor, mirrored=mirrored),
        group(cluster, ranks.expert, stride=whole, mirrored=mirrored),
    )


def data_parallel(
    scenario: Scenario, held: Held, chunks: int, networks: tuple[GroupNetwork, GroupNetwork]
) -> DataParallel:
    """Times of one pipeline rank that holds `chunks` chunks, on the `gradient_networks`.

    Law: ring reduce-scatter of gradients, ring all-gather of bf16 parameters, at the efficiency of full sharding's
    smaller messages where parameters are sharded too. A shard of gradients has no room to add up a rank's own
    microbatches in: sharded gradients are reduced after each of them. What experts' replicas have summed comes last.
    """
    found = _once_a_step(scenario, held, chunks, networks)
    copies = replica_reduction(scenario, held.redundant)
    return replace(found, reduce=found.reduce + copies) if copies else found


def _once_a_step(
    scenario: Scenario, held: Held, chunks: int, networks: tuple[GroupNetwork, GroupNetwork]
) -> DataParallel:
    """The same without the replicas of experts within an expert-parallel group."""
    sharding, ranks = scenario.parallelism.data_sharding, replicas(scenario)
    gradient = 4.0 if scenario.precision.gradients == "fp32" else 2.0
    measured = scenario.cluster.calibration
    factor, data = time_factor(scenario.stack, scenario.model.kernels, measured), coefficients(measured)
    full = sharding == "full"
    groups = tuple(zip(networks, (held.dense, held.expert), strict=True))

    def gathered(size: float) -> float:
        use: Use = "fsdp" if full else "step"
        return factor * sum(all_gather(net, count * size / net.ranks, use) for net, count in groups if count)

    def reduced(size: float) -> float:
        use: Use = "fsdp" if full else "step"
        return factor * sum(reduce_scatter(net, count * size, use) for net, count in groups if count)

    shards = Replicas(1, 1) if sharding == "none" else ranks
    local = held.dense / shards.dense + held.expert / shards.expert
    update = data["optimizer_bytes"] * local / (data["memory_efficiency"] * scenario.cluster.gpu.memory_bandwidth)
    share = data["data_parallel_exposed"] if scenario.overlap.data_parallel else 1.0
    seconds = (update * optimizer_ratio(scenario) + data["optimizer_seconds"]) * factor
    if full:
        ahead = gathered(2.0) / chunks
        # Full sharding reduces every microbatch's gradients as they come, in bf16.
        return DataParallel(0.0, 0.0, seconds, share, (ahead, ahead + reduced(2.0) / chunks))
    if sharding == "gradients":
        return DataParallel(0.0, gathered(2.0), seconds, share, (0.0, reduced(gradient) / chunks))
    passes = 2 if sharding == "none" else 1
    wire = sum(passes * count * gradient * (1 - 1 / net.ranks) / ring_bandwidth(net) for net, count in groups if count)
    leaves = any(net.domains > 1 for net, count in groups if count)
    if sharding == "none":
        return DataParallel(reduced(gradient) + gathered(gradient), 0.0, seconds, share, (0.0, 0.0), wire, leaves)
    return DataParallel(reduced(gradient), gathered(2.0), seconds, share, (0.0, 0.0), wire, leaves)


def replica_reduction(scenario: Scenario, redundant: float) -> float:
    """Seconds in which the gradients of an expert's replicas within an expert-parallel group are summed, once a step.

    `redundant`: parameters of copies that a GPU holds. An all-reduce over the m replicas of an expert sends 2 (m - 1)
    times its gradients, those of all experts together twice the copies': that much a rank on average, by rings, in
    the shards that the expert-data group's own reduction leaves. Systems that replicate experts in training sum their
    gradients so (FlexMoE, arXiv:2304.03946: a replica keeps all states of its expert).
    """
    ranks = scenario.parallelism.expert
    if not redundant or ranks == 1:
        return 0.0
    net = group(scenario.cluster, ranks, stride=scenario.parallelism.expert_tensor)
    gradient = 4.0 if scenario.precision.gradients == "fp32" else 2.0
    # A ring over all ranks would pass on 1 - 1/R of a buffer.
    buffer = redundant * gradient / replicas(scenario).expert / (1 - 1 / ranks)
    factor = time_factor(scenario.stack, scenario.model.kernels, scenario.cluster.calibration)
    return factor * (reduce_scatter(net, buffer) + all_gather(net, buffer / ranks))


def exposed_by_chunk(duration: float, microbatch: float, chunks: int, apart: int, share: float) -> float:
    """Seconds of a once-a-step collective that compute waits for on a rank of several chunks.

    A chunk's part runs from the begin of its own last backward (or, gathering, until its first forward), one after the
    other; chunks' last backwards lie `apart` chunk computations from each other, of which `microbatch` seconds hold
    `chunks`. The queue is longest with the last part alone or with all of them.
    """
    one = microbatch / chunks
    alone, whole = exposed(duration / chunks, one, share), exposed(duration, ((chunks - 1) * apart + 1) * one, share)
    return max(alone, whole)


def exposed(duration: float, hidden_behind: float, share: float) -> float:
    """Seconds of a data-parallel collective that compute waits for: what does not fit, at least `share` of it."""
    return max(share * duration, duration - hidden_behind) if share < 1.0 else duration
