"""Which candidates a scenario's cross-field rules accept, many at once; one by one it is `moesim.scenario.checks`.

Every rule answers where it is broken; a candidate's reason is the first broken one, so each has exactly one.
C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError, UserError
from moesim.network.dispatchers import DISPATCHERS
from moesim.network.topology import group
from moesim.scenario.checks import MOST_RANKS, MOST_WORKS
from moesim.scenario.degrees import undivided
from moesim.scenario.scenario import Scenario
from moesim.screening import Candidates, Choices

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]

V_CHUNKS = 2
"""Chunks of a rank under zero-bubble-v."""


def resolved(kind: str, chunked: bool) -> str:
    """The schedule that a name means with one chunk a rank or several, as `Scenario.schedule_kind` has it."""
    if kind == "auto":
        return "interleaved-1f1b" if chunked else "1f1b"
    return "zero-bubble-h1" if kind == "zero-bubble" else kind


class Facts:
    """What rules ask about candidates, worked out once."""

    def __init__(self, scenario: Scenario, choices: Choices, candidates: Candidates) -> None:
        self.scenario, self.choices, self.candidates = scenario, choices, candidates
        self.model, self.work = scenario.model, scenario.workload
        self.none = np.zeros(len(candidates), dtype=np.bool_)

    def kind_is(self, *kinds: str) -> Flags:
        """Whether the resolved schedule is one of these [C]."""
        named = [schedule.kind for schedule in self.choices.schedules]
        flat, deep = (np.array([resolved(kind, chunked) in kinds for kind in named]) for chunked in (False, True))
        at = self.candidates.schedule
        return np.where(self.candidates.virtual_pipeline > 1, deep[at], flat[at])

    def overlap_says(self, name: str) -> Flags:
        """Whether a candidate's overlap has the field `name` [C]."""
        return np.array([bool(getattr(spec, name)) for spec in self.choices.overlaps])[self.candidates.overlap]

    @cached_property
    def gpus(self) -> Ints:
        """GPUs [C]."""
        return np.array([cluster.gpus for cluster in self.choices.clusters], dtype=np.int64)[self.candidates.cluster]

    @cached_property
    def replica(self) -> Ints:
        """GPUs of one replica of the attention part [C]."""
        return self.candidates.tensor * self.candidates.pipeline * self.candidates.context

    @cached_property
    def data(self) -> Ints:
        """Replicas of the attention part [C], at least 1."""
        return np.asarray(np.maximum(1, self.gpus // self.replica))

    @cached_property
    def microbatches(self) -> Ints:
        """Microbatches of one pipeline [C]."""
        return np.asarray(self.work.global_batch // (self.data * self.candidates.micro_batch))

    @cached_property
    def stages(self) -> Ints:
        """Virtual stages [C]."""
        chunks = np.where(self.kind_is("zero-bubble-v"), V_CHUNKS, self.candidates.virtual_pipeline)
        return self.candidates.pipeline * chunks


@dataclass(frozen=True)
class Rule:
    """One rule: its code, what it means, where it is broken, and whether degrees and cluster alone decide it."""

    code: str
    meaning: str
    broken: Callable[[Facts], Flags]
    layout: bool = False


def reasons(facts: Facts, rules: Iterable[Rule] | None = None) -> NDArray[np.int8]:
    """0 where a candidate is legal, else 1 + the place in `RULES` of the first rule that it breaks [C]."""
    found = np.zeros(len(facts.candidates), dtype=np.int8)
    for rule in RULES if rules is None else rules:
        found[(found == 0) & rule.broken(facts)] = 1 + RULES.index(rule)
    return found


def _uneven(whole: int | Ints, parts: Ints) -> Flags:
    """Whether the whole does not divide by the parts [C]."""
    return np.asarray(whole % parts != 0, dtype=np.bool_)


def _experts(facts: Facts) -> Flags:
    at = facts.candidates
    if not facts.model.is_moe:
        return np.asarray((at.expert > 1) | (at.expert_tensor > 1))
    return _uneven(facts.model.n_experts, at.expert)


def _expert_ranks(facts: Facts) -> Flags:
    at = facts.candidates
    return _uneven(facts.gpus // at.pipeline, at.expert * at.expert_tensor)


def _sequence(facts: Facts) -> Flags:
    return _uneven(facts.work.sequence_length, facts.candidates.context * facts.candidates.tensor)


def _expert_width(facts: Facts) -> Flags:
    return _uneven(facts.model.d_ff_expert or 0, facts.candidates.expert_tensor) if facts.model.is_moe else facts.none


def _sequence_parallel(facts: Facts) -> Flags:
    split = facts.model.is_moe and not facts.scenario.parallelism.sequence_parallel
    return facts.candidates.tensor > 1 if split else facts.none


def _offload(facts: Facts) -> Flags:
    offload = facts.scenario.placement.offload
    if offload is None:
        return facts.none
    return np.asarray(facts.model.n_experts // facts.candidates.expert < offload.resident)


def _batch(facts: Facts) -> Flags:
    return _uneven(facts.work.global_batch, facts.data * facts.candidates.micro_batch)


def _layers(facts: Facts) -> Flags:
    return np.asarray(facts.model.layers + 2 * (facts.stages > 1) < facts.stages)


def _virtual(facts: Facts) -> Flags:
    at, several = facts.candidates, facts.candidates.virtual_pipeline > 1
    v = facts.kind_is("zero-bubble-v")
    wrong = several & ~v & (~facts.kind_is("interleaved-1f1b") | (at.pipeline == 1))
    return np.asarray(wrong | (v & (at.virtual_pipeline > V_CHUNKS)))


def _microbatches(facts: Facts) -> Flags:
    pipeline, batches = facts.candidates.pipeline, facts.microbatches
    interleaved = facts.kind_is("interleaved-1f1b") & (batches % pipeline != 0)
    uneven = (pipeline % 2 != 0) | (batches % 2 != 0) | (batches < 2 * pipeline)
    return np.asarray(interleaved | (facts.kind_is("dualpipe") & uneven))


def _overlap(facts: Facts) -> Flags:
    at, model, hidden = facts.candidates, facts.model, facts.overlap_says("expert_communication")
    unpaired = facts.kind_is("gpipe") | (facts.kind_is("zero-bubble-h1") & (at.pipeline > 1))
    halves = facts.overlap_says("two_batch")
    replica = at.micro_batch * facts.work.sequence_length // at.context
    odd = np.maximum(1, replica // at.tensor) % 2 != 0
    wrong = (hidden & (unpaired | halves)) | (halves & odd)
    if not (model.shared_expert_width or model.dense_beside_experts):
        wrong |= facts.overlap_says("shared_experts")
    delayed = np.array([spec.weight_gradients == "delayed" for spec in facts.choices.overlaps])[at.overlap]
    buffers = facts.scenario.stack_options.user_buffers
    said = [spec.tensor_parallel for spec in facts.choices.overlaps]
    apart = np.array([None not in (one, buffers) and one != buffers for one in said])[at.overlap]
    wrong |= delayed & facts.kind_is("zero-bubble-h1", "zero-bubble-v")
    # Where nothing is exchanged these switches do nothing, and are no mistake.
    return np.asarray((wrong & facts.model.is_moe & (at.expert > 1)) | apart)


def _dispatcher(facts: Facts) -> Flags:
    """Asks the network once for each kind of expert-parallel group."""
    at = facts.candidates
    if not len(at):
        return facts.none
    names = (at.cluster, at.expert, at.expert_tensor, at.dispatcher)
    keys = np.ravel_multi_index(names, [int(name.max()) + 1 for name in names])
    _, first, where = np.unique(keys, return_index=True, return_inverse=True)
    refused = [_refused(facts, *(int(name[place]) for name in names)) for place in first]
    return np.array(refused, dtype=np.bool_)[where.ravel()]


def _refused(facts: Facts, cluster: int, expert: int, split: int, dispatcher: int) -> bool:
    spec, kind = facts.choices.clusters[cluster], facts.choices.dispatchers[dispatcher]
    if expert * split > spec.gpus:
        return True
    try:
        network = group(spec, expert, stride=split)
    except (InfeasibleError, UserError):
        return True
    if kind == "auto":
        return False
    wanted, available = facts.scenario.dispatcher.multiprocessors, spec.gpu.multiprocessors
    return bool(wanted and available and wanted >= available) or DISPATCHERS[kind].runs_on(network) is not None


def _capacity(facts: Facts) -> Flags:
    limited = np.array([capacity != "dropless" for capacity in facts.choices.capacities])[facts.candidates.capacity]
    return limited if facts.model.router.rule == "soft-moe" else facts.none


def _ranks(facts: Facts) -> Flags:
    return np.asarray(facts.candidates.expert > MOST_RANKS)


def _size(facts: Facts) -> Flags:
    return facts.microbatches * facts.stages > MOST_WORKS


def _gpus(facts: Facts) -> Flags:
    return _uneven(facts.gpus, facts.replica)


def _heads(facts: Facts) -> Flags:
    degrees, where = np.unique(facts.candidates.tensor, return_inverse=True)
    return np.array([bool(undivided(facts.model, int(degree))) for degree in degrees], dtype=np.bool_)[where.ravel()]


RULES: tuple[Rule, ...] = (
    Rule("layout", "the GPUs do not divide by tensor x pipeline x context", _gpus, layout=True),
    Rule("experts", "the experts do not divide over the expert-parallel ranks", _experts, layout=True),
    Rule("expert-ranks", "a pipeline stage's GPUs do not divide by expert x expert_tensor", _expert_ranks, layout=True),
    Rule("heads", "heads or widths do not divide by tensor", _heads, layout=True),
    Rule("sequence", "the sequence does not divide by context x tensor", _sequence, layout=True),
    Rule("expert-width", "the experts' width does not divide by expert_tensor", _expert_width, layout=True),
    Rule("sequence-parallel", "tensor > 1 needs sequence_parallel where there are experts", _sequence_parallel, True),
    Rule("offload", "more experts are kept resident than a rank has", _offload, layout=True),
    Rule("ranks", "more expert-parallel ranks than can be priced", _ranks, layout=True),
    Rule("batch", "the global batch does not divide over data x micro_batch", _batch),
    Rule("virtual-pipeline", "virtual_pipeline does not go with the schedule or with one stage", _virtual),
    Rule("layers", "there are too few layers for so many virtual stages", _layers),
    Rule("microbatches", "the schedule needs another number of microbatches or stages", _microbatches),
    Rule("overlap", "the overlap does not go with the schedule or the microbatch", _overlap),
    Rule("capacity", "a soft mixture has no expert capacity", _capacity),
    Rule("dispatcher", "the dispatcher does not run on such an expert-parallel group", _dispatcher),
    Rule("size", "more microbatches x stages than can be walked through", _size),
)
