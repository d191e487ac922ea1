"""The cluster sizes that a plan tries where the user says none, and why these."""

from __future__ import annotations

from math import ceil, log2

from moesim.costs.compute import peak
from moesim.costs.memory import coefficients, gradient_bytes
from moesim.planner.defaults import CONTEXT_FROM, DAY, divisors, powers
from moesim.scenario.degrees import undivided
from moesim.scenario.scenario import Scenario
from moesim.specs import parameters
from moesim.specs.cluster import ClusterSpec
from moesim.specs.plan import LimitsSpec, Objective

RANGE = 5
"""Cluster sizes tried unasked, each twice the one before."""
LARGEST = int(next(bound.le for bound in ClusterSpec.model_fields["gpus"].metadata if hasattr(bound, "le")))
"""GPUs that a cluster may have."""
ODD = 15
"""Odd part of a cluster's size up to which it is tried unasked: a batch has to divide by it."""


def gpu_counts(
    scenario: Scenario, limits: LimitsSpec, objective: Objective = "cost", batch: int | None = None
) -> tuple[int, ...]:
    """Cluster sizes from the least that could do, by memory and by arithmetic at the GPU's peak, upwards; and, where a
    limit cuts them off, the most GPUs that it allows and what lies just beyond it, so that the limit can be told apart
    from what else stands against the model. For `time` they reach the limit, or as far as a batch of so many sequences
    can be divided; for `fewest-gpus` there are sizes between."""
    domain = scenario.cluster.gpus_per_domain
    least = least_size(scenario, limits)
    first = _power_above(least)
    counts = [first << step for step in range(RANGE)]
    if objective == "fewest-gpus":
        counts += [count for count in _between(counts, domain) if count >= least]
    most = most_allowed(scenario, limits)
    if most is None:
        return tuple(sorted(counts))
    reach = most if batch is None else min(most, _divisible(scenario, batch))
    if objective == "time" and first <= reach:
        counts = _onwards(first, reach)
    cut = max(counts) > most or (objective == "time" and reach == most)
    counts += [largest_whole(most, domain)] if cut else []
    kept = {count for count in counts if least <= count <= most} or {largest_whole(most, domain)}
    return tuple(sorted(count for count in kept | _beyond(most, least_held(scenario), cut) if count <= LARGEST))


def sizes_words(scenario: Scenario, limits: LimitsSpec, counts: tuple[int, ...]) -> str:
    """Which sizes are tried, and why these."""
    name, domain = scenario.cluster.gpu.name, scenario.cluster.gpus_per_domain
    said = f"{name}: {', '.join(f'{count:,}' for count in counts)} GPUs are tried (assumed)"
    most, held = most_allowed(scenario, limits), least_held(scenario)
    why = (
        "hold the states of the model" if held >= least_size(scenario, limits) else "keep the deadline at its peak rate"
    )
    first = _power_above(least_size(scenario, limits))
    parts = [f"{first:,} is the least power of two that could {why}"] if first in counts else []
    if most is not None:
        whole = largest_whole(most, domain)
        if whole in counts and whole & (whole - 1):
            parts.append(f"{whole:,} the most up to {most:,} that fills its domains and that a usual batch divides by")
        beyond = [f"{count:,}" for count in counts if count > most]
        if beyond:
            parts.append(f"{' and '.join(beyond)} beyond the limit, to tell what it keeps out")
    return f"{said}: {'; '.join([*parts, '--gpus names others'])}"


def most_allowed(scenario: Scenario, limits: LimitsSpec) -> int | None:
    """GPUs that the limits of GPUs and of power allow, None where they say nothing."""
    power = scenario.cluster.gpu.power
    stated = [limits.gpus, int(limits.power // power) if limits.power and power else None]
    allowed = [most for most in stated if most is not None]
    return min(LARGEST, max(1, min(allowed))) if allowed else None


def least_size(scenario: Scenario, limits: LimitsSpec) -> float:
    """GPUs below which neither memory nor the deadline can be kept."""
    return max(least_held(scenario), _least_in_time(scenario, limits))


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


def _divisible(scenario: Scenario, batch: int) -> int:
    """The most GPUs that can share a batch, a power of two: one sequence a replica, cut in every way tried unasked."""
    model, domain = scenario.model, scenario.cluster.gpus_per_domain
    tensor = max(degree for degree in powers(domain) if not undivided(model, degree))
    context = powers(min(domain, scenario.workload.sequence_length // CONTEXT_FROM))[-1]
    replica = tensor * powers(model.layers)[-1] * context
    return powers(batch * replica)[-1]


def _onwards(first: int, reach: int) -> list[int]:
    """Powers of two from the first on: the largest, and few of the smaller ones, of which none is the fastest."""
    found = [first << step for step in range((reach // first).bit_length())]
    return [*found[:-RANGE:RANGE], *found[-RANGE:]]


def _beyond(most: int, held: float, cut: bool) -> set[int]:
    """Sizes above a limit: the next power of two where it cuts the sizes off; where the model is too large for what is
    allowed, the least that hold its states and, for what else a GPU has to hold, twice as many."""
    holds = _power_above(held)
    if holds > most:
        return {count for count in (3 * holds // 4, holds, 2 * holds) if count >= max(held, most + 1)}
    return {1 << most.bit_length()} if cut else set()


def _between(counts: list[int], domain: int) -> list[int]:
    """One and a half times every size, where that is a whole number of domains; and three quarters of the first."""
    tried = [3 * count // 2 for count in (counts[0] // 2, *counts[:-1])]
    return [count for count in tried if count % 3 == 0 and _whole(count, domain)]


def _whole(count: int, domain: int) -> bool:
    """Whether so many GPUs fill their domains, or as much of them as a power of two does, such as 64 of a rack's 72, or
    are within one."""
    return count < domain or count % domain == 0 or count % filled_domain(_power_above(domain), domain) == 0


def largest_whole(most: int, domain: int) -> int:
    """The most GPUs up to a limit that fill their domains; their odd part, which the batch has to have, is small."""
    tried = {odd << (most // odd).bit_length() - 1 for odd in range(1, ODD + 1, 2) if odd <= most}
    return max((count for count in tried if _whole(count, domain)), default=1)


def filled_domain(gpus: int, domain: int) -> int:
    """GPUs of a scale-up domain that work where the whole domain does not divide a cluster's GPUs: the most that do, as
    64 of a rack's 72. Where that would leave a quarter idle the last domain is filled in part instead."""
    if gpus <= domain or gpus % domain == 0:
        return domain
    most = max(size for size in divisors(gpus) if size <= domain)
    return most if 4 * most >= 3 * domain else domain
