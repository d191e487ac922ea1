"""The cross-field rules of a serving scenario: one small function a rule, all reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from moesim.errors import InfeasibleError, Problem, nearest_hint
from moesim.network.dispatchers import DISPATCHERS
from moesim.network.topology import group
from moesim.placement import STRATEGIES
from moesim.placement.placed import BY_DOMAIN
from moesim.placement.strategies import WITH_PAIRS
from moesim.scenario import checks, routing_checks
from moesim.scenario.degrees import choices, divisors, undivided
from moesim.scenario.placement_checks import domain_problems, placement_problems
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import InstanceSpec

Check = Callable[[ServingScenario], Iterator[Problem]]
MOST_RANKS = 4096


def _places(scenario: ServingScenario) -> list[tuple[str, InstanceSpec]]:
    """Where each instance stands in the file."""
    apart = scenario.disaggregated
    if apart is not None:
        return [("disaggregated.prefill", apart.prefill), ("disaggregated.decode", apart.decode)]
    return [("instance", scenario.instance)] if scenario.instance is not None else []


def deployment_is_stated_once(scenario: ServingScenario) -> Iterator[Problem]:
    """Either one kind of instance, or two that are apart; prefill or decode alone has one."""
    if (scenario.instance is None) == (scenario.disaggregated is None):
        what = "is required" if scenario.instance is None else "and disaggregated are both given; keep one"
        yield Problem("instance", f"{what}, e.g. {{gpus: 8, tensor: 8}}" if scenario.instance is None else what)
    if scenario.disaggregated is not None and scenario.workload.kind != "serving":
        yield Problem("disaggregated", f"needs workload.kind serving, not {scenario.workload.kind}")


def instances_fill_the_cluster(scenario: ServingScenario) -> Iterator[Problem]:
    """Instances are whole and there are GPUs for them."""
    gpus = scenario.cluster.gpus
    if scenario.disaggregated is not None:
        if scenario.gpus_used > gpus:
            parts = " + ".join(f"{pool.count} x {pool.instance.gpus}" for pool in scenario.pools)
            yield Problem("cluster.gpus", f"{gpus}, but {parts} = {scenario.gpus_used}; nearest: {scenario.gpus_used}")
    elif scenario.instance is not None and gpus % scenario.instance.gpus:
        each = scenario.instance.gpus
        nearest = max(each, round(gpus / each) * each)
        yield Problem("cluster.gpus", f"{gpus} GPUs are no whole number of instances of {each}; nearest: {nearest}")


def attention_fills_the_instance(scenario: ServingScenario) -> Iterator[Problem]:
    """tensor x pipeline x attention_data_parallel are the GPUs of an instance."""
    for where, instance in _places(scenario):
        product = instance.tensor * instance.pipeline
        if instance.gpus % product:
            able = [one for one in divisors(instance.gpus) if instance.gpus % (one * instance.pipeline) == 0]
            yield Problem(
                f"{where}.tensor",
                f"{instance.gpus} GPUs do not divide by tensor {instance.tensor} x pipeline"
                f" {instance.pipeline}{choices(able, instance.tensor)}",
            )
        elif product * instance.replicas != instance.gpus:
            yield Problem(
                f"{where}.attention_data_parallel",
                f"{instance.gpus} GPUs / (tensor {instance.tensor} x pipeline {instance.pipeline}) leave"
                f" {instance.gpus // product}, not {instance.replicas}; or say auto",
            )


def experts_fill_the_instance(scenario: ServingScenario) -> Iterator[Problem]:
    """expert x expert_tensor are the GPUs of a stage, and divide experts and their width; a dense model has none."""
    for where, instance in _places(scenario):
        if not scenario.model.is_moe:
            split = instance.expert_tensor != "auto" and instance.expert_tensor > 1
            if instance.expert > 1 or split:
                key = "expert" if instance.expert > 1 else "expert_tensor"
                yield Problem(f"{where}.{key}", f"{scenario.model.name} has no experts; allowed: 1")
            continue
        yield from _experts(scenario, where, instance)


def _experts(scenario: ServingScenario, where: str, instance: InstanceSpec) -> Iterator[Problem]:
    model, stage, expert, split = scenario.model, instance.stage_gpus, instance.expert, instance.expert_split
    able = [one for one in divisors(stage) if model.n_experts % one == 0]
    # With redundant experts it is slots that have to divide, which another rule looks at.
    uneven = model.n_experts % expert and not scenario.placement.redundant_experts
    if uneven or stage % expert:
        reason = f"{model.n_experts} experts" if uneven else f"the {stage} GPUs of a stage"
        yield Problem(f"{where}.expert", f"{reason} do not divide over {expert} ranks{choices(able, expert)}")
    elif expert * split != stage:
        yield Problem(
            f"{where}.expert_tensor", f"the {stage} GPUs of a stage / expert {expert} leave {stage // expert}, not"
            f" {split}; or say auto",
        )  # fmt: skip
    elif (model.d_ff_expert or 0) % split:
        fits = [one for one in divisors(stage) if (model.d_ff_expert or 0) % one == 0]
        yield Problem(
            f"{where}.expert_tensor",
            f"{model.name}'s expert width {model.d_ff_expert} does not divide by {split}{choices(fits, split)}",
        )
    if expert > MOST_RANKS:
        yield Problem(f"{where}.expert", f"at most {MOST_RANKS} expert-parallel ranks can be priced")


def placement_suits_the_instances(scenario: ServingScenario) -> Iterator[Problem]:
    """Strategy and redundant experts suit the model and every instance's expert-parallel ranks."""
    spec, model = scenario.placement, scenario.model
    if spec.strategy in WITH_PAIRS:
        able = ", ".join(name for name in STRATEGIES if name not in WITH_PAIRS)
        yield Problem(
            "placement.strategy", f"{spec.strategy} needs tokens' choices, serving knows loads; allowed: {able}"
        )
        return
    for pool in scenario.pools:
        ranks = pool.instance.expert
        yield from placement_problems(spec, model, ranks, scenario.routing.capacity)
        if spec.strategy in BY_DOMAIN and model.is_moe and ranks > 1 and not any(checks.cluster_is_connected(scenario)):
            network = group(scenario.cluster, ranks, stride=pool.instance.expert_split)
            yield from domain_problems(spec, model, ranks, network.ranks_per_domain)


