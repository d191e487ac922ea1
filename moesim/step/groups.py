"""Which ranks form which group, and where these stand: the layout that all prices assume.

G GPUs in P stages of S = G / P; a rank is its GPU's number, domains (nodes) are filled in that order. In a stage the
tensor rank runs fastest, then context, then data; for the experts the same GPUs are counted once more, expert_tensor
fastest, then expert, then expert-data (parallel folding). The pipeline rank runs slowest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.network.seating import Kind, domain_size, kind_of, told
from moesim.scenario.scenario import Scenario

Ints = NDArray[np.int64]

MEANINGS = {
    "tensor": "split every attention and dense matrix",
    "context": "split a sequence; keys and values go round them",
    "data": "hold the same attention part, work on different sequences",
    "data-context": "sum the gradients of the same attention part",
    "pipeline": "hand a microbatch on, stage by stage",
    "expert": "exchange tokens: dispatch and combine",
    "expert-tensor": "split every expert's matrices",
    "expert-data": "sum the gradients of the same experts",
}


@dataclass(frozen=True)
class GroupKind:
    """All groups of one kind: `groups` of `size` ranks, `stride` ranks apart (None where not evenly).

    `domains`: the fewest and the most scale-up domains that one of them spans; `example` is the first group's GPUs,
    `example_domains` where these stand.
    """

    name: str
    meaning: str
    groups: int
    size: int
    stride: int | None
    domains: tuple[int, int]
    example: str
    example_domains: str

    @property
    def inside(self) -> bool:
        """Whether no group leaves its scale-up domain."""
        return self.domains[1] == 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "domains": list(self.domains), "inside": self.inside}


def groups(scenario: Scenario) -> dict[str, Ints]:
    """Ranks [groups, members] of every kind of group, members in ascending order; each kind holds every rank once.

    A dense model has no expert groups. Under DualPipe mirrored stages hold the same parameters, and their ranks sum
    gradients together.
    """
    layout, stages = scenario.parallelism, scenario.parallelism.pipeline
    ranks = np.arange(scenario.cluster.gpus, dtype=np.int64)
    attention = ranks.reshape(stages, scenario.data_parallel, layout.context, layout.tensor)
    experts = ranks.reshape(stages, scenario.expert_data_parallel, layout.expert, layout.expert_tensor)
    gradients = attention.reshape(stages, -1, layout.tensor)
    found = {
        "tensor": _along(attention, 3),
        "context": _along(attention, 2),
        "data": _along(attention, 1),
        "data-context": _along(_mirrored(scenario, gradients), 1),
        "pipeline": _along(attention, 0),
    }
    if scenario.model.is_moe:
        found["expert"] = _along(experts, 2)
        found["expert-tensor"] = _along(experts, 3)
        found["expert-data"] = _along(_mirrored(scenario, experts), 1)
    return found


def expert_place(scenario: Scenario, gpu: int) -> tuple[int, int]:
    """(pipeline rank, expert rank) of a GPU."""
    layout = scenario.parallelism
    stage, place = divmod(gpu, scenario.cluster.gpus // layout.pipeline)
    return stage, place // layout.expert_tensor % layout.expert


def _along(ranks: Ints, axis: int) -> Ints:
    """Groups of the ranks that differ along one axis only."""
    return np.ascontiguousarray(np.moveaxis(ranks, axis, -1).reshape(-1, ranks.shape[axis]))


def _mirrored(scenario: Scenario, ranks: Ints) -> Ints:
    """Ranks [P, members, ...], those of mirrored stages together [P/2, 2 members, ...] where they hold the same."""
    if not mirrored_stages(scenario):
        return ranks
    half = len(ranks) // 2
    return np.concatenate([ranks[:half], ranks[half:][::-1]], axis=1)


def kinds(scenario: Scenario) -> dict[str, Kind]:
    """The same groups in numbers, those that collectives are priced for."""
    layout, cluster = scenario.parallelism, scenario.cluster
    mirrored = mirrored_stages(scenario)
    copies = 2 if mirrored else 1
    whole = layout.expert * layout.expert_tensor
    found = {
        "tensor": kind_of(cluster, layout.tensor, 1),
        "context": kind_of(cluster, layout.context, layout.tensor),
        "data-context": kind_of(cluster, copies * scenario.data_parallel * layout.context, layout.tensor, mirrored),
    }
    if scenario.model.is_moe:
        found["expert"] = kind_of(cluster, layout.expert, layout.expert_tensor)
        found["expert-tensor"] = kind_of(cluster, layout.expert_tensor, 1)
        found["expert-data"] = kind_of(cluster, copies * scenario.expert_data_parallel, whole, mirrored)
    return found


def mirrored_stages(scenario: Scenario) -> int:
    """Pipeline stages of which each holds the parameters of its mirror image too; 0 where none does."""
    stages = scenario.parallelism.pipeline
    return stages if scenario.schedule_kind == "dualpipe" and stages > 1 else 0


def straddling_note(scenario: Scenario) -> str | None:
    """Which groups straddle scale-up domains, and how they would not; None where none does."""
    return told(kinds(scenario))


def crossing_share(scenario: Scenario) -> float:
    """Share of a microbatch's messages between pipeline ranks that leave the scale-up domain.

    Ranks that wait for each other in a stage (a replica's, an expert group's) wait for the one of them whose message
    leaves; of all such sets the worst counts. An interleaved schedule's messages from the last rank to the first count.
    """
    layout = scenario.parallelism
    stage, size = scenario.cluster.gpus // layout.pipeline, domain_size(scenario.cluster)
    if layout.pipeline == 1 or size >= scenario.cluster.gpus:
        return 0.0
    if stage >= size:
        return 1.0
    together = lcm(layout.tensor * layout.context, layout.expert * layout.expert_tensor)
    rounds = layout.virtual_pipeline if scenario.schedule_kind == "interleaved-1f1b" else 1
    return _crossing_share(layout.pipeline, stage, size, together if stage % together == 0 else stage, rounds)


@lru_cache(maxsize=4096)
def _crossing_share(stages: int, stage: int, size: int, together: int, rounds: int) -> float:
    domain = np.arange(stages * stage).reshape(stages, -1, together) // size
    onward = (domain[1:] != domain[:-1]).any(axis=2).sum(axis=0)
    back = (domain[0] != domain[-1]).any(axis=1)
    return float((rounds * onward + (rounds - 1) * back).max() / (rounds * stages - 1))


def described(scenario: Scenario) -> list[GroupKind]:
    """Every kind of group in numbers, with its first one as an example."""
    size = domain_size(scenario.cluster)
    return [_described(name, members, size) for name, members in groups(scenario).items()]


def _described(name: str, members: Ints, size: int) -> GroupKind:
    places = members // size
    spanned = 1 + np.count_nonzero(np.diff(places, axis=1), axis=1)
    steps = np.unique(np.diff(members[0]))
    return GroupKind(
        name=name,
        meaning=MEANINGS[name],
        groups=len(members),
        size=members.shape[1],
        stride=1 if not steps.size else int(steps[0]) if steps.size == 1 else None,
        domains=(int(spanned.min()), int(spanned.max())),
        example=numbers(members[0]),
        example_domains=numbers(np.unique(places[0])),
    )


def numbers(values: Ints) -> str:
    """Ascending numbers for people: runs as 0-7, long rows by their beginning and end."""
    breaks = np.flatnonzero(np.diff(values) != 1) + 1
    runs = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in np.split(values, breaks)]
    return ", ".join(runs if len(runs) <= 5 else [*runs[:3], "...", runs[-1]])


def folding(scenario: Scenario) -> str:
    """How the experts' groups lie on the attention's, in a sentence or two."""
    layout, data = scenario.parallelism, scenario.data_parallel
    halves = _halves(scenario)
    stage = scenario.cluster.gpus // layout.pipeline
    attention = f"tensor {layout.tensor} x context {layout.context} x data {data}"
    if not scenario.model.is_moe:
        return f"The {stage} GPUs of a pipeline stage are {attention}; the model has no experts.{halves}"
    degrees = f"expert_tensor {layout.expert_tensor} x expert {layout.expert}"
    text = (
        f"The {stage} GPUs of a pipeline stage are {attention} for attention and {degrees} x expert-data"
        f" {scenario.expert_data_parallel} for the experts.{halves}"
    )
    if layout.expert == 1:
        return f"{text} Every expert is at home on every rank: no tokens are exchanged."
    first = np.arange(layout.expert) * layout.expert_tensor
    crossed, replicas = (len(np.unique(first // of)) for of in (layout.tensor, layout.tensor * layout.context))
    where = ""
    if layout.tensor > 1:
        inside = f"lies inside one tensor group of {layout.tensor}"
        where = f"{inside if crossed == 1 else f'crosses {crossed} tensor groups of {layout.tensor}'} and "
    whose = "one replica" if replicas == 1 else f"{replicas} replicas"
    more = f"; it is larger than data {data}, so it takes tensor or context ranks too" if layout.expert > data else ""
    return f"{text} An expert group of {layout.expert} {where}exchanges tokens of {whose}{more}."


def _halves(scenario: Scenario) -> str:
    """That mirrored stages sum gradients together, where they do."""
    if not mirrored_stages(scenario):
        return ""
    return (
        " DualPipe's mirrored stages (first and last, and so on) hold the same parameters: groups that sum gradients"
        " take both, and are twice as large."
    )
