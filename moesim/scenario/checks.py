"""The cross-field rules of a scenario: one small function a rule, all reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

from moesim.errors import Problem, nearest_hint
from moesim.network.dispatchers import DISPATCHERS
from moesim.network.links import problems as link_problems
from moesim.network.topology import group
from moesim.scenario import routing_checks
from moesim.scenario.scenario import Scenario

Check = Callable[[Scenario], Iterator[Problem]]


def gpus_fill_the_layout(scenario: Scenario) -> Iterator[Problem]:
    """The GPUs divide evenly into replicas, and `data` agrees where it is stated."""
    layout, gpus = scenario.parallelism, scenario.cluster.gpus
    product = layout.tensor * layout.pipeline * layout.context
    shape = f"tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context} = {product}"
    if gpus % product:
        nearest = max(product, round(gpus / product) * product)
        yield Problem("cluster.gpus", f"{gpus} GPUs do not divide by {shape}; nearest: {nearest}")
    elif layout.data != "auto" and layout.data != gpus // product:
        yield Problem(
            "parallelism.data", f"{gpus} GPUs / ({shape}) leave data {gpus // product}, not {layout.data}; or say auto"
        )


def batch_fills_the_replicas(scenario: Scenario) -> Iterator[Problem]:
    """The global batch divides over replicas and microbatches."""
    work, replicas = scenario.workload, scenario.data_parallel
    unit = replicas * work.micro_batch
    if work.global_batch % unit and not any(gpus_fill_the_layout(scenario)):
        nearest = max(unit, round(work.global_batch / unit) * unit)
        yield Problem(
            "workload.global_batch",
            f"{work.global_batch} sequences do not divide over data {replicas} x micro_batch {work.micro_batch};"
            f" nearest: {nearest}",
        )


def schedule_runs(scenario: Scenario) -> Iterator[Problem]:
    """Each schedule's own conditions."""
    layout, kind = scenario.parallelism, scenario.schedule_kind
    stages, chunks, batches = layout.pipeline, layout.virtual_pipeline, scenario.microbatches
    if kind == "zero-bubble-v":
        if chunks > 2:
            yield Problem("parallelism.virtual_pipeline", f"{chunks}, but zero-bubble-v has 2 chunks a rank")
    elif chunks > 1 and kind != "interleaved-1f1b":
        yield Problem("parallelism.virtual_pipeline", f"{chunks} needs schedule interleaved-1f1b, not {kind}")
    elif chunks > 1 and stages == 1:
        yield Problem("parallelism.virtual_pipeline", f"{chunks} needs pipeline > 1")
    if any(gpus_fill_the_layout(scenario)) or any(batch_fills_the_replicas(scenario)):
        return  # the number of microbatches is not known yet
    if kind == "interleaved-1f1b" and batches % stages:
        yield Problem(
            "schedule.kind", f"interleaved-1f1b needs microbatches ({batches}) to divide by pipeline ({stages})"
        )
    if kind == "dualpipe" and (stages % 2 or batches % 2 or batches < 2 * stages):
        yield Problem(
            "schedule.kind",
            f"dualpipe needs an even pipeline ({stages}) and an even number of microbatches ({batches}), at least"
            f" {2 * stages}",
        )


def schedule_has_pairs(scenario: Scenario) -> Iterator[Problem]:
    """Expert communication hides behind compute where a forward runs beside a backward."""
    kind, stages = scenario.schedule_kind, scenario.parallelism.pipeline
    if kind == "gpipe" and scenario.overlap.expert_communication:
        yield Problem(
            "overlap.expert_communication",
            "gpipe runs no forward beside a backward; use 1f1b or dualpipe, or overlap.two_batch, or false",
        )
    if kind == "zero-bubble-h1" and scenario.overlap.expert_communication and stages > 1:
        yield Problem(
            "overlap.expert_communication",
            "zero-bubble-h1 warms up too few microbatches to run a forward beside a backward: neighbouring ranks would"
            " wait for each other; use zero-bubble-v or dualpipe, or false",
        )


def overlap_is_possible(scenario: Scenario) -> Iterator[Problem]:
    """What runs beside exchanges is there, and is told once."""
    overlap, model, kind = scenario.overlap, scenario.model, scenario.schedule_kind
    tokens = scenario.tokens_per_rank
    if overlap.two_batch and overlap.expert_communication:
        yield Problem(
            "overlap.two_batch",
            "overlap.expert_communication already hides exchanges behind the other microbatch of a pair; choose one",
        )
    if overlap.two_batch and tokens % 2:
        yield Problem("overlap.two_batch", f"{tokens} tokens of a GPU's microbatch do not divide into two halves")
    if overlap.shared_experts and not (model.shared_expert_width or model.dense_beside_experts):
        yield Problem("overlap.shared_experts", "the model has no shared experts and no dense layer beside its experts")
    if overlap.weight_gradients == "delayed" and kind.startswith("zero-bubble"):
        yield Problem(
            "overlap.weight_gradients", f"{kind} puts weight gradients off by itself; use with-backward, or 1f1b"
        )
    stated, buffers = overlap.tensor_parallel, scenario.stack_options.user_buffers
    if stated is not None and buffers is not None and stated != buffers:
        yield Problem(
            "overlap.tensor_parallel",
            f"{stated}, but stack_options.user_buffers, which says the same, is {buffers}; state one, or both alike",
        )


