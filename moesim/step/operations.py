"""The operations of a slot, in issue order on each stream, with what each waits for.

Forward of an MoE layer: attention, router, dispatch, experts, combine. Its backward: dispatch of the output
gradients (the combine's backward), experts, combine of the input gradients (the dispatch's backward), attention.
Streams work in issue order. Alone, the operations of a slot form one chain. A forward beside a backward forms two
chains that take turns on the streams, so that each exchange runs under the other chain's compute, as DualPipe and
1F1B overlap do: compute  F.attention  B.experts  F.experts  B.attention ...; communication  B.dispatch  F.dispatch
B.combine  F.combine ...
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
    input from the neighbouring stage; `exit`: its end is the slot's output on its side."""

    kind: str
    layer: int
    phase: Phase
    side: Side
    stream: Stream
    after: tuple[int, ...]
    entry: bool
    exit: bool


@dataclass(frozen=True)
class Recompute:
    """Which forward operations run again in the backward."""

    everything: bool = False
    experts: bool = False


class _Step(NamedTuple):
    kind: str
    layer: int
    phase: Phase


def forward_chain(chunk: Chunk, kinds: Sequence[str]) -> list[_Step]:
    """Forward of a chunk, embedding and head included."""
    chain = [_Step("embedding", -1, "forward")] if chunk.embedding else []
    for layer in chunk.layers:
        chain += _layer_forward(layer, kinds[layer], "forward")
    for _ in range(chunk.mtp_layers):
        chain += _layer_forward(len(kinds) - 1, kinds[-1], "forward")
    return chain + ([_Step("head", -1, "forward")] * (1 + chunk.mtp_layers) if chunk.head else [])


def _layer_forward(layer: int, kind: str, phase: Phase) -> list[_Step]:
    names = ("attention", "router", "dispatch", "experts", "combine") if kind == "moe" else ("attention", "dense")
    return [_Step(name, layer, phase) for name in names]


def backward_chain(chunk: Chunk, kinds: Sequence[str], recompute: Recompute) -> list[_Step]:
    """Backward of a chunk, last layer first, with what is computed again."""
    chain = [_Step("head", -1, "backward")] * (1 + chunk.mtp_layers) if chunk.head else []
    layers = [(len(kinds) - 1, kinds[-1])] * chunk.mtp_layers + [(layer, kinds[layer]) for layer in chunk.layers[::-1]]
    for layer, kind in layers:
        if recompute.everything:
            chain += _layer_forward(layer, kind, "recompute")
        elif recompute.experts and kind == "moe":
            chain += [_Step(name, layer, "recompute") for name in ("dispatch", "experts", "combine")]
        names = ("dispatch", "experts", "combine", "attention") if kind == "moe" else ("dense", "attention")
        chain += [_Step(name, layer, "backward") for name in names]
    return chain + ([_Step("embedding", -1, "backward")] if chunk.embedding else [])


def weight_chain(chunk: Chunk, kinds: Sequence[str]) -> list[_Step]:
    """Deferred weight gradients of a chunk."""
    chain = [_Step("head", -1, "weight")] * (1 + chunk.mtp_layers) if chunk.head else []
    layers = [(len(kinds) - 1, kinds[-1])] * chunk.mtp_layers + [(layer, kinds[layer]) for layer in chunk.layers[::-1]]
    for layer, kind in layers:
        names = ("experts", "attention") if kind == "moe" else ("dense", "attention")
        chain += [_Step(name, layer, "weight") for name in names]
    return chain + ([_Step("embedding", -1, "weight")] if chunk.embedding else [])


@lru_cache(maxsize=4096)
def slot_operations(
    ahead: Chunk | None, back: Chunk | None, owed: Chunk | None, kinds: tuple[str, ...], recompute: Recompute
) -> tuple[Operation, ...]:
    """Operations of one slot: forward of `ahead`, backward of `back`, weight gradients alone of `owed`.

    Where a slot's backward keeps its weight gradients, they are part of the backward operations' durations and
    `owed` is None here.
    """
    if ahead is not None and back is not None:
        return _side_by_side(forward_chain(ahead, kinds), backward_chain(back, kinds, recompute))
    if ahead is not None:
        return _alone(forward_chain(ahead, kinds), "forward")
    if back is not None:
        return _alone(backward_chain(back, kinds, recompute), "backward")
    return _alone(weight_chain(owed, kinds), "weight") if owed is not None else ()


def _stream(kind: str) -> Stream:
    return "communication" if kind in EXCHANGES else "compute"


def _alone(chain: list[_Step], side: Side) -> tuple[Operation, ...]:
    last = len(chain) - 1
    return tuple(
        Operation(*step, side, _stream(step.kind), (index - 1,) if index else (), index == 0, index == last)
        for index, step in enumerate(chain)
    )


def _side_by_side(ahead: list[_Step], back: list[_Step]) -> tuple[Operation, ...]:
    """Both chains cut into runs on one stream, the runs issued in turn, the backward's first."""
    runs: dict[Side, list[list[int]]] = {"backward": _runs(back), "forward": _runs(ahead)}
    chains: dict[Side, list[_Step]] = {"backward": back, "forward": ahead}
    issued: list[tuple[Side, int]] = []
    for turn in range(max(len(found) for found in runs.values())):
        for side, found in runs.items():
            issued += [(side, index) for index in (found[turn] if turn < len(found) else [])]
    place = {item: position for position, item in enumerate(issued)}
    operations = []
    for side, index in issued:
        step = chains[side][index]
        after = (place[side, index - 1],) if index else ()
        last = index == len(chains[side]) - 1
        operations.append(Operation(*step, side, _stream(step.kind), after, index == 0, last))
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
