"""The space that a plan searches where the user says nothing: from the model and the cluster, each rule a function."""

from __future__ import annotations

from math import gcd, isqrt, log2
from typing import Literal

from moesim import catalog
from moesim.scenario.degrees import undivided
from moesim.scenario.scenario import Recompute, Scenario
from moesim.screening.reference import is_known
from moesim.specs.cluster import ClusterSpec
from moesim.specs.parallelism import OverlapSpec, ScheduleSpec
from moesim.specs.plan import LimitsSpec, PlanSpec
from moesim.specs.routing import CapacitySpec

MOST_SPLIT = 8
"""Degrees beyond which splitting an expert, or joining sequences into a microbatch, is not tried unasked."""
DEEPEST = 16
"""Chunks a pipeline rank tried unasked."""
CONTEXT_FROM = 4096
"""Tokens of a sequence that a context-parallel rank keeps at least, unasked."""
FACTORS = (1.0, 1.25, 1.5)
"""Capacity factors tried where a plan allows drops."""
ONE_BY_ONE = 500
"""Candidates priced one by one unless the plan states a budget: some twenty a second."""
DAY = 86400.0


def powers(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `most`."""
    return tuple(1 << power for power in range(max(1, most).bit_length()))


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    low = [degree for degree in range(1, isqrt(number) + 1) if number % degree == 0]
    return tuple(sorted({*low, *(number // degree for degree in low)}))


def degrees(scenario: Scenario, cluster: ClusterSpec) -> dict[str, tuple[int, ...]]:
    """The degrees to try on one cluster, by column."""
    model, gpus = scenario.model, cluster.gpus
    domain = min(gpus, cluster.gpus_per_domain)
    tensor = [degree for degree in powers(domain) if not undivided(model, degree)]
    pipeline = tuple(degree for degree in divisors(gpus) if degree <= model.layers)
    expert = [d for d in divisors(model.n_experts) if gpus % d == 0] if model.is_moe else [1]
    width = model.d_ff_expert or 0
    split = [d for d in powers(min(domain, MOST_SPLIT)) if width % d == 0] if model.is_moe else [1]
    batch = scenario.workload.global_batch
    return {
        "tensor": tuple(tensor),
        "pipeline": pipeline,
        "virtual_pipeline": chunk_counts(model.layers, pipeline),
        "expert": tuple(expert),
        "expert_tensor": tuple(split),
        "context": powers(min(domain, scenario.workload.sequence_length // CONTEXT_FROM)),
        "micro_batch": tuple(size for size in powers(MOST_SPLIT) if size <= batch),
    }


def chunk_counts(layers: int, pipeline: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks a pipeline rank: powers of two, and what cuts the layers (with embedding and head, or without) evenly."""
    even = [
        chunks
        for stages in pipeline
        for chunks in range(2, DEEPEST + 1)
        if stages > 1 and (layers % (stages * chunks) == 0 or (layers + 2) % (stages * chunks) == 0)
    ]
    return tuple(sorted({1, *even, *powers(DEEPEST)} if len(pipeline) > 1 else {1}))


def recomputes(scenario: Scenario) -> tuple[Recompute, ...]:
    """Nothing, what is cheap to compute again, everything."""
    model = scenario.model
    cheap: Recompute = ("layernorm",)
    if model.is_moe:
        cheap = (*cheap, "moe_act")
    if model.mla is not None:
        cheap = (*cheap, "mla_up_proj")
    return ("none", cheap, "full")


def schedules() -> tuple[ScheduleSpec, ...]:
    """1F1B, interleaved where there are chunks, and those that trade memory for less bubble."""
    return tuple(ScheduleSpec(kind=kind) for kind in ("auto", "zero-bubble-v", "dualpipe"))


def capacities(scenario: Scenario, limits: LimitsSpec) -> tuple[CapacitySpec | Literal["dropless"], ...]:
    """Dropless unless the scenario has a capacity; where drops are allowed, capacity factors as well."""
    stated = scenario.routing.capacity
    drops = scenario.model.is_moe and limits.dropped_fraction and scenario.model.router.rule != "soft-moe"
    if not drops:
        return (stated,)
    pattern = CapacitySpec(factor=1.0) if stated == "dropless" else stated
    tried = [pattern.model_copy(update={"factor": factor}) for factor in FACTORS]
    found: dict[CapacitySpec | Literal["dropless"], None] = dict.fromkeys(("dropless", stated, *tried))
    return tuple(found)


def overlaps(scenario: Scenario) -> tuple[OverlapSpec, ...]:
    """The scenario's own, with expert communication exposed and hidden."""
    own = scenario.overlap
    if not scenario.model.is_moe or own.two_batch:
        return (own,)
    return tuple(own.model_copy(update={"expert_communication": hidden}) for hidden in (False, True))


def global_batch(tokens: float, sequence_length: int, gpu_counts: tuple[int, ...]) -> int:
    """Sequences of a usual batch for a run of so many tokens (calibration "planning-batch"), as a power of two times
    the odd part of the GPUs, so that it divides over them."""
    law = catalog.calibration("planning-batch")
    odd = 1
    for count in gpu_counts:
        part = count // (count & -count)
        odd = odd * part // gcd(odd, part)
    sequences = float(law["coefficient"]) * tokens ** float(law["exponent"]) / sequence_length / odd
    return odd << max(0, round(log2(max(1.0, sequences))))


def affordable(spec: PlanSpec, base: Scenario, notes: list[str]) -> PlanSpec:
    """The plan with a smaller budget where candidates have to be priced one by one."""
    if is_known(base):
        return spec
    if "candidates" not in spec.model_fields_set:
        spec = spec.model_copy(update={"candidates": ONE_BY_ONE})
    notes.append(
        "the screening knows experts held in order alone: with this placement candidates are priced one by one by the"
        f" closed form, at most {spec.candidates:,} (--candidates)"
    )
    return spec
