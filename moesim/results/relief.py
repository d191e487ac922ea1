"""Which single change of a scenario would make it fit into memory, found by trying them in the closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from moesim.costs.memory import verdict
from moesim.scenario.checks import problems
from moesim.scenario.scenario import Scenario
from moesim.step.memory import fullest, memory_by_rank
from moesim.step.model import StepModel

Change = tuple[str, dict[str, Any]]
_SENDS_WHAT_IS = "nccl-all-to-all"


@dataclass(frozen=True)
class Relief:
    """A change, as a scenario states it, and bytes that the fullest GPU needs with it."""

    change: str
    need: float


@dataclass(frozen=True)
class Reliefs:
    """`rank`: the fullest GPU's pipeline rank; `fits`: changes with each of which it fits; `tight`: those, where none
    makes it fit, that bring what is infeasible within the tight range; `best`: the one that saves most."""

    rank: int
    fits: tuple[Relief, ...]
    tight: tuple[Relief, ...]
    best: Relief | None


def reliefs(scenario: Scenario, parts: dict[str, float], most: int = 3) -> Reliefs:
    """The first `most` single changes with which the fullest GPU, which now needs `parts`, would fit; where there is
    none, those with which it would be tight.

    What uneven routing adds to a part is taken to stay in proportion.
    """
    model = StepModel(scenario)
    ranks = memory_by_rank(model, None)
    even = ranks[fullest(ranks)]
    stretch = {name: size / even[name] for name, size in parts.items() if even.get(name)}
    have = scenario.cluster.gpu.memory
    found: dict[str, list[Relief]] = {"fits": [], "tight": [], "infeasible": []}
    for change, fields in _changes(scenario):
        other = changed(scenario, fields)
        if problems(other):
            continue
        need = max(_need(rank, stretch) for rank in memory_by_rank(_tried(model, other), None))
        found[verdict(need, have)].append(Relief(change, need))
        if len(found["fits"]) == most:
            break
    best = min(chain.from_iterable(found.values()), key=lambda relief: relief.need, default=None)
    beyond = verdict(sum(parts.values()), have) == "infeasible" and not found["fits"]
    tight = found["tight"][:most] if beyond else ()
    return Reliefs(fullest(ranks), tuple(found["fits"]), tuple(tight), best)


def _tried(model: StepModel, other: Scenario) -> StepModel:
    """The changed step, which exchanges tokens as the present one does: choosing a dispatcher anew takes long."""
    unit = other.data_parallel * other.workload.micro_batch
    few = 4 * other.parallelism.pipeline
    if other.schedule_kind != "gpipe" and other.microbatches > few:
        # A few microbatches fill every other schedule, and take less time to put into order.
        work = other.workload.model_copy(update={"global_batch": unit * few})
        other = changed(other, {"workload": work})
    tried = StepModel(other)
    same = other.dispatcher == model.scenario.dispatcher
    if same and model.scenario.model.is_moe and model.scenario.parallelism.expert > 1:
        tried.mover = model.mover
    return tried


def _need(parts: dict[str, float], stretch: dict[str, float]) -> float:
    return sum(size * stretch.get(name, 1.0) for name, size in parts.items())


def changed(scenario: Scenario, fields: dict[str, Any]) -> Scenario:
    """The scenario with other `fields`, and nothing of what has been derived from the present ones."""
    return Scenario.model_construct(**{name: getattr(scenario, name) for name in Scenario.model_fields} | fields)


def _changes(scenario: Scenario) -> Iterator[Change]:
    """Single changes, those that cost the step little first."""
    yield from _of_exchange(scenario)
    yield from _of_sharding(scenario, ("optimizer",))
    yield from _of_formats(scenario)
    yield from _of_light_recompute(scenario)
    # Sharded gradients and weights are moved for every microbatch.
    yield from _of_sharding(scenario, ("gradients", "full"))
    yield from _of_activations(scenario)
    yield from _of_routing(scenario)
    yield from _of_layout(scenario)


def _of_sharding(scenario: Scenario, wanted: tuple[str, ...]) -> Iterator[Change]:
    layout, stages = scenario.parallelism, ("none", "optimizer", "gradients", "full")
    for stage in stages[stages.index(layout.data_sharding) + 1 :]:
        if stage in wanted:
            sharded = layout.model_copy(update={"data_sharding": stage})
            yield f"parallelism.data_sharding: {stage}", {"parallelism": sharded}


def _of_formats(scenario: Scenario) -> Iterator[Change]:
    precision = scenario.precision
    for name, value in (("optimizer", "adam-bf16-moments"), ("gradients", "bf16")):
        if getattr(precision, name) != value:
            yield f"precision.{name}: {value}", {"precision": precision.model_copy(update={name: value})}


def _of_light_recompute(scenario: Scenario) -> Iterator[Change]:
    modules = ["layernorm", *["moe_act"] * scenario.model.is_moe, *["mla_up_proj"] * (scenario.model.mla is not None)]
    if scenario.recompute in ("none", "selective"):
        yield f"recompute: [{', '.join(modules)}]", {"recompute": tuple(modules)}


def _of_activations(scenario: Scenario) -> Iterator[Change]:
    if scenario.workload.micro_batch > 1:
        half = scenario.workload.micro_batch // 2
        yield f"workload.micro_batch: {half}", {"workload": scenario.workload.model_copy(update={"micro_batch": half})}
    if scenario.recompute != "full":
        yield "recompute: full", {"recompute": "full"}
    layers = -(-scenario.model.layers // scenario.parallelism.pipeline)
    if scenario.stack_options.offload_layers < layers - 1:
        options = scenario.stack_options.model_copy(update={"offload_layers": layers - 1})
        yield f"stack_options.offload_layers: {layers - 1}", {"stack_options": options}


def _of_routing(scenario: Scenario) -> Iterator[Change]:
    capacity = scenario.routing.capacity
    if capacity != "dropless" and capacity.factor > 1.0:
        routing = scenario.routing.model_copy(update={"capacity": capacity.model_copy(update={"factor": 1.0})})
        yield "routing.capacity.factor: 1", {"routing": routing}


def _of_exchange(scenario: Scenario) -> Iterator[Change]:
    """Libraries that hold room for the worst case give way to one that sends what there is."""
    if scenario.model.is_moe and scenario.parallelism.expert > 1 and scenario.dispatcher.kind != _SENDS_WHAT_IS:
        dispatcher = scenario.dispatcher.model_copy(update={"kind": _SENDS_WHAT_IS, "multiprocessors": None})
        yield f"dispatcher.kind: {_SENDS_WHAT_IS}", {"dispatcher": dispatcher}


def _of_layout(scenario: Scenario) -> Iterator[Change]:
    layout = scenario.parallelism
    for name in ("expert", "tensor", "context", "pipeline"):
        for factor in (2, 4):
            if name == "expert" and not scenario.model.is_moe:
                continue
            degree = factor * getattr(layout, name)
            other = layout.model_copy(update={name: degree, "data": "auto"})
            yield f"parallelism.{name}: {degree}", {"parallelism": other}
