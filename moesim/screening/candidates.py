"""Candidates as columns: what is asked about many layouts of one training scenario, and what is answered.

C candidates, P parts of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.scenario.scenario import Recompute, Scenario
from moesim.specs.cluster import ClusterSpec
from moesim.specs.parallelism import OverlapSpec, ScheduleSpec
from moesim.specs.routing import CapacitySpec

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[str, float], None]
"""Hears what is being done, and which share of it is done."""

DEGREES = ("tensor", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "context")


@dataclass(frozen=True)
class Choices:
    """The values that the categorical columns of `Candidates` index; clusters are resolved, GPUs counted."""

    clusters: tuple[ClusterSpec, ...]
    recomputes: tuple[Recompute, ...]
    schedules: tuple[ScheduleSpec, ...]
    capacities: tuple[CapacitySpec | Literal["dropless"], ...]
    dispatchers: tuple[str, ...]
    overlaps: tuple[OverlapSpec, ...]


@dataclass(frozen=True)
class Candidates:
    """One row a candidate [C]: degrees as `ParallelismSpec` has them, `micro_batch` sequences, and for the other
    columns places in `Choices`."""

    cluster: Ints
    tensor: Ints
    pipeline: Ints
    virtual_pipeline: Ints
    expert: Ints
    expert_tensor: Ints
    context: Ints
    micro_batch: Ints
    recompute: Ints
    schedule: Ints
    capacity: Ints
    dispatcher: Ints
    overlap: Ints

    def __len__(self) -> int:
        return len(self.cluster)

    def rows(self, chosen: slice | NDArray[np.integer] | NDArray[np.bool_]) -> Candidates:
        """Some of the candidates."""
        return Candidates(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class Screened:
    """The closed form's answers [C]: seconds of a step, of its exposed communication and of its pipeline bubble, bytes
    of the fullest GPU in all and by part [C, P], share of the routed copies that are dropped."""

    step_seconds: Floats
    exposed_communication_seconds: Floats
    bubble_seconds: Floats
    memory_bytes: Floats
    memory_parts: Floats
    part_names: tuple[str, ...]
    dropped_fraction: Floats


def scenario_of(scenario: Scenario, choices: Choices, candidates: Candidates, row: int) -> Scenario:
    """The whole scenario of one candidate, as `estimate` and `simulate` take it.

    A `pipeline_layout` that the scenario states stays where it has the candidate's number of virtual stages.
    """

    def at(name: str) -> int:
        return int(getattr(candidates, name)[row])

    degrees = {name: at(name) for name in DEGREES} | {"data": "auto"}
    routing = scenario.routing.model_copy(update={"capacity": choices.capacities[at("capacity")]})
    update = {
        "cluster": choices.clusters[at("cluster")],
        "parallelism": scenario.parallelism.model_copy(update=degrees),
        "schedule": choices.schedules[at("schedule")],
        "workload": scenario.workload.model_copy(update={"micro_batch": at("micro_batch")}),
        "routing": routing,
        "dispatcher": scenario.dispatcher.model_copy(update={"kind": choices.dispatchers[at("dispatcher")]}),
        "overlap": choices.overlaps[at("overlap")],
        "recompute": choices.recomputes[at("recompute")],
    }
    found = scenario.model_copy(update=update)
    stated = scenario.stack_options.pipeline_layout
    if stated is not None and len(stated) != found.virtual_stages:
        options = scenario.stack_options.model_copy(update={"pipeline_layout": None})
        found = found.model_copy(update={"stack_options": options})
    return found