def layers_fill_the_stages(scenario: Scenario) -> Iterator[Problem]:
    """Every virtual stage has a layer; the first and the last may hold the embedding or the head alone."""
    layers, stages, each = scenario.model.layers, scenario.virtual_stages, scenario.chunks_per_rank
    if layers + 2 * (stages > 1) < stages:
        parts = f"{each} chunks a rank" if scenario.schedule_kind == "zero-bubble-v" else f"virtual_pipeline {each}"
        yield Problem(
            "parallelism.pipeline",
            f"pipeline {scenario.parallelism.pipeline} x {parts} cut {layers} layers too thin",
        )


def pipeline_layout_is_whole(scenario: Scenario) -> Iterator[Problem]:
    """A stated layout names every layer once."""
    layout = scenario.stack_options.pipeline_layout
    if layout is None:
        return
    where = "stack_options.pipeline_layout"
    if len(layout) != scenario.virtual_stages:
        yield Problem(where, f"lists {len(layout)} virtual stages, the scenario has {scenario.virtual_stages}")
    if 0 in layout[1:-1]:
        yield Problem(where, "only the first and the last virtual stage may be without a layer")
    if sum(layout) != scenario.model.layers:
        yield Problem(where, f"adds up to {sum(layout)} layers, the model has {scenario.model.layers}")


def tensors_split(scenario: Scenario) -> Iterator[Problem]:
    """Heads, sequence and expert width divide by the degrees that split them."""
    layout, model, work = scenario.parallelism, scenario.model, scenario.workload
    if model.n_heads % layout.tensor:
        yield Problem("parallelism.tensor", f"{model.n_heads} attention heads do not divide by {layout.tensor}")
    if work.sequence_length % (layout.context * layout.tensor):
        yield Problem(
            "workload.sequence_length",
            f"{work.sequence_length} does not divide by context {layout.context} x tensor {layout.tensor}",
        )
    if model.is_moe and (model.d_ff_expert or 0) % layout.expert_tensor:
        yield Problem(
            "parallelism.expert_tensor", f"width {model.d_ff_expert} does not divide by {layout.expert_tensor}"
        )
    if model.is_moe and layout.tensor > 1 and not layout.sequence_parallel:
        yield Problem("parallelism.sequence_parallel", "must be true where tensor > 1 and the model has experts")


def formats_exist_on_the_gpu(scenario: Scenario) -> Iterator[Problem]:
    """The compute format has a rate on this GPU."""
    gpu, compute = scenario.cluster.gpu, scenario.precision.compute
    missing = {"fp8": gpu.fp8, "fp8-block": gpu.fp8, "mxfp8": gpu.fp8, "nvfp4": gpu.fp4}.get(compute, gpu.bf16) is None
    if missing:
        able = [name for name, rate in (("fp8", gpu.fp8), ("nvfp4", gpu.fp4)) if rate]
        yield Problem(
            "precision.compute", f"{gpu.name} has no {compute} rate; allowed: {', '.join(['bf16', 'fp16', *able])}"
        )


def cluster_is_connected(scenario: Scenario) -> Iterator[Problem]:
    """More than one domain needs a NIC; a torus needs links and a shape that holds the GPUs."""
    cluster = scenario.cluster
    fabric = cluster.fabric
    shape = fabric.torus_shape
    if fabric.kind == "torus":
        if not (cluster.scale_up_bandwidth or cluster.gpu.scale_up_bandwidth):
            yield Problem("cluster.scale_up_bandwidth", f"{cluster.gpu.name} states no torus link; give one")
        if shape is not None and prod(shape) < cluster.gpus:
            yield Problem("cluster.fabric.torus_shape", f"{shape} holds {prod(shape)} chips, fewer than {cluster.gpus}")
        return
    if cluster.domains == 1:
        return
    nic = cluster.nic_bandwidth or fabric.nic_bandwidth or cluster.gpu.nic_bandwidth
    if fabric.kind != "links" and (nic is None or fabric.kind == "none"):
        yield Problem(
            "cluster.fabric",
            f"{cluster.gpus} GPUs are {cluster.domains} domains of {cluster.gpus_per_domain}, but"
            f" {cluster.gpu.name} on {fabric.name} has no scale-out network",
        )