def model_splits(scenario: ServingScenario) -> Iterator[Problem]:
    """Heads and widths divide by tensor, layers fill the stages."""
    model = scenario.model
    if model.arch != "decoder":
        yield Problem("model.arch", f"{model.arch} models are not served here; allowed: decoder")
    for where, instance in _places(scenario):
        uneven = undivided(model, instance.tensor)
        if uneven:
            able = [one for one in divisors(model.n_heads) if not undivided(model, one)]
            what = " and ".join(uneven)
            yield Problem(
                f"{where}.tensor", f"{what} do not divide by {instance.tensor}{choices(able, instance.tensor)}"
            )
        if instance.pipeline > model.layers:
            yield Problem(f"{where}.pipeline", f"{instance.pipeline} stages of {model.layers} layers")


def requests_have_lengths(scenario: ServingScenario) -> Iterator[Problem]:
    """Lengths come from the workload or from the trace, and prefill gives one output token."""
    work = scenario.workload
    traced = work.arrivals.kind == "trace"
    for name in ("input_tokens", "output_tokens"):
        given = getattr(work, name) is not None
        needed = not traced and not (name == "output_tokens" and work.kind == "prefill")
        if given and traced:
            yield Problem(f"workload.{name}", "the trace says how long its requests are; drop it")
        elif needed and not given:
            yield Problem(f"workload.{name}", "is required: a number, {mean, deviation}, or {low, high}")
    outputs = work.output_tokens
    if work.kind == "prefill" and outputs is not None and (outputs.average != 1.0 or outputs.variance):
        yield Problem("workload.output_tokens", "prefill gives one output token a request; drop it, or say 1")


def limits_are_met_by_something(scenario: ServingScenario) -> Iterator[Problem]:
    """A limit is on something that the workload has."""
    work = scenario.workload
    if work.kind == "prefill" and work.limits.time_per_output_token is not None:
        yield Problem("workload.limits.time_per_output_token", "prefill gives one output token: nothing to limit")


