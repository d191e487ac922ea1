"""The space that a plan searches where the user says nothing: from the model and the cluster, each rule a function."""

from __future__ import annotations

from math import ceil, gcd, log2
from typing import Literal

from moesim import catalog
from moesim.costs.compute import peak
from moesim.costs.memory import coefficients, gradient_bytes
from moesim.scenario.degrees import undivided
from moesim.scenario.scenario import Recompute, Scenario
from moesim.specs import parameters
from moesim.specs.cluster import ClusterSpec
from moesim.specs.parallelism import OverlapSpec, ScheduleSpec
from moesim.specs.plan import LimitsSpec, Objective
from moesim.specs.routing import CapacitySpec

MOST_SPLIT = 8
"""Degrees beyond which splitting an expert, or joining sequences into a microbatch, is not tried unasked."""
DEEPEST = 16
"""Chunks a pipeline rank tried unasked."""
CONTEXT_FROM = 4096
"""Tokens of a sequence that a context-parallel rank keeps at least, unasked."""
RANGE = 5
"""Cluster sizes tried unasked, each twice the one before."""
LARGEST = int(next(bound.le for bound in ClusterSpec.model_fields["gpus"].metadata if hasattr(bound, "le")))
"""GPUs that a cluster may have."""
ODD = 45
"""Odd parts of a cluster's size that are tried unasked divide this: 1, 3, 5, 9, 15 and 45."""
FACTORS = (1.0, 1.25, 1.5)
"""Capacity factors tried where a plan allows drops."""
DAY = 86400.0


def powers(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `most`."""
    return tuple(1 << power for power in range(max(1, most).bit_length()))


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    return tuple(degree for degree in range(1, number + 1) if number % degree == 0)


def degrees(scenario: Scenario, cluster: ClusterSpec) -> dict[str, tuple[int, ...]]:
    """The degrees to try on one cluster, by column."""
    model, gpus = scenario.model, cluster.gpus
    domain = min(gpus, cluster.gpus_per_domain)
    tensor = [degree for degree in powers(domain) if not undivided(model, degree)]
    pipeline = tuple(degree for degree in divisors(gpus) if degree <= model.layers and _smooth(degree))
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


def _smooth(number: int) -> bool:
    """Whether it is made of twos, threes and one five, as node counts and layer counts are."""
    for prime in (2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 5):
        number = number // prime if number % prime == 0 else number
    return number == 1


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


def gpu_counts(scenario: Scenario, limits: LimitsSpec, objective: Objective = "cost") -> tuple[int, ...]:
    """Cluster sizes from the least that could do, by memory and by arithmetic at the GPU's peak, upwards; and, where a
    limit cuts them off, what lies just beyond it, so that the limit can be told apart from what else stands against
    the model. For `time` they reach the limit; for `fewest-gpus` there are sizes between."""
    gpu, domain = scenario.cluster.gpu, scenario.cluster.gpus_per_domain
    holds = _power_above(least_held(scenario))
    least = max(least_held(scenario), _least_in_time(scenario, limits))
    first = _power_above(least)
    counts = [first << step for step in range(RANGE)]
    stated = [limits.gpus, int(limits.power // gpu.power) if limits.power and gpu.power else None]
    allowed = [most for most in stated if most is not None]
    if objective == "fewest-gpus":
        counts += [count for count in _between(counts, domain) if count >= least]
    if not allowed:
        return tuple(sorted(counts))
    most = min(LARGEST, max(1, min(allowed)))
    if objective == "time" and first <= most:
        counts += [*(first << step for step in range((2 * most // first).bit_length())), _largest_whole(most, domain)]
    kept = {count for count in counts if least <= count <= most} or {most}
    return tuple(sorted(count for count in kept | _beyond(most, holds, max(counts)) if count <= LARGEST))


def least_held(scenario: Scenario, share: float = 1.0) -> float:
    """GPUs, of whose memory a share may be used, that parameters, gradients and optimizer states alone ask for."""
    precision = scenario.precision
    stored = 2.0 + gradient_bytes(precision) + float(coefficients()["optimizer_bytes"][precision.optimizer])
    return float(stored * parameters.count(scenario.model).total / (scenario.cluster.gpu.memory * share))


def _least_in_time(scenario: Scenario, limits: LimitsSpec) -> float:
    """GPUs that keep the deadline at their peak."""
    tokens = scenario.workload.total_tokens
    if not (limits.days and tokens):
        return 1.0
    work = tokens * parameters.flops_per_token(scenario.model, scenario.workload.sequence_length)
    return float(work / (limits.days * DAY * peak(scenario.cluster.gpu, scenario.precision.compute)))


def _power_above(number: float) -> int:
    return 1 << max(0, ceil(log2(max(1.0, number))))


def _beyond(most: int, holds: int, last: int) -> set[int]:
    """Sizes above a limit: the next power of two where the sizes go on; where the model is too large for what is
    allowed, the least that holds its states and, for what else a GPU has to hold, twice as many."""
    if holds > most:
        return {holds, 2 * holds}
    return {1 << most.bit_length()} if last > most else set()


def _between(counts: list[int], domain: int) -> list[int]:
    """One and a half times every size, where that is a whole number of domains; and three quarters of the first."""
    tried = [3 * count // 2 for count in (counts[0] // 2, *counts[:-1])]
    return [count for count in tried if count % 3 == 0 and _whole(count, domain)]


def _whole(count: int, domain: int) -> bool:
    """Whether so many GPUs fill their domains, or as much of them as a power of two does, such as 64 of a rack's 72."""
    return count % domain == 0 or count % filled_domain(_power_above(domain), domain) == 0


def _largest_whole(most: int, domain: int) -> int:
    """The most GPUs up to a limit that fill their domains; their odd part, which the batch has to have, is small."""
    tried = {odd << (most // odd).bit_length() - 1 for odd in divisors(ODD) if odd <= most}
    return max((count for count in tried if _whole(count, domain)), default=1)


def filled_domain(gpus: int, domain: int) -> int:
    """GPUs of a scale-up domain that work where the whole domain does not divide a cluster's GPUs: the most that do, as
    64 of a rack's 72. Where that would leave a quarter idle the last domain is filled in part instead."""
    if gpus <= domain or gpus % domain == 0:
        return domain
    most = max(size for size in divisors(gpus) if size <= domain)
    return most if 4 * most >= 3 * domain else domain


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
