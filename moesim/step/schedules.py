"""Pipeline schedules as plain data: for each pipeline rank the ordered list of slots it works through.

A slot is a forward, a backward, a deferred weight gradient, or a forward and a backward that run beside each other.
P pipeline ranks, V chunks a rank, M microbatches.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from moesim.step.dualpipe import dualpipe
from moesim.step.zero_bubble import Row, zero_bubble_h1, zero_bubble_v


class Work(NamedTuple):
    """One microbatch on one chunk (virtual stage)."""

    chunk: int
    microbatch: int


class Slot(NamedTuple):
    """What a pipeline rank does next; `backward` without `weight` leaves the weight gradients for a later slot."""

    forward: Work | None = None
    backward: Work | None = None
    weight: Work | None = None


Order = tuple[tuple[Slot, ...], ...]
Pair = tuple[int, int]
Key = tuple[str, int, int]
"""What passes between pipeline ranks: side ("forward" or "backward"), chunk, microbatch."""


def forward(work: Work) -> Slot:
    """A forward alone."""
    return Slot(forward=work)


def backward(work: Work) -> Slot:
    """A whole backward alone."""
    return Slot(backward=work, weight=work)


@lru_cache(maxsize=64)
def order(kind: str, stages: int, chunks: int, microbatches: int, paired: bool) -> Order:
    """The slots of every pipeline rank.

    `paired`: neighbouring forward and backward of the steady state run beside each other (expert-communication
    overlap), which keeps more microbatches in flight. Not for GPipe, nor for zero-bubble-h1 on several ranks.
    """
    found = rows(kind, stages, chunks, microbatches, paired)
    return tuple(tuple(Slot(*(Work(*work) if work else None for work in row)) for row in rank) for rank in found)


def rows(kind: str, stages: int, chunks: int, microbatches: int, paired: bool) -> tuple[tuple[Row, ...], ...]:
    """The same as plain rows of (forward, backward, weight), each a (chunk, microbatch) or None."""
    if kind == "gpipe":
        return tuple(_gpipe(stage, microbatches) for stage in range(stages))
    if kind == "1f1b":
        return tuple(_one_forward_one_backward(stage, stages, microbatches, paired) for stage in range(stages))
    if kind == "interleaved-1f1b":
        return tuple(_interleaved(stage, stages, chunks, microbatches, paired) for stage in range(stages))
    if kind in ("zero-bubble-h1", "zero-bubble-v"):
        zero_bubble = zero_bubble_h1 if kind == "zero-bubble-h1" else zero_bubble_v
        return tuple(zero_bubble(stage, stages, microbatches, paired) for stage in range(stages))
    found = dualpipe(stages, microbatches)
    return found if paired else tuple(tuple(one for row in rank for one in _apart(row)) for rank in found)


def _apart(row: Row) -> tuple[Row, ...]:
    """A pair as a forward and then a backward, each alone."""
    ahead, back, weight = row
    if ahead is None or back is None:
        return (row,)
    return (ahead, None, None), (None, back, weight)


def _gpipe(stage: int, microbatches: int) -> tuple[Row, ...]:
    """All forwards, then all backwards (Huang et al. 2019)."""
    works = [(stage, microbatch) for microbatch in range(microbatches)]
    return (*((work, None, None) for work in works), *((None, work, work) for work in works))


def _one_forward_one_backward(stage: int, stages: int, microbatches: int, paired: bool) -> tuple[Row, ...]:
    """PipeDream-flush (Narayanan et al. 2021, section 2.2.1).

    Paired, it warms up as the interleaved schedule does: two microbatches for each rank behind. With one, each pair
    would wait for the next rank's of the same number and hand its forward to that rank's next pair: half the rate.
    """
    works = [(stage, microbatch) for microbatch in range(microbatches)]
    return _steady(works, works, (stages - 1 - stage) * (2 if paired else 1), paired)


def _interleaved(stage: int, stages: int, chunks: int, microbatches: int, paired: bool) -> tuple[Row, ...]:
    """Interleaved 1F1B (Narayanan et al. 2021, section 2.2.2): groups of P microbatches a chunk."""
    total, span = microbatches * chunks, stages * chunks
    forwards: list[Pair] = []
    backwards: list[Pair] = []
    for index in range(total):
        group, inside = divmod(index, span)
        position, microbatch = inside // stages, group * stages + inside % stages
        forwards.append((position * stages + stage, microbatch))
        backwards.append(((chunks - 1 - position) * stages + stage, microbatch))
    warm_up = (stages - stage - 1) * 2 + (chunks - 1) * stages
    return _steady(forwards, backwards, warm_up, paired)


def _steady(forwards: list[Pair], backwards: list[Pair], warm_up: int, paired: bool) -> tuple[Row, ...]:
    """Warm-up forwards, then one forward and one backward in turn (or beside each other), then the backwards left."""
    warm_up = min(warm_up + paired, len(forwards))
    slots: list[Row] = [(work, None, None) for work in forwards[:warm_up]]
    for index, work in enumerate(forwards[warm_up:]):
        other = backwards[index]
        slots.extend([(work, other, other)] if paired else [(work, None, None), (None, other, other)])
    slots.extend((None, work, work) for work in backwards[len(forwards) - warm_up :])
    return tuple(slots)


def inputs(slot: Slot, last_chunk: int) -> list[Key]:
    """What a slot waits for from other pipeline ranks."""
    keys: list[Key] = []
    if slot.forward is not None and slot.forward.chunk > 0:
        keys.append(("forward", slot.forward.chunk - 1, slot.forward.microbatch))
    if slot.backward is not None and slot.backward.chunk < last_chunk:
        keys.append(("backward", slot.backward.chunk + 1, slot.backward.microbatch))
    return keys


def stays(slots: tuple[Slot, ...], last_chunk: int) -> frozenset[Key]:
    """What a pipeline rank makes for itself: no message carries it (the turn of a V)."""
    made = {("forward", *slot.forward) for slot in slots if slot.forward is not None}
    made |= {("backward", *slot.backward) for slot in slots if slot.backward is not None}
    return frozenset(key for slot in slots for key in inputs(slot, last_chunk) if key in made)


def most_held(slots: tuple[Slot, ...], kept: Mapping[int, float], owed: Mapping[int, float]) -> float:
    """The most that a pipeline rank holds at once: of a microbatch on chunk c `kept[c]` from its forward to the end of
    its backward, and `owed[c]` from there to its weight gradients where these are put off."""
    held = most = 0.0
    for slot in slots:
        held += kept[slot.forward.chunk] if slot.forward is not None else 0.0
        most = max(most, held)
        if slot.backward is not None:
            held -= kept[slot.backward.chunk]
            held += owed[slot.backward.chunk] if slot.weight is None else 0.0
            most = max(most, held)
        elif slot.weight is not None:
            held -= owed[slot.weight.chunk]
    return most


def in_flight(slots: tuple[Slot, ...]) -> int:
    """The most (chunk, microbatch) pairs whose activations a pipeline rank holds at once, weights owed included."""
    ones = {slot.forward.chunk: 1.0 for slot in slots if slot.forward is not None}
    return round(most_held(slots, ones, ones))
