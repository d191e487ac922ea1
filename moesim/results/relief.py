"""Which single change of a scenario would make it fit into memory, found by trying them in the closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    """`rank`: the fullest GPU's pipeline rank; `fits`: changes each of which is enough; `best`: the one that saves
    most, whether enough or not."""

    rank: int
    fits: tuple[Relief, ...]
    best: Relief | None


def reliefs(scenario: Scenario, parts: dict[str, float], most: int = 3) -> Reliefs:
    """The first `most` single changes under which the fullest GPU, which now needs `parts`, would fit.

    What uneven routing adds to a part is taken to stay in proportion.
    """
    model = StepModel(scenario)
    ranks = memory_by_rank(model, None)
    even = ranks[fullest(ranks)]
    stretch = {name: size / even[name] for name, size in parts.items() if even.get(name)}
    found: list[Relief] = []
    best: Relief | None = None
    for change, fields in _changes(scenario):
        changed = _changed(scenario, fields)
        if problems(changed):
            continue
        need = max(_need(rank, stretch) for rank in memory_by_rank(_tried(model, changed), None))
        relief = Relief(change, need)
        best = relief if best is None or need < best.need else best
        if verdict(need, scenario.cluster.gpu.memory) != "infeasible":
            found.append(relief)
        if len(found) == most:
            break
    return Reliefs(fullest(ranks), tuple(found), best)


def _tried(model: StepModel, changed: Scenario) -> StepModel:
    """The changed step, which exchanges tokens as the present one does: choosing a dispatcher anew takes long."""
    unit = changed.data_parallel * changed.workload.micro_batch
    few = 4 * changed.parallelism.pipeline
    if changed.schedule_kind != "gpipe" and changed.microbatches > few:
        # A few microbatches fill every other schedule, and take less time to put into order.
        work = changed.workload.model_copy(update={"global_batch": unit * few})
        changed = _changed(changed, {"workload": work})
    tried = StepModel(changed)
    same = changed.dispatcher == model.scenario.dispatcher
    if same and model.scenario.model.is_moe and model.scenario.parallelism.expert > 1:
        tried.mover = model.mover
    return tried


def _need(parts: dict[str, float], stretch: dict[str, float]) -> float:
    return sum(size * stretch.get(name, 1.0) for name, size in parts.items())


def _changed(scenario: Scenario, fields: dict[str, Any]) -> Scenario:
    """The scenario with other `fields`, and nothing of what has been derived from the present ones."""
    return Scenario.model_construct(**{name: getattr(scenario, name) for name in Scenario.model_fields} | fields)


def _changes(scenario: Scenario) -> Iterator[Change]:
    """Single changes, those that cost the step little first."""
    yield from _of_exchange(scenario)
    yield from _of_states(scenario)
    yield from _of_activations(scenario)
    yield from _of_routing(scenario)
    yield from _of_layout(scenario)


def _of_states(scenario: Scenario) -> Iterator[Change]:
    layout, precision = scenario.parallelism, scenario.precision
    stages = ("none", "optimizer", "gradients", "full")
    for stage in stages[stages.index(layout.data_sharding) + 1 :]:
        changed = layout.model_copy(update={"data_sharding": stage})
        yield f"parallelism.data_sharding: {stage}", {"parallelism": changed}
    for name, value in (("optimizer", "adam-bf16-moments"), ("gradients", "bf16")):
        if getattr(precision, name) != value:
            yield f"precision.{name}: {value}", {"precision": precision.model_copy(update={name: value})}


def _of_activations(scenario: Scenario) -> Iterator[Change]:
    modules = ["layernorm", *["moe_act"] * scenario.model.is_moe, *["mla_up_proj"] * (scenario.model.mla is not None)]
    if scenario.recompute in ("none", "selective"):
        yield f"recompute: [{', '.join(modules)}]", {"recompute": tuple(modules)}
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
        changed = scenario.routing.model_copy(update={"capacity": capacity.model_copy(update={"factor": 1.0})})
        yield "routing.capacity.factor: 1", {"routing": changed}


def _of_exchange(scenario: Scenario) -> Iterator[Change]:
    """Libraries that hold room for the worst case give way to one that sends what there is."""
    if scenario.model.is_moe and scenario.parallelism.expert > 1 and scenario.dispatcher.kind != _SENDS_WHAT_IS:
        changed = scenario.dispatcher.model_copy(update={"kind": _SENDS_WHAT_IS, "multiprocessors": None})
        yield f"dispatcher.kind: {_SENDS_WHAT_IS}", {"dispatcher": changed}


def _of_layout(scenario: Scenario) -> Iterator[Change]:
    layout = scenario.parallelism
    for name in ("expert", "tensor", "context", "pipeline"):
        for factor in (2, 4):
            if name == "expert" and not scenario.model.is_moe:
                continue
            degree = factor * getattr(layout, name)
            changed = layout.model_copy(update={name: degree, "data": "auto"})
            yield f"parallelism.{name}: {degree}", {"parallelism": changed}
