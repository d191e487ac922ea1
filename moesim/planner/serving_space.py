"""All engines that a plan of serving may build: legal ones are kept, every other combination is counted by reason.

The rules are those of a scenario: an instance is legal where `moesim.scenario.serving_checks` has nothing against it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Any

from moesim.planner import serving_defaults as defaults
from moesim.planner.serving_fields import Part
from moesim.planner.serving_reading import Hardware, Question, Settings
from moesim.scenario import serving_checks
from moesim.scenario.placement_checks import placement_problems
from moesim.scenario.serving import ServingScenario
from moesim.specs.serving import DisaggregatedSpec, InstanceSpec, Phase, PoolSpec

MEANINGS = {
    "tensor": "heads or widths do not divide by tensor, or the instance's GPUs do not",
    "pipeline": "more stages than layers",
    "expert": "experts, or the GPUs of a stage, do not divide over the expert-parallel ranks",
    "expert_tensor": "an expert does not divide over the GPUs that are left for it",
    "attention_data_parallel": "tensor x pipeline x attention_data_parallel are not the instance's GPUs",
    "dispatcher": "the named dispatcher does not run on the instance's links",
    "redundant_experts": "the redundant experts do not divide over the expert-parallel ranks",
    "same": "says the same as another: a setting without effect there",
    "fabric": "the instance needs links that the cluster does not have",
}
_RULES = (
    serving_checks.attention_fills_the_instance,
    serving_checks.experts_fill_the_instance,
    serving_checks.model_splits,
    serving_checks.dispatchers_run,
)


@dataclass(frozen=True)
class Engines:
    """The engines of one size that a part of the work may run on: by setting the legal layouts, and how many others
    each rule keeps out."""

    gpus: int
    legal: dict[Settings, tuple[InstanceSpec, ...]]
    rejected: dict[Settings, Counter[str]]


def engines(question: Question, hardware: Hardware, gpus: int, part: Part | None) -> Engines:
    """Every layout of `gpus` GPUs under every setting."""
    values = defaults.degrees(hardware.base, gpus, question.wanted, part)
    rejected: dict[Settings, Counter[str]] = {setting: Counter() for setting in question.settings}
    legal: dict[Settings, list[InstanceSpec]] = {setting: [] for setting in question.settings}
    seen: set[InstanceSpec] = set()
    for chosen in product(*values.values()):
        layout = InstanceSpec(gpus=gpus, **dict(zip(values, chosen, strict=True)))
        plain = layout.model_copy(update={"expert_tensor": "auto", "attention_data_parallel": "auto"})
        reason = illegal(hardware.base, layout, question.settings[0]) or ("same" if plain in seen else None)
        if reason is None:
            seen.add(plain)
        for setting in question.settings:
            refused = reason or _unsuitable(hardware.base, layout, setting, question)
            if refused:
                rejected[setting][refused] += 1
            else:
                legal[setting].append(plain)
    return Engines(gpus, {setting: tuple(kept) for setting, kept in legal.items()}, rejected)


def illegal(base: ServingScenario, layout: InstanceSpec, setting: Settings) -> str | None:
    """The rule that a layout breaks; None where it is legal."""
    cluster = base.cluster.model_copy(update={"gpus": layout.gpus})
    dispatcher = base.dispatcher.model_copy(update=dict(zip(("prefill", "decode"), setting.dispatchers, strict=True)))
    tried = base.model_copy(update={"cluster": cluster, "instance": layout, "dispatcher": dispatcher})
    for rule in _RULES:
        for problem in rule(tried):
            where = problem.where.split(".")
            return "dispatcher" if where[0] == "dispatcher" else where[-1]
    return None


def _unsuitable(base: ServingScenario, layout: InstanceSpec, setting: Settings, question: Question) -> str | None:
    """Why a legal layout is no candidate under a setting."""
    if setting.redundant:
        spec = base.placement.model_copy(update={"redundant_experts": setting.redundant})
        if any(placement_problems(spec, base.model, layout.expert, base.routing.capacity)):
            return "redundant_experts"
    exchanges = base.model.is_moe and layout.expert > 1 and layout.replicas > 1
    if setting.two_batch and not exchanges:
        return "same"
    if setting.dispatchers != question.settings[0].dispatchers:
        return illegal(base, layout, setting) or (None if exchanges else "same")
    return None


@dataclass(frozen=True)
class Pooled:
    """So many engines that are alike."""

    layout: InstanceSpec
    count: int

    @property
    def gpus(self) -> int:
        """GPUs of all of them."""
        return self.layout.gpus * self.count


@dataclass(frozen=True)
class Candidate:
    """One deployment: the place of its hardware, the size of its cluster, one kind of engines or two, settings."""

    hardware: int
    gpus: int
    pools: tuple[Pooled, ...]
    settings: Settings

    @property
    def apart(self) -> bool:
        """Whether prompts and outputs have engines of their own."""
        return len(self.pools) == 2

    @property
    def shape(self) -> tuple[Any, ...]:
        """What tells it from candidates that differ in settings alone."""
        return self.hardware, self.gpus, self.pools


def with_settings(base: ServingScenario, setting: Settings) -> dict[str, Any]:
    """The fields of a scenario that a setting decides."""
    placement = base.placement.model_copy(update={"redundant_experts": setting.redundant})
    if setting.redundant and placement.strategy in defaults.BLIND:
        placement = placement.model_copy(update={"strategy": "global"})
    first, then = setting.dispatchers
    engine = {"token_budget": setting.token_budget, "two_batch_overlap": setting.two_batch}
    return {
        "engine": base.engine.model_copy(update=engine),
        "placement": placement,
        "dispatcher": base.dispatcher.model_copy(update={"prefill": first, "decode": then}),
    }


def scenario_of(question: Question, one: Candidate) -> ServingScenario:
    """The whole scenario of a candidate, with its cluster's price and a name."""
    base = question.hardware[one.hardware].base
    cluster = base.cluster.model_copy(update={"gpus": one.gpus})
    specs = [PoolSpec(**pool.layout.model_dump(), instances=pool.count) for pool in one.pools]
    apart = DisaggregatedSpec(prefill=specs[0], decode=specs[1]) if one.apart else None
    update = {
        "name": name_of(base, one),
        "cluster": cluster,
        "instance": None if one.apart else one.pools[0].layout,
        "disaggregated": apart,
        **with_settings(base, one.settings),
    }
    return base.model_copy(update=update)


def name_of(base: ServingScenario, one: Candidate) -> str:
    """A name that tells the layout, fit for a file: "deepseek-v3-32-h200-sxm-2x16-tp1-ep16"."""
    parts = [f"{base.model.name}-{one.gpus}-{base.cluster.gpu.name}"]
    for pool, letter in zip(one.pools, ("p", "d") if one.apart else ("",), strict=True):
        layout = pool.layout
        stages = f"-pp{layout.pipeline}" if layout.pipeline > 1 else ""
        expert = f"-ep{layout.expert}" if base.model.is_moe else ""
        parts.append(f"{letter}{pool.count}x{layout.gpus}-tp{layout.tensor}{stages}{expert}")
    parts += [f"r{one.settings.redundant}"] if one.settings.redundant else []
    parts.append(f"b{one.settings.token_budget}")
    return "-".join([*parts, *(["two-batch"] if one.settings.two_batch else [])])[:100]


def phases(base: ServingScenario, apart: bool) -> tuple[Phase, ...]:
    """What the engines of a deployment do."""
    if apart:
        return "prefill", "decode"
    return ("mixed",) if base.workload.kind == "serving" else (base.workload.kind,)
