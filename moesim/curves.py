"""Curves over one input of a scenario, by the closed form: drops against capacity, imbalance against parallelism, speed
of serving against the experts that a GPU keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from moesim.errors import MoesimError, ScenarioError, UserError, shorten
from moesim.provenance import Quantity
from moesim.results.curve import Curve, Point
from moesim.roads import estimate, routing_metrics
from moesim.scenario.loading import load_serving, load_training
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario

CAPACITY_FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
MOST_POINTS = 10
DROPS = ("dropped_token_fraction", "padded_token_fraction")
IMBALANCE = ("rank_load_max_over_mean", "expert_load_max_over_mean")
EXPERT_CACHE = (
    "output_tokens_per_second",
    "time_per_output_token",
    "expert_cache_hit_fraction",
    "expert_fetch_fraction",
    "memory_per_gpu",
    "host_memory_per_gpu",
)
MOST_CACHE_POINTS = 16


def curve(
    scenario: Scenario,
    label: str,
    values: Iterable[tuple[float, Sequence[str]]],
    metrics: Sequence[str],
    here: float | None = None,
    note: str = "",
) -> Curve:
    """`metrics` of `scenario` at each (value, overrides such as "cluster.gpus=512"); a refusal is told at its point."""
    document, routed = scenario.document(), {*metrics} <= {*DROPS, *IMBALANCE}

    def ask(overrides: Sequence[str]) -> Mapping[str, Quantity]:
        changed = load_training(document, overrides)
        return routing_metrics(changed) if routed else estimate(changed, even_if_infeasible=True).summary

    return Curve(label, _points(values, metrics, ask), here, note)


def _points(
    values: Iterable[tuple[float, Sequence[str]]],
    metrics: Sequence[str],
    ask: Callable[[Sequence[str]], Mapping[str, Quantity]],
) -> tuple[Point, ...]:
    """What `ask` answers to the overrides of each value, in ascending order; refusals are told."""
    points = []
    for at, overrides in sorted(values, key=lambda pair: pair[0]):
        try:
            summary = ask(overrides)
            points.append(Point(at, {name: summary[name] for name in metrics if name in summary}))
        except MoesimError as error:
            points.append(Point(at, why=_reason(error)))
    return tuple(points)


def expert_cache_curve(scenario: ServingScenario, residents: Sequence[int] = ()) -> Curve:
    """Speed, hits and memory against the experts of each layer that a GPU keeps, the others being fetched from host
    memory; evenly spread from one to all of a rank's unless `residents` are named.

    Raises `UserError` where the scenario keeps all experts in GPU memory.
    """
    offload = scenario.placement.offload
    if offload is None:
        raise UserError(f"{scenario.name}: placement.offload is not stated: no cache of experts to look at")
    most = min(scenario.model.n_experts // pool.instance.expert for pool in scenario.pools)
    count = min(most, MOST_CACHE_POINTS)
    spread = {1 + round(place * (most - 1) / max(1, count - 1)) for place in range(count)}
    asked = sorted({*(residents or spread), offload.resident})
    document = scenario.document()

    def ask(overrides: Sequence[str]) -> Mapping[str, Quantity]:
        return estimate(load_serving(document, overrides)).summary

    values = [(float(at), [f"placement.offload.resident={at}"]) for at in asked]
    ahead = "no prefetch" if offload.prefetch == "none" else f"prefetch, {offload.prefetch_accuracy:.0%} named rightly"
    note = f"the {offload.keep} ones kept; {ahead}; {most} experts a layer and GPU"
    return Curve("experts kept", _points(values, EXPERT_CACHE, ask), float(offload.resident), note)


def capacity_curve(scenario: Scenario, factors: Sequence[float] = CAPACITY_FACTORS) -> Curve:
    """Dropped copies and padding against the capacity factor; a dropless scenario is asked under Megatron's dialect."""
    capacity = scenario.routing.capacity
    if isinstance(capacity, str):
        here, note = None, "dropless as it stands; Megatron's dialect"
        path = "routing.capacity={{factor: {}, dialect: megatron}}"
    else:
        here, note = capacity.factor, f"{capacity.dialect} dialect"
        path = "routing.capacity.factor={}"
    asked = sorted({*factors, *([here] if here else [])})
    # Tokens that stand for others have no place in a queue; the closed form draws none.
    values = [(at, [path.format(at), "simulation.sampled_tokens=null"]) for at in asked]
    return curve(scenario, "capacity factor", values, DROPS, here, note)


def expert_parallel_curve(scenario: Scenario, most: int = MOST_POINTS) -> Curve:
    """Busiest rank and busiest expert over the mean against the expert-parallel degree, as far as the GPUs go."""
    here = scenario.parallelism.expert
    degrees = expert_degrees(scenario)
    while len(degrees) > most:
        degrees = [degree for place, degree in enumerate(degrees) if place % 2 == 0 or degree == here]
    values = [(float(degree), [f"parallelism.expert={degree}"]) for degree in degrees]
    note = "the load and all else as they are"
    return curve(scenario, "expert-parallel degree", values, IMBALANCE, float(here), note)


def expert_degrees(scenario: Scenario) -> list[int]:
    """Degrees of expert parallelism that divide the experts and the GPUs of a pipeline rank."""
    if not scenario.model.is_moe:
        return [1]
    layout = scenario.parallelism
    stage = max(1, scenario.cluster.gpus // (layout.pipeline * layout.expert_tensor))
    experts = scenario.model.n_experts
    return [degree for degree in range(1, min(stage, experts) + 1) if experts % degree == 0 and stage % degree == 0]


def _reason(error: MoesimError) -> str:
    """The first thing in the way, in one line."""
    first = error.problems[0] if isinstance(error, ScenarioError) and error.problems else error
    return shorten(str(first).split("\n")[0], 300)
