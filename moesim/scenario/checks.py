"""The cross-field rules of a scenario: one small function a rule, all reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

from moesim.errors import InfeasibleError, Problem, nearest_hint
from moesim.network.dispatchers import DISPATCHERS
from moesim.network.links import problems as link_problems
from moesim.network.seating import kind_of, told
from moesim.network.topology import group
from moesim.scenario import overlap_checks, placement_checks, routing_checks, straggler_checks
from moesim.scenario.degrees import choices, divisors, nearest_multiple, undivided
from moesim.scenario.scenario import Scenario
from moesim.scenario.stated import Stated
from moesim.specs.gpu import GpuSpec

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
    stages, chunks = layout.pipeline, layout.virtual_pipeline
    if kind == "zero-bubble-v":
        if chunks > 2:
            yield Problem("parallelism.virtual_pipeline", f"{chunks}, but zero-bubble-v has 2 chunks a rank")
    elif chunks > 1 and kind != "interleaved-1f1b":
        yield Problem("parallelism.virtual_pipeline", f"{chunks} needs schedule interleaved-1f1b, not {kind}")
    elif chunks > 1 and stages == 1:
        yield Problem("parallelism.virtual_pipeline", f"{chunks} needs pipeline > 1")


def microbatches_suit_the_schedule(scenario: Scenario) -> Iterator[Problem]:
    """How many microbatches, and for DualPipe how many stages, a schedule works through."""
    if any(gpus_fill_the_layout(scenario)) or any(batch_fills_the_replicas(scenario)):
        return  # the number of microbatches is not known yet
    kind, stages, batches = scenario.schedule_kind, scenario.parallelism.pipeline, scenario.microbatches
    if kind == "interleaved-1f1b" and batches % stages:
        what = f"to divide by pipeline ({stages})"
        yield _microbatch_problem(scenario, what, nearest_multiple(batches, stages))
    if kind != "dualpipe":
        return
    if stages % 2:
        able = [one for one in _stages(scenario) if one % 2 == 0 and one <= scenario.model.layers + 2]
        what = f"dualpipe needs an even number of stages, got {stages}{choices(able, stages)}"
        yield Problem("parallelism.pipeline", what)
    elif batches % 2 or batches < 2 * stages:
        least = 2 * stages
        failed = [word for word, broken in ((f"at least 2 x pipeline = {least}", batches < least),
                                            ("even", batches % 2)) if broken]  # fmt: skip
        what = f"to be {' and '.join(failed)}"
        yield _microbatch_problem(scenario, what, max(least, nearest_multiple(batches, 2)))


def _microbatch_problem(scenario: Scenario, what: str, nearest: int) -> Problem:
    unit = scenario.data_parallel * scenario.workload.micro_batch
    return Problem(
        "workload.global_batch",
        f"{scenario.schedule_kind} needs the microbatches, {scenario.workload.global_batch} / (data"
        f" {scenario.data_parallel} x micro_batch {scenario.workload.micro_batch}) = {scenario.microbatches}, {what};"
        f" nearest: {nearest * unit} ({nearest} microbatches)",
    )


def layers_fill_the_stages(scenario: Scenario) -> Iterator[Problem]:
    """Every virtual stage has a layer; the first and the last may hold the embedding or the head alone."""
    layout, layers, each = scenario.parallelism, scenario.model.layers, scenario.chunks_per_rank
    most = layers + 2 * (scenario.virtual_stages > 1)
    if scenario.virtual_stages <= most:
        return
    thin = f"pipeline {layout.pipeline} x {each} chunks a rank cut {layers} layers too thin"
    if scenario.schedule_kind != "zero-bubble-v" and each > 1 and layout.pipeline <= most:
        yield Problem("parallelism.virtual_pipeline", f"{thin}; allowed: at most {most // layout.pipeline}")
        return
    able = [stages for stages in _stages(scenario) if stages * each <= most]
    nearest = f"; nearest: {able[-1]}" if able else ""
    yield Problem("parallelism.pipeline", f"{thin}; allowed: at most {max(1, most // each)}{nearest}")


def _stages(scenario: Scenario) -> list[int]:
    """Pipeline degrees that divide the GPUs, ascending."""
    layout = scenario.parallelism
    return divisors(scenario.cluster.gpus // (layout.tensor * layout.context))


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
    """Heads, widths and sequence divide by the degrees that split them.

    A vocabulary need not: stacks fill it up. Key-value heads divide, or each is held by equally many ranks.
    """
    layout, model, work = scenario.parallelism, scenario.model, scenario.workload
    uneven = undivided(model, layout.tensor)
    if uneven:
        allowed = [degree for degree in divisors(model.n_heads) if not undivided(model, degree)]
        what = " and ".join(uneven)
        yield Problem("parallelism.tensor", f"{what} do not divide by {layout.tensor}{choices(allowed, layout.tensor)}")
    unit = layout.context * layout.tensor
    if work.sequence_length % unit:
        below = work.sequence_length // unit * unit
        yield Problem(
            "workload.sequence_length",
            f"{work.sequence_length} does not divide by context {layout.context} x tensor {layout.tensor} = {unit};"
            f" nearest: {', '.join(str(size) for size in (below, below + unit) if size)}",
        )
    width = model.d_ff_expert or 0
    if model.is_moe and width % layout.expert_tensor:
        ranks = max(1, scenario.cluster.gpus // layout.pipeline // layout.expert)
        allowed = [degree for degree in divisors(ranks) if width % degree == 0]
        yield Problem(
            "parallelism.expert_tensor",
            f"{model.name}'s expert width {width} does not divide by {layout.expert_tensor}"
            f"{choices(allowed, layout.expert_tensor)}",
        )
    if model.is_moe and layout.tensor > 1 and not layout.sequence_parallel:
        yield Problem("parallelism.sequence_parallel", "must be true where tensor > 1 and the model has experts")


def formats_exist_on_the_gpu(scenario: Scenario) -> Iterator[Problem]:
    """The compute format has a rate on this GPU."""
    yield from format_exists(scenario.cluster.gpu, scenario.precision.compute, "precision.compute")


def format_exists(gpu: GpuSpec, wanted: str, where: str) -> Iterator[Problem]:
    """The format `wanted` at the key `where` has a rate on `gpu`."""
    missing = {"fp8": gpu.fp8, "fp8-block": gpu.fp8, "mxfp8": gpu.fp8, "nvfp4": gpu.fp4}.get(wanted, gpu.bf16) is None
    if missing:
        able = [name for name, rate in (("fp8", gpu.fp8), ("nvfp4", gpu.fp4)) if rate]
        yield Problem(where, f"{gpu.name} has no {wanted} rate; allowed: {', '.join(['bf16', 'fp16', *able])}")


def cluster_is_connected(scenario: Stated) -> Iterator[Problem]:
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


def links_are_sound(scenario: Stated) -> Iterator[Problem]:
    """Hand-written and degraded links name what is there, and every GPU can be reached."""
    yield from link_problems(scenario.cluster)


def dispatcher_is_known(scenario: Scenario) -> Iterator[Problem]:
    """The dispatcher has a law here."""
    kind = scenario.dispatcher.kind
    if kind != "auto" and kind not in DISPATCHERS:
        yield Problem("dispatcher.kind", f"unknown dispatcher {kind!r}{nearest_hint(kind, ['auto', *DISPATCHERS])}")


def model_adds_up(scenario: Stated) -> Iterator[Problem]:
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
    """A named dispatcher runs on the links of the worst-placed expert-parallel group, with SMs that the GPU has."""
    kind, wanted = scenario.dispatcher.kind, scenario.dispatcher.multiprocessors
    available = scenario.cluster.gpu.multiprocessors
    if wanted and available and wanted >= available:
        yield Problem("dispatcher.multiprocessors", f"{wanted} leave none of the GPU's {available} for compute")
    if kind not in DISPATCHERS or any(cluster_is_connected(scenario)):
        return
    layout = scenario.parallelism
    try:
        network = group(scenario.cluster, layout.expert, stride=layout.expert_tensor)
    except InfeasibleError as error:
        yield Problem("parallelism.expert", str(error))
        return
    refusal = DISPATCHERS[kind].runs_on(network)
    if refusal is not None:
        why = told({"expert": kind_of(scenario.cluster, layout.expert, layout.expert_tensor)})
        yield Problem("dispatcher.kind", f"{refusal}; {why}" if why else refusal)


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
    *placement_checks.CHECKS,
    batch_fills_the_replicas,
    schedule_runs,
    microbatches_suit_the_schedule,
    *overlap_checks.CHECKS,
    layers_fill_the_stages,
    pipeline_layout_is_whole,
    tensors_split,
    formats_exist_on_the_gpu,
    cluster_is_connected,
    links_are_sound,
    dispatcher_is_known,
    *straggler_checks.CHECKS,
    dispatcher_runs_here,
    size_is_computable,
)


def problems(scenario: Scenario) -> list[Problem]:
    """Everything wrong with a scenario whose fields are each legal by themselves."""
    return [problem for check in CHECKS for problem in check(scenario)]