def links_are_sound(scenario: Scenario) -> Iterator[Problem]:
    """Hand-written and degraded links name what is there, and every GPU can be reached."""
    yield from link_problems(scenario.cluster)


def dispatcher_is_known(scenario: Scenario) -> Iterator[Problem]:
    """The dispatcher has a law here."""
    kind = scenario.dispatcher.kind
    if kind != "auto" and kind not in DISPATCHERS:
        yield Problem("dispatcher.kind", f"unknown dispatcher {kind!r}{nearest_hint(kind, ['auto', *DISPATCHERS])}")


def stragglers_exist(scenario: Scenario) -> Iterator[Problem]:
    """A straggler is a rank of the simulated group."""
    ranks = scenario.parallelism.expert
    for index, straggler in enumerate(scenario.simulation.stragglers or ()):
        if straggler.rank >= ranks:
            yield Problem(
                f"simulation.stragglers.{index}.rank", f"{straggler.rank} is not below expert parallel {ranks}"
            )


def model_adds_up(scenario: Scenario) -> Iterator[Problem]:
    """Layers, heads and widths of a model agree with each other."""
    model = scenario.model
    found = model.layer_kinds.count("moe")
    if model.moe_layers > model.layers:
        yield Problem("model.moe_layers", f"{model.moe_layers} of {model.layers} layers")
    elif found != model.moe_layers:
        pattern = model.moe_layer_pattern
        yield Problem("model.moe_layers", f"{model.moe_layers}, but the pattern {pattern!r} makes {found} MoE layers")
    if model.layer_kinds.count("dense") and not model.d_ff_dense:
        yield Problem("model.d_ff_dense", "the dense layers need the width of their feed-forward network")
    if model.n_heads % model.kv_heads:
        yield Problem("model.n_kv_heads", f"{model.n_heads} query heads do not divide over {model.kv_heads}")
    if model.head_dim is None and model.mla is None and model.d_model % model.n_heads:
        yield Problem(
            "model.n_heads", f"width {model.d_model} does not divide over {model.n_heads} heads; or give head_dim"
        )
    if model.arch == "encoder-decoder" and (model.enc_layers or 0) + (model.dec_layers or 0) != model.layers:
        yield Problem(
            "model.enc_layers", f"{model.enc_layers} + dec_layers {model.dec_layers} are not {model.layers} layers"
        )
    if model.n_shared_experts and not model.shared_expert_width:
        yield Problem("model.shared_expert_width", f"{model.n_shared_experts} shared experts need a width")


def dispatcher_runs_here(scenario: Scenario) -> Iterator[Problem]:
    """A named dispatcher runs on the links of an expert-parallel group, with SMs that the GPU has."""
    kind, wanted = scenario.dispatcher.kind, scenario.dispatcher.multiprocessors
    available = scenario.cluster.gpu.multiprocessors
    if wanted and available and wanted >= available:
        yield Problem("dispatcher.multiprocessors", f"{wanted} leave none of the GPU's {available} for compute")
    if kind not in DISPATCHERS or any(cluster_is_connected(scenario)):
        return
    layout = scenario.parallelism
    refusal = DISPATCHERS[kind].runs_on(group(scenario.cluster, layout.expert, stride=layout.expert_tensor))
    if refusal is not None:
        yield Problem("dispatcher.kind", refusal)


def size_is_computable(scenario: Scenario) -> Iterator[Problem]:
    """What one run can hold in memory and walk through."""
    works = scenario.microbatches * scenario.virtual_stages
    if works > MOST_WORKS:
        yield Problem(
            "workload.global_batch",
            f"{scenario.microbatches:,} microbatches x {scenario.virtual_stages} virtual stages are more than"
            f" {MOST_WORKS:,}; use a larger micro_batch, or fewer sequences",
        )
    if scenario.parallelism.expert > MOST_RANKS:
        yield Problem("parallelism.expert", f"at most {MOST_RANKS} expert-parallel ranks can be priced")
    if scenario.stack_options.offload_layers > scenario.model.layers:
        yield Problem("stack_options.offload_layers", f"the model has {scenario.model.layers} layers")


MOST_WORKS, MOST_RANKS = 1_000_000, 4096
CHECKS: tuple[Check, ...] = (
    model_adds_up,
    gpus_fill_the_layout,
    *routing_checks.CHECKS,
    batch_fills_the_replicas,
    schedule_runs,
    schedule_has_pairs,
    overlap_is_possible,
    layers_fill_the_stages,
    pipeline_layout_is_whole,
    tensors_split,
    formats_exist_on_the_gpu,
    cluster_is_connected,
    links_are_sound,
    dispatcher_is_known,
    stragglers_exist,
    dispatcher_runs_here,
    size_is_computable,
)


def problems(scenario: Scenario) -> list[Problem]:
    """Everything wrong with a scenario whose fields are each legal by themselves."""
    return [problem for check in CHECKS for problem in check(scenario)]
