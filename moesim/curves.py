"""Curves over one input of a scenario, by the closed form: drops against capacity, imbalance against parallelism."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moesim.errors import MoesimError, ScenarioError, shorten
from moesim.results.curve import Curve, Point
from moesim.roads import estimate
from moesim.scenario.loading import load_training
from moesim.scenario.scenario import Scenario

CAPACITY_FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
MOST_POINTS = 10
DROPS = ("dropped_token_fraction", "padded_token_fraction")
IMBALANCE = ("rank_load_max_over_mean", "expert_load_max_over_mean")


def curve(
    scenario: Scenario,
    label: str,
    values: Iterable[tuple[float, Sequence[str]]],
    metrics: Sequence[str],
    here: float | None = None,
    note: str = "",
) -> Curve:
    """`metrics` of `scenario` at each (value, overrides such as "cluster.gpus=512"); a refusal is told at its point."""
    document = scenario.document()
    points = []
    for at, overrides in sorted(values, key=lambda pair: pair[0]):
        try:
            summary = estimate(load_training(document, overrides), even_if_infeasible=True).summary
            points.append(Point(at, {name: summary[name] for name in metrics if name in summary}))
        except MoesimError as error:
            points.append(Point(at, why=_reason(error)))
    return Curve(label, tuple(points), here, note)


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
