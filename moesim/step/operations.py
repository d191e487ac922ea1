"""The operations of a slot, in issue order on each stream, with what each waits for.

Forward of an MoE layer: attention, router, dispatch, experts, combine. Its backward: dispatch of the output
gradients (the combine's backward), experts, combine of the input gradients (the dispatch's backward), attention.
Streams work in issue order. Alone, the operations of a slot form one chain. Two chains take turns on the streams, so
that each exchange runs under the other chain's compute: a forward beside a backward, as DualPipe and 1F1B overlap do,
or the two halves of a microbatch. Compute  F.attention  B.experts  F.experts  B.attention ...; communication
B.dispatch  F.dispatch  B.combine  F.combine ...
Beside its own exchanges a chain may run what they do not need: shared experts, their first products beside the
dispatch and the last beside the combine (the other way round in the backward), and delayed weight gradients, those of
a layer's attention beside the next dispatch, those of its experts beside their combine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from moesim.step.layout import Chunk

Side = Literal["forward", "backward", "weight"]
Stream = Literal["compute", "communication"]
Phase = Literal["forward", "recompute", "backward", "weight"]
EXCHANGES = ("dispatch", "combine")


class Operation(NamedTuple):
    """One operation of a slot. `after`: positions in the slot of what it waits for; `entry`: it waits for the slot's
    input from the neighbouring stage; `exit`: the slot's output on its side is there when all such have ended;
    `share`: of the whole operation's work, where it is done in parts."""

    kind: str
    layer: int
    phase: Phase
    side: Side
    stream: Stream
    after: tuple[int, ...]
    entry: bool
    exit: bool
    share: float = 1.0


@dataclass(frozen=True)
class Recompute:
    """Which forward operations run again in the backward."""

    everything: bool = False
    experts: bool = False


@dataclass(frozen=True)
class Aside:
    """What a slot runs beside its own exchanges. `parts`: how many parts of a microbatch take turns; `shared`: how the
    shared experts' work divides into their first products and their last, None where it is part of the experts;
    `weights`: weight gradients are put off until an exchange runs."""

    parts: int = 1
    shared: tuple[float, float] | None = None
    weights: bool = False


NOTHING_ASIDE = Aside()


class _Step(NamedTuple):
    kind: str
    layer: int
    phase: Phase
    after: int
    share: float
    exit: bool


class _Chain:
    """Operations of one microbatch on one chunk, each with the position of what it waits for (-1: the slot's input)."""

    def __init__(self, kinds: Sequence[str], aside: Aside) -> None:
        self.kinds, self.aside = kinds, aside
        self.steps: list[_Step] = []
        self.last = -1
        self.owed: list[_Step] = []

    def add(self, kind: str, layer: int, phase: Phase) -> None:
        """The next operation of the chain; one that communicates takes the weight gradients owed beside it."""
        self.last = self._put(_Step(kind, layer, phase, self.last, 1.0, False))
        if kind in EXCHANGES:
            self.settle()

    def put_beside(self, layer: int, phase: Phase, after: int, last_part: bool) -> None:
        """A part of the shared experts beside the exchange just added."""
        if self.aside.shared is not None:
            self._put(_Step("shared", layer, phase, after, self.aside.shared[last_part], False))

    def settle(self) -> None:
        """All weight gradients owed."""
        self.steps += self.owed
        self.owed = []

    def _put(self, step: _Step) -> int:
        self.steps.append(step)
        if self.aside.weights and step.phase == "backward" and step.kind not in EXCHANGES:
            self.owed.append(step._replace(phase="weight", after=len(self.steps) - 1))
        return len(self.steps) - 1

    def layer_forward(self, layer: int, phase: Phase) -> None:
        """Forward of one layer."""
        self.add("attention", layer, phase)
        if self.kinds[layer] != "moe":
            self.add("dense", layer, phase)
            return
        self.add("router", layer, phase)
        self.experts(layer, phase)

    def experts(self, layer: int, phase: Phase) -> None:
        """Dispatch, experts and combine; the last products of shared experts come first in the backward."""
        begin, backward = self.last, phase == "backward"
        self.add("dispatch", layer, phase)
        self.put_beside(layer, phase, begin, last_part=backward)
        self.add("experts", layer, phase)
        middle = self.last
        self.add("combine", layer, phase)
        self.put_beside(layer, phase, middle, last_part=not backward)

    def layer_backward(self, layer: int, recompute: Recompute) -> None:
        """Backward of one layer, with what is computed again."""
        moe = self.kinds[layer] == "moe"
        if recompute.everything:
            self.layer_forward(layer, "recompute")
        elif recompute.experts and moe:
            self.experts(layer, "recompute")
        if moe:
            self.experts(layer, "backward")
        else:
            self.add("dense", layer, "backward")
        self.add("attention", layer, "backward")

    def closed(self) -> list[_Step]:
        """The whole chain. Its output is there when its last operation has ended and so have the shared experts beside
        that one; weight gradients still owed come after it."""
        for place in range(max(0, self.last), len(self.steps)):
            step = self.steps[place]
            if place == self.last or step.kind == "shared":
                self.steps[place] = step._replace(exit=True)
        self.settle()
        return self.steps