def engine_suits_the_work(scenario: ServingScenario) -> Iterator[Problem]:
    """Options that need something the scenario does not have."""
    engine, work = scenario.engine, scenario.workload
    if engine.speculative_tokens > 1 and work.kind == "prefill":
        yield Problem("engine.speculative_tokens", "must be 1 in prefill, where nothing is decoded")
    if engine.draft_cost is not None and scenario.model.mtp_layers:
        why = f"{scenario.model.name} drafts with its own multi-token-prediction layer, which is priced; drop it"
        yield Problem("engine.draft_cost", why)
    elif engine.draft_cost is not None and not engine.drafted:
        yield Problem("engine.draft_cost", "nothing is drafted: state engine.speculative_tokens or drafted_tokens")
    exchanges = scenario.model.is_moe and any(instance.expert > 1 for _, instance in _places(scenario))
    if engine.two_batch_overlap and not exchanges:
        yield Problem("engine.two_batch_overlap", "needs exchanges: a model with experts and instance.expert > 1")
    if scenario.routing.capacity != "dropless":
        yield Problem("routing.capacity", "serving engines drop no tokens; allowed: dropless")


def offload_keeps_some(scenario: ServingScenario) -> Iterator[Problem]:
    """A GPU keeps at most the experts that are its own; those in host memory have no replicas."""
    offload, model = scenario.placement.offload, scenario.model
    if offload is None:
        return
    if not model.is_moe:
        yield Problem("placement.offload", f"{model.name} has no experts")
        return
    most = min(model.n_experts // pool.instance.expert for pool in scenario.pools)
    if offload.resident > most:
        yield Problem("placement.offload.resident", f"{offload.resident} of the {most} experts that a rank has")
    if scenario.placement.redundant_experts:
        why = "experts that are fetched from the host stand nowhere; drop placement.offload, or say 0"
        yield Problem("placement.redundant_experts", why)


def formats_exist_on_the_gpu(scenario: ServingScenario) -> Iterator[Problem]:
    """The compute formats have a rate on this GPU."""
    for key, wanted in (("compute", scenario.precision.compute), ("experts", scenario.precision.experts)):
        if wanted != "auto":
            yield from checks.format_exists(scenario.cluster.gpu, wanted, f"precision.{key}")


def dispatchers_run(scenario: ServingScenario) -> Iterator[Problem]:
    """A named dispatcher is known and runs on the links of its instances, with SMs that the GPU has."""
    spec, available = scenario.dispatcher, scenario.cluster.gpu.multiprocessors
    if spec.multiprocessors and available and spec.multiprocessors >= available:
        yield Problem("dispatcher.multiprocessors", f"{spec.multiprocessors} leave none of the GPU's {available}")
    for phase in ("prefill", "decode"):
        kind = getattr(spec, phase)
        if kind == "auto":
            continue
        if kind not in DISPATCHERS:
            hint = nearest_hint(kind, ["auto", *DISPATCHERS])
            yield Problem(f"dispatcher.{phase}", f"unknown dispatcher {kind!r}{hint}")
            continue
        yield from _runs(scenario, phase, kind)


def _runs(scenario: ServingScenario, phase: str, kind: str) -> Iterator[Problem]:
    if any(checks.cluster_is_connected(scenario)):
        return
    for where, instance in _places(scenario):
        if instance.expert == 1 or where.endswith("decode" if phase == "prefill" else "prefill"):
            continue
        try:
            network = group(scenario.cluster, instance.expert, stride=instance.expert_split)
        except InfeasibleError as error:
            yield Problem(f"{where}.expert", str(error))
            continue
        refusal = DISPATCHERS[kind].runs_on(network)
        if refusal is not None:
            yield Problem(f"dispatcher.{phase}", refusal)


CHECKS: tuple[Check, ...] = (
    checks.model_adds_up,
    routing_checks.router_fits_the_experts,
    routing_checks.load_fits_the_experts,
    checks.cluster_is_connected,
    checks.links_are_sound,
    deployment_is_stated_once,
    instances_fill_the_cluster,
    attention_fills_the_instance,
    experts_fill_the_instance,
    placement_suits_the_instances,
    model_splits,
    requests_have_lengths,
    limits_are_met_by_something,
    engine_suits_the_work,
    offload_keeps_some,
    formats_exist_on_the_gpu,
    dispatchers_run,
)


def problems(scenario: ServingScenario) -> list[Problem]:
    """Everything wrong with a scenario whose fields are each legal by themselves."""
    return list(dict.fromkeys(problem for check in CHECKS for problem in check(scenario)))
