"""How layers are cut into chunks and laid over pipeline ranks, and the schedules that work through them, as arrays.

P pipeline ranks, C chunks, V chunks a rank; S slots of all ranks, K kinds of slots, D devices (pipeline ranks) of all
layouts, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count as counted
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.scenario.scenario import Scenario
from moesim.screening._load_kernels import fullest_ranks
from moesim.screening._rank_kernels import Kinds
from moesim.screening._walk_kernels import topological_order, undominated
from moesim.step.data_parallel import held_parameters
from moesim.step.layout import Chunk, chunks, chunks_on
from moesim.step.schedules import rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Steps = NDArray[np.int32]
PlanName = tuple[str, int, int, int, bool]
SIDES = 3
"""Forward, backward, weight gradients: what a slot may do."""
_ENOUGH, _LEAST = (2, 4), 8
"""How many times its ranks, or so many, the microbatches of the two shorter schedules are from which a longer one is
extended in a straight line."""

_MAKES: dict[tuple[object, ...], int] = {}
_NUMBERS = counted()


class Layout:
    """The chunks of one way to cut the layers, as arrays over chunks [C] and devices [P].

    `first` place of a chunk's own layers among the MoE layers and `moe` how many of them; `extra` MoE layers that MTP
    modules repeat; `dense` other layers, `layers` all, both with MTP's; `embedding` and `heads` it holds. `held` of a
    device [P, V]: its chunks. `memo`: what was worked out once for it.
    """

    def __init__(self, scenario: Scenario) -> None:
        kinds = scenario.model.layer_kinds
        self.kinds, self.chunks = kinds, chunks(scenario)
        self.moe_before = moe_before = np.cumsum([0, *(kind == "moe" for kind in kinds)])
        last_is_moe = kinds[-1] == "moe"
        starts = [chunk.layers[0] if chunk.layers else _after(self.chunks, chunk) for chunk in self.chunks]
        ends = [start + len(chunk.layers) for start, chunk in zip(starts, self.chunks, strict=True)]
        self.first, self.moe = moe_before[starts], moe_before[ends] - moe_before[starts]
        mtp = np.array([chunk.mtp_layers for chunk in self.chunks])
        self.extra = mtp * last_is_moe
        self.own_layers = np.array(ends) - np.array(starts)
        self.layers = self.own_layers + mtp
        self.dense = self.layers - self.moe - self.extra
        self.embedding = np.array([float(chunk.embedding) for chunk in self.chunks])
        self.heads = np.array([float(chunk.head) * (1 + chunk.mtp_layers) for chunk in self.chunks])
        stages = scenario.parallelism.pipeline
        self.stages = stages
        self.on = np.array([sorted(chunks_on(scenario, device)) for device in range(stages)])
        whole = scenario.parallelism.model_copy(update={"expert": 1, "expert_tensor": 1})
        self.scenario = scenario.model_copy(update={"parallelism": whole})
        self.memo: dict[object, Any] = {}

    def held(self, tensor: int) -> Floats:
        """Parameters on one GPU of each device [P, 2]: of the dense part over `tensor` ranks, and of whole experts."""
        name = ("held", tensor)
        if name not in self.memo:
            layout = self.scenario.parallelism.model_copy(update={"tensor": tensor})
            scenario = self.scenario.model_copy(update={"parallelism": layout})
            found = [held_parameters(scenario, self.chunks, device) for device in range(self.stages)]
            self.memo[name] = np.array([(one.dense, one.expert) for one in found])
        kept: Floats = self.memo[name]
        return kept

    @cached_property
    def makes(self) -> list[int]:
        """What each chunk is made of, apart from where it stands: a number for each make."""
        return [
            _make((tuple(self.kinds[layer] for layer in chunk.layers), chunk.embedding, chunk.head, chunk.mtp_layers))
            for chunk in self.chunks
        ]

    def places(self, device: int) -> list[int]:
        """Places of a device's own layers among the MoE layers; the first where it has none."""
        found = [place for c in self.on[device] for place in range(self.first[c], self.first[c] + self.moe[c])]
        return found or [0]


def _after(found: tuple[Chunk, ...], empty: Chunk) -> int:
    """The layer before which a chunk without layers stands."""
    return sum(len(chunk.layers) for chunk in found[: empty.index])