def _layers_back(chunk: Chunk, kinds: Sequence[str]) -> list[int]:
    """The chunk's layers, last first; MTP modules are the model's last layer once more."""
    return [len(kinds) - 1] * chunk.mtp_layers + list(chunk.layers[::-1])


def forward_chain(chunk: Chunk, kinds: Sequence[str], aside: Aside) -> list[_Step]:
    """Forward of a chunk, embedding and head included."""
    chain = _Chain(kinds, aside)
    if chunk.embedding:
        chain.add("embedding", -1, "forward")
    for layer in [*chunk.layers, *[len(kinds) - 1] * chunk.mtp_layers]:
        chain.layer_forward(layer, "forward")
    for _ in range((1 + chunk.mtp_layers) * chunk.head):
        chain.add("head", -1, "forward")
    return chain.closed()


def backward_chain(chunk: Chunk, kinds: Sequence[str], recompute: Recompute, aside: Aside) -> list[_Step]:
    """Backward of a chunk, last layer first, with what is computed again."""
    chain = _Chain(kinds, aside)
    for _ in range((1 + chunk.mtp_layers) * chunk.head):
        chain.add("head", -1, "backward")
    for layer in _layers_back(chunk, kinds):
        chain.layer_backward(layer, recompute)
    if chunk.embedding:
        chain.add("embedding", -1, "backward")
    return chain.closed()


def weight_chain(chunk: Chunk, kinds: Sequence[str], aside: Aside) -> list[_Step]:
    """Weight gradients of a chunk, put off to a slot of their own."""
    chain = _Chain(kinds, aside)
    for _ in range((1 + chunk.mtp_layers) * chunk.head):
        chain.add("head", -1, "weight")
    for layer in _layers_back(chunk, kinds):
        names = ["experts", *["shared"] * (aside.shared is not None)] if kinds[layer] == "moe" else ["dense"]
        for name in [*names, "attention"]:
            chain.add(name, layer, "weight")
    if chunk.embedding:
        chain.add("embedding", -1, "weight")
    return chain.closed()


@lru_cache(maxsize=4096)
def slot_operations(
    ahead: Chunk | None,
    back: Chunk | None,
    owed: Chunk | None,
    kinds: tuple[str, ...],
    recompute: Recompute,
    aside: Aside = NOTHING_ASIDE,
) -> tuple[Operation, ...]:
    """Operations of one slot: forward of `ahead`, backward of `back`, weight gradients alone of `owed`.

    Where a slot's backward keeps its weight gradients, `owed` is None here: they are part of the backward operations'
    durations or, where `aside.weights`, operations of their own.
    """
    if ahead is not None and back is not None:
        backward = backward_chain(back, kinds, recompute, aside)
        return _side_by_side([("backward", backward), ("forward", forward_chain(ahead, kinds, aside))])
    if ahead is not None:
        return _in_parts("forward", forward_chain(ahead, kinds, aside), aside.parts)
    if back is not None:
        return _in_parts("backward", backward_chain(back, kinds, recompute, aside), aside.parts)
    return _side_by_side([("weight", weight_chain(owed, kinds, aside))]) if owed is not None else ()


def one_chain(operations: tuple[Operation, ...]) -> bool:
    """Whether every operation waits for the one before it, so that nothing runs beside anything."""
    return [operation.after for operation in operations[1:]] == [(place,) for place in range(len(operations) - 1)]


def _stream(kind: str) -> Stream:
    return "communication" if kind in EXCHANGES else "compute"


def _in_parts(side: Side, chain: list[_Step], parts: int) -> tuple[Operation, ...]:
    """The chain once for each part of the microbatch."""
    each = [step._replace(share=step.share / parts) for step in chain] if parts > 1 else chain
    return _side_by_side([(side, each)] * parts)


def _side_by_side(chains: Sequence[tuple[Side, list[_Step]]]) -> tuple[Operation, ...]:
    """Chains cut into runs on one stream, the runs issued in turn, the first chain's first."""
    cut = [_runs(chain) for _, chain in chains]
    issued: list[tuple[int, int]] = []
    for turn in range(max(len(found) for found in cut)):
        for number, found in enumerate(cut):
            issued += [(number, index) for index in (found[turn] if turn < len(found) else [])]
    place = {item: position for position, item in enumerate(issued)}
    operations = []
    for number, index in issued:
        side, chain = chains[number]
        kind, layer, phase, before, share, leaves = chain[index]
        after = (place[number, before],) if before >= 0 else ()
        operations.append(Operation(kind, layer, phase, side, _stream(kind), after, before < 0, leaves, share))
    return tuple(operations)


def _runs(chain: list[_Step]) -> list[list[int]]:
    """Alternating compute and communication runs, beginning with a (perhaps empty) compute run."""
    runs: list[list[int]] = [[]]
    for index, step in enumerate(chain):
        communicates = step.kind in EXCHANGES
        if communicates != (len(runs) % 2 == 0):
            runs.append([])
        runs[-1].append(index)
    return runs
