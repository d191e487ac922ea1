"""What follows for each candidate from its row alone: tokens, microbatches, replicas, and what its slots may hide.

C candidates. A `site` is a cluster as a group inside a pipeline stage sees it: clusters that differ in nothing but how
many GPUs they have are one site where their fabric does not bind. How the group sits in domains is its own column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from moesim.network.topology import group
from moesim.scenario.scenario import ResolvedSchedule, Scenario
from moesim.screening.candidates import Candidates, Choices, scenario_of
from moesim.screening.memo import Memo, memo_of
from moesim.specs.cluster import ClusterSpec
from moesim.step.model import StepModel
from moesim.step.operations import Aside

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
KINDS: tuple[ResolvedSchedule, ...] = get_args(ResolvedSchedule)
MIRRORED: tuple[ResolvedSchedule, ...] = ("dualpipe", "zero-bubble-v")
"""Schedules whose pipeline ranks hold a chunk and its mirror image."""
_MOST_CODE = 1 << 40


@dataclass(frozen=True)
class Columns:
    """Candidates with what follows [C]. `tokens` of a rank and microbatch, `replica_tokens` of a tensor-parallel group;
    `data` and `expert_data` replicas; `kind` of schedule, a place in `KINDS`, of `chunks` a pipeline rank; `exchanges`:
    there are dispatches and combines, `paired` beside another microbatch, `aside` beside the microbatch's own work;
    `parts` that a microbatch is worked in; `seats` of the tensor-, context- and expert-tensor-parallel groups, and
    `expert_seats`: how many members stand in a domain; `group_tokens` and `sequences` that an expert-parallel group
    routes at once."""

    scenario: Scenario
    choices: Choices
    memo: Memo
    rows: Candidates
    site: Ints
    gpus: Ints
    data: Ints
    expert_data: Ints
    microbatches: Ints
    replica_tokens: Ints
    tokens: Ints
    kind: Ints
    chunks: Ints
    exchanges: Booleans
    paired: Booleans
    aside: Booleans
    parts: Ints
    seats: Ints
    expert_seats: Ints
    group_tokens: Ints
    sequences: Ints

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cut_evenly(self) -> Booleans:
        """Whether the layers divide by the chunks, with nothing but a head behind them [C]; see `step.layout`."""
        stages, model = self.rows.pipeline * self.chunks, self.scenario.model
        return np.asarray((stages == 1) | ((model.layers % stages == 0) & (model.mtp_layers == 0)))

    @property
    def hides(self) -> Booleans:
        """Whether any compute runs beside exchanges [C]."""
        return self.paired | self.aside

    def scenario_at(self, row: int) -> Scenario:
        """The scenario of one candidate."""
        return scenario_of(self.scenario, self.choices, self.rows, row)

    def aside_at(self, row: int) -> Aside:
        """What one candidate's slots run beside their own exchanges."""
        return StepModel(self.scenario_at(row)).aside

    def keyed(self, law: str, ask: Callable[[int], object], *keys: NDArray[np.generic]) -> Keyed:
        """Asks a law for one row of each distinct key that it was not asked for before; keys have to mean the same for
        all candidates of a scenario."""
        first, key = distinct(*keys)
        names = zip(*(np.asarray(each)[first].tolist() for each in keys), strict=True)
        found = [
            self.memo.answer(law, name, lambda row=row: ask(row))  # type: ignore[misc]
            for row, name in zip(first.tolist(), names, strict=True)
        ]
        return Keyed(key, np.array(found, dtype=np.float64))

    def part(self, chosen: slice | Ints) -> Columns:
        """Some of the candidates."""
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        short: dict[str, Any] = {name: each[chosen] for name, each in kept.items() if isinstance(each, np.ndarray)}
        return replace(self, rows=self.rows.rows(chosen), **short)

    def is_kind(self, *names: ResolvedSchedule) -> Booleans:
        """Whether the schedule is one of these [C]."""
        return np.isin(self.kind, [KINDS.index(name) for name in names])