class Cuts(NamedTuple):
    """Layouts of candidates that have as many pipeline ranks and chunks [N, C]: see `Layout`; `held` [N, P, 2] as its
    method has it. `layouts` are those that occur, `which` each candidate has [N]; `devices` [N, P] as in `Places`."""

    layouts: list[Layout]
    which: Ints
    devices: Ints
    first: Ints
    moe: Ints
    extra: Ints
    dense: Ints
    own_layers: Ints
    held: Floats

    @property
    def any(self) -> Layout:
        """One of them, for what they share."""
        return self.layouts[0]

    @property
    def on(self) -> Ints:
        """Chunks of each device [P, V]."""
        return self.any.on

    @property
    def experts(self) -> Ints:
        """MoE layers of each chunk, MTP's included [N, C]."""
        return self.moe + self.extra


def cuts(layouts: list[Layout], which: Ints, tensor: Ints, places: Places) -> Cuts:
    """The layouts `which` [N] of all `layouts` over `tensor` ranks [N], and the `places` of their devices."""
    numbers, mine = np.unique(which, return_inverse=True)
    found = [layouts[number] for number in numbers]

    def each(name: str) -> NDArray[Any]:
        return np.stack([getattr(layout, name) for layout in found])[mine]

    pairs, pair = np.unique(np.stack([which, tensor], axis=-1), axis=0, return_inverse=True)
    held = np.stack([layouts[number].held(ranks) for number, ranks in pairs.tolist()])[pair.reshape(-1)]
    names = ("first", "moe", "extra", "dense", "own_layers")
    devices = np.array([places.devices[number] for number in numbers])[mine]
    return Cuts._make([found, mine, devices, *(each(name) for name in names), held])


class Places:
    """The MoE layers of the devices of several layouts, equal ones once: `devices` of each layout are places there."""

    def __init__(self, layouts: list[Layout]) -> None:
        known: dict[tuple[int, ...], int] = {}
        self.devices = [
            [known.setdefault(tuple(layout.places(device)), len(known)) for device in range(layout.stages)]
            for layout in layouts
        ]
        joined = np.concatenate([np.array(places) for places in known])
        starts = np.cumsum([0, *(len(places) for places in known)])
        # A device's places are a few runs of layers.
        begins = np.append(True, np.diff(joined) != 1)
        begins[starts[:-1]] = True
        first = np.flatnonzero(begins)
        self.runs = np.stack([joined[first], joined[np.append(first[1:], len(begins)) - 1] + 1], axis=-1)
        self.edges = np.searchsorted(first, starts)

    def __len__(self) -> int:
        return len(self.edges) - 1

    def fullest(self, rows: Floats) -> tuple[Floats, Floats]:
        """Rows [L, R] on the rank that each device's layers load most on average, and in any one of them [D]."""
        mean, most = np.empty(len(self)), np.empty(len(self))
        fullest_ranks(rows, self.runs, self.edges, mean, most)
        return mean, most


def _make(made: tuple[object, ...]) -> int:
    # Threads may ask at once: a number that loses is never given out again.
    return _MAKES.setdefault(made, next(_NUMBERS))


@dataclass(frozen=True)
class Plan:
    """A schedule, ready to be walked; `name` is what it was asked by.

    `steps` [S, 8]: pipeline rank, kind of slot, the outputs that its forward and its backward need (-1: none) and make,
    and whether each input comes from another rank. `kinds` [K, 3]: chunk of a slot's forward, backward and weight
    gradients (C: none); `stage` [K] its rank, `uses` [K] how often it occurs. `held` a rank's full moments, those of
    all ranks one after the other: microbatches between forward and backward and those owed, by chunk; `edges` [P + 1].
    """

    name: PlanName
    steps: Steps
    kinds: Ints
    stage: Ints
    uses: Floats
    outputs: int
    held: Floats
    edges: Ints

    def among(self, other: Plan) -> tuple[Steps, Floats]:
        """Steps, and how often each kind of slot occurs, by another plan's numbers of the kinds."""
        if self is other:
            return self.steps, self.uses
        place = {kind: number for number, kind in enumerate(zip(other.stage, *other.kinds.T, strict=True))}
        numbers = np.array([place[kind] for kind in zip(self.stage, *self.kinds.T, strict=True)])
        steps, uses = self.steps.copy(), np.zeros(len(other.kinds))
        steps[:, 1], uses[numbers] = numbers[self.steps[:, 1]], self.uses
        return steps, uses

    @cached_property
    def sorts(self) -> Kinds:
        """What kinds of slots wait for."""
        return Kinds(self.stage, *self.waits, self.received)

    @cached_property
    def waits(self) -> tuple[Floats, Floats]:
        """Whether a kind of slot has a forward, and a backward [K]."""
        none = self.name[1] * self.name[2]
        return (self.kinds[:, 0] < none).astype(float), (self.kinds[:, 1] < none).astype(float)

    @cached_property
    def received(self) -> Floats:
        """Messages that a kind of slot receives from its neighbours [K]; see `StepModel.message_wait`."""
        kind, stages, chunks_a_rank = self.name[:3]
        none = stages * chunks_a_rank
        # At the turn of a V both chunks stand on one rank.
        turn = stages if kind == "zero-bubble-v" else none
        ahead, back = self.kinds[:, 0], self.kinds[:, 1]
        found = ((ahead < none) & ~np.isin(ahead, (0, turn))).astype(float)
        found += (back < none) & ~np.isin(back, (none - 1, turn - 1))
        return found * (stages > 1)


def lengths(stages: int, microbatches: int) -> tuple[int, ...]:
    """Microbatches of the schedule to walk, or of the two from which it is extended."""
    near, far = (times * stages * -(-_LEAST // stages) for times in _ENOUGH)
    return (microbatches,) if microbatches <= far else (near, far)


@lru_cache(maxsize=1024)
def walked_plan(name: PlanName, longest: PlanName) -> tuple[Steps, Floats]:
    """Steps of a plan, and how often it has each kind of slot, in the longest one's numbers of kinds."""
    return plan(*name).among(plan(*longest))


@lru_cache(maxsize=1024)
def plan(kind: str, stages: int, chunks_a_rank: int, microbatches: int, paired: bool) -> Plan:
    """The schedule of that name, as `schedules.order` has it."""
    ranks = rows(kind, stages, chunks_a_rank, microbatches, paired)
    count = stages * chunks_a_rank
    none = (count, 0)
    flat = [work or none for slots in ranks for slot in slots for work in slot]
    works = np.array(flat, dtype=np.int64).reshape(-1, SIDES, 2)
    first = np.cumsum([0, *(len(slots) for slots in ranks)])
    stage = np.repeat(np.arange(stages), np.diff(first))
    made = np.full((len(works), 2), -1, dtype=np.int64)
    need = np.full((len(works), 2), -1, dtype=np.int64)
    outputs = 2 * count * microbatches
    for side, (edge, step) in enumerate(((0, -1), (count - 1, 1))):
        chunk, microbatch = works[:, side, 0], works[:, side, 1]
        there = chunk < count
        made[there, side] = ((side * count + chunk) * microbatches + microbatch)[there]
        waits = there & (chunk != edge)
        need[waits, side] = ((side * count + chunk + step) * microbatches + microbatch)[waits]
    maker = np.full(outputs + 1, -1, dtype=np.int64)
    for side in range(2):
        maker[made[made[:, side] >= 0, side]] = stage[made[:, side] >= 0]
    code = np.ravel_multi_index((stage, *works[:, :, 0].T), (stages, *[count + 1] * SIDES))
    _, example, kinds, uses = np.unique(code, return_index=True, return_inverse=True, return_counts=True)
    away = (need >= 0) & (maker[need] != stage[:, None])
    table = np.column_stack([stage, kinds, need, made, away]).astype(np.int32)
    walked = np.empty(len(table), dtype=np.int64)
    if topological_order(first, need, made, outputs, walked) < len(table):
        raise InternalError("the pipeline schedule waits for itself")
    full = [_full_moments(works[begin:end], count) for begin, end in pairwise(first.tolist())]
    return Plan(
        name=(kind, stages, chunks_a_rank, microbatches, paired),
        steps=np.ascontiguousarray(table[walked]),
        kinds=works[example][:, :, 0],
        stage=stage[example],
        uses=uses.astype(np.float64),
        outputs=outputs,
        held=np.concatenate(full),
        edges=np.cumsum([0, *(len(moments) for moments in full)]),
    )


def _full_moments(works: Ints, none: int) -> Floats:
    """Microbatches that a rank holds at its full moments [moments, 2 V], as `step.memory` has them, without the moments
    that another one exceeds in everything."""
    chunks = works[:, :, 0]
    own = np.unique(chunks[:, 0][chunks[:, 0] < none])
    ahead, back, weight = (chunks[:, side, None] == own for side in range(SIDES))
    whole = weight.any(axis=1) & back.any(axis=1)
    # A slot's forward comes first, then its backward, and weight gradients that it leaves owed or makes up for.
    owed = (back & ~whole[:, None]).astype(np.int64) - (weight & ~back.any(axis=1)[:, None])
    changes = np.zeros((len(works), 2, 2 * len(own)), dtype=np.int64)
    changes[:, 0, : len(own)] = ahead
    changes[:, 1, : len(own)] = -back.astype(np.int64)
    changes[:, 1, len(own) :] = owed
    moments = np.cumsum(changes.reshape(-1, 2 * len(own)), axis=0)
    return moments[undominated(moments)].astype(np.float64)