def columns(scenario: Scenario, choices: Choices, rows: Candidates) -> Columns:
    """All columns of the candidates."""
    gpus = np.array([cluster.gpus for cluster in choices.clusters])[rows.cluster]
    stage = gpus // rows.pipeline
    data = np.maximum(1, stage // (rows.tensor * rows.context))
    replica_tokens = rows.micro_batch * scenario.workload.sequence_length // rows.context
    tokens = np.maximum(1, replica_tokens // rows.tensor)
    kind = _kinds(choices, rows)
    exchanges = scenario.model.is_moe & (rows.expert > 1)
    wanted, asides, two = _wishes(scenario, choices)
    aside = exchanges & asides[rows.overlap]
    parts, gathered = rows.tensor * rows.context, rows.expert_tensor
    replicas = -(-rows.expert // np.maximum(1, parts // gathered))
    return Columns(
        scenario=scenario,
        choices=choices,
        memo=memo_of(scenario, choices),
        rows=rows,
        site=_sites(choices.clusters)[rows.cluster],
        gpus=gpus,
        data=data,
        expert_data=np.maximum(1, stage // (rows.expert * rows.expert_tensor)),
        microbatches=scenario.workload.global_batch // (data * rows.micro_batch),
        replica_tokens=replica_tokens,
        tokens=tokens,
        kind=kind,
        chunks=np.where(kind == KINDS.index("zero-bubble-v"), 2, rows.virtual_pipeline),
        exchanges=exchanges,
        paired=exchanges & wanted[rows.overlap] & (kind != KINDS.index("gpipe")),
        aside=aside,
        parts=np.where(exchanges & two[rows.overlap], 2, 1),
        seats=_together(
            _seats(choices, rows.cluster, rows.tensor, np.ones_like(rows.tensor)),
            _seats(choices, rows.cluster, rows.context, rows.tensor),
            _seats(choices, rows.cluster, rows.expert_tensor, np.ones_like(rows.tensor)),
        ),
        expert_seats=_seats(choices, rows.cluster, rows.expert, rows.expert_tensor),
        group_tokens=tokens * rows.expert_tensor * rows.expert,
        sequences=replicas * rows.micro_batch * np.maximum(1, gathered // parts),
    )


class Keyed(NamedTuple):
    """Numbers that a law gave for each distinct key [.., ...], and which of them each candidate has [C]."""

    key: Ints
    found: Floats

    def rows(self, chosen: slice | Ints) -> Keyed:
        """Those of some candidates."""
        return Keyed(self.key[chosen], self.found)

    @property
    def each(self) -> Floats:
        """The numbers of every candidate [C, ...]."""
        return self.found[self.key]


def keyed(ask: Callable[[int], object], *keys: NDArray[np.generic]) -> Keyed:
    """Asks a law for one row of each distinct key."""
    first, key = distinct(*keys)
    return Keyed(key, np.array([ask(int(row)) for row in first], dtype=np.float64))


def distinct(*keys: NDArray[np.generic]) -> tuple[Ints, Ints]:
    """One row of each distinct key, ascending by key, and which of them each row has [C]."""
    code = np.zeros(len(keys[0]), dtype=np.int64)
    for key in keys:
        values = np.asarray(key, dtype=np.int64)
        if values.max(initial=0) > _MOST_CODE >> 20:
            values = np.unique(values, return_inverse=True)[1]
        code = code * (int(values.max(initial=0)) + 1) + values
        if code.max(initial=0) > _MOST_CODE:
            code = np.unique(code, return_inverse=True)[1]
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return first, inverse


def _together(*keys: Ints) -> Ints:
    """One number for each combination of keys [C], the same whatever the other candidates are."""
    found = np.zeros_like(keys[0])
    for key in keys:
        found = (found << 20) + key
    return found


def _seats(choices: Choices, cluster: Ints, ranks: Ints, stride: Ints) -> Ints:
    """Members in a domain of the group of so many ranks so far apart that a collective is priced for [C]."""

    def ask(row: int) -> int:
        return group(choices.clusters[cluster[row]], int(ranks[row]), stride=int(stride[row])).ranks_per_domain

    return keyed(ask, cluster, ranks, stride).each.astype(np.int64)


def _kinds(choices: Choices, rows: Candidates) -> Ints:
    """The schedule that each candidate's name means."""
    found = np.zeros(len(rows), dtype=np.int64)
    for row in distinct(rows.schedule, rows.virtual_pipeline > 1)[0]:
        kind = choices.schedules[rows.schedule[row]].kind
        several = bool(rows.virtual_pipeline[row] > 1)
        if kind == "auto":
            kind = "interleaved-1f1b" if several else "1f1b"
        name: ResolvedSchedule = "zero-bubble-h1" if kind == "zero-bubble" else kind
        found[(rows.schedule == rows.schedule[row]) & ((rows.virtual_pipeline > 1) == several)] = KINDS.index(name)
    return found


def _wishes(scenario: Scenario, choices: Choices) -> tuple[Booleans, Booleans, Booleans]:
    """Of each overlap: pairs wanted, anything beside a microbatch's own exchanges, two halves."""
    beside = bool(scenario.model.shared_expert_width or scenario.model.dense_beside_experts)
    pairs = [overlap.expert_communication for overlap in choices.overlaps]
    halves = [overlap.two_batch for overlap in choices.overlaps]
    asides = [
        overlap.two_batch or overlap.weight_gradients == "delayed" or (overlap.shared_experts and beside)
        for overlap in choices.overlaps
    ]
    return np.array(pairs), np.array(asides), np.array(halves)


def _sites(clusters: tuple[ClusterSpec, ...]) -> Ints:
    """The number of each cluster's site."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(_site(cluster), len(known)) for cluster in clusters])


def _site(cluster: ClusterSpec) -> str:
    """What a group of fewer ranks than a stage has sees of the cluster."""
    fabric = cluster.fabric
    narrow = (cluster.oversubscription or fabric.oversubscription) > 1 or fabric.upper_oversubscription > 1
    counts = narrow or cluster.degraded or fabric.kind in ("torus", "links") or cluster.gpu.scale_up_kind == "torus"
    return cluster.model_dump_json(exclude=None if counts else {"gpus"})
