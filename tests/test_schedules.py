"""Schedules are plain data: every microbatch passes every chunk once, and balanced stages show the textbook bubble."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_fixture import EQUAL, length

from moesim.step.dualpipe import dualpipe
from moesim.step.schedules import Order, Slot, Work, in_flight, most_held, order

FORWARD, INPUT, WEIGHT = EQUAL
KINDS = ["gpipe", "1f1b", "interleaved-1f1b", "zero-bubble-h1", "zero-bubble-v", "dualpipe"]


@dataclass(frozen=True)
class Shape:
    """A schedule with what `order` wants to know, each of a legal size."""

    kind: str
    stages: int
    chunks: int
    microbatches: int
    paired: bool

    @property
    def last_chunk(self) -> int:
        return self.stages * self.chunks - 1

    @property
    def order(self) -> Order:
        return order(self.kind, self.stages, self.chunks, self.microbatches, self.paired)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    kind, stages, groups = draw(st.sampled_from(KINDS)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    paired = draw(st.booleans()) and kind != "gpipe"
    chunks, microbatches = 1, draw(st.integers(1, 16))
    if kind == "interleaved-1f1b":
        chunks, microbatches = draw(st.integers(2, 4)) if stages > 1 else 1, groups * stages
    if kind == "zero-bubble-v":
        chunks = 2
    if kind == "zero-bubble-h1":
        paired = paired and stages == 1
    if kind == "dualpipe":
        stages = 2 * stages
        microbatches = 2 * stages + 2 * groups
    return Shape(kind, stages, chunks, microbatches, paired)


positive = st.floats(0.25, 4.0)


@settings(deadline=None, max_examples=100)
@given(shapes())
def test_every_work_is_done_once_and_in_its_order(shape: Shape) -> None:
    """Each microbatch has one forward, one backward and one weight gradient on every chunk, in this order, on one
    rank; and it can be walked to the end: nobody waits for himself."""
    place: dict[tuple[str, Work], tuple[int, int]] = {}
    for rank, slots in enumerate(shape.order):
        for position, slot in enumerate(slots):
            for side, work in zip(("forward", "backward", "weight"), slot, strict=True):
                if work is not None:
                    assert place.setdefault((side, work), (rank, position)) == (rank, position)
    works = {Work(chunk, batch) for chunk in range(shape.last_chunk + 1) for batch in range(shape.microbatches)}
    assert set(place) == {(side, work) for side in ("forward", "backward", "weight") for work in works}
    for work in works:
        ahead, back, weight = (place[side, work] for side in ("forward", "backward", "weight"))
        assert ahead[0] == back[0] == weight[0]
        assert ahead[1] < back[1] <= weight[1]
    assert length(shape.order, shape.last_chunk) > 0


@settings(deadline=None)
@given(shapes(), positive, positive, positive)
def test_no_schedule_beats_its_work_and_its_way_through_the_ranks(shape: Shape, f: float, b: float, w: float) -> None:
    total = length(shape.order, shape.last_chunk, times=(f, b, w))
    work = shape.microbatches * (1 if shape.kind == "dualpipe" else shape.chunks) * (f + b + w)
    alone = (shape.last_chunk + 1) * (f + b)
    assert total >= max(work, alone) * (1 - 1e-12)


@settings(deadline=None)
@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(1, 8), st.integers(1, 30), positive, positive, positive)
def test_textbook_bubble(kind: str, stages: int, microbatches: int, f: float, b: float, w: float) -> None:
    """(P - 1) / (M + P - 1) of the time is bubble (Narayanan et al. 2021, section 2.2)."""
    total = length(order(kind, stages, 1, microbatches, False), stages - 1, times=(f, b, w))
    assert 1 - microbatches * (f + b + w) / total == pytest.approx((stages - 1) / (microbatches + stages - 1))


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 30), positive, positive)
def test_pairs_cost_1f1b_no_more_bubble(stages: int, more: int, f: float, b: float) -> None:
    """Beside each other or in turn, the same (P - 1)(Tf + Tb), as long as pairs gain nothing by being pairs."""
    microbatches = 2 * stages + more
    total = length(order("1f1b", stages, 1, microbatches, True), stages - 1, times=(f, b, 0.0))
    assert total - microbatches * (f + b) == pytest.approx((stages - 1) * (f + b))


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(2, 4), st.integers(1, 4), positive, positive)
def test_interleaving_divides_the_bubble(stages: int, chunks: int, groups: int, f: float, b: float) -> None:
    """(P - 1) / (V M + P - 1) of the time is bubble (Narayanan et al. 2021, section 2.2)."""
    batches = groups * stages
    schedule = order("interleaved-1f1b", stages, chunks, batches, False)
    total = length(schedule, stages * chunks - 1, times=(f, b, 0.0))
    bubble = 1 - batches * chunks * (f + b) / total
    assert bubble == pytest.approx((stages - 1) / (chunks * batches + stages - 1))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 12), positive, st.floats(0.0, 1.0))
def test_dualpipe_bubble(half: int, more: int, forward: float, weight: float) -> None:
    """(P/2 - 1)(F&B + B - 3W), B the whole backward (DeepSeek-V3 report, table 2); exact where a forward takes as
    long as its input gradients and these no less than the weight gradients."""
    stages, weight = 2 * half, weight * forward
    batches = 2 * stages + 2 * more
    total = length(order("dualpipe", stages, 1, batches, True), stages - 1, times=(forward, forward, weight))
    pair, backward = 2 * forward + weight, forward + weight
    assert total - batches * pair == pytest.approx((half - 1) * (pair + backward - 3 * weight), abs=1e-9)


@pytest.mark.parametrize("stages", [2, 4, 8, 16])
def test_dualpipe_holds_one_microbatch_more_than_stages(stages: int) -> None:
    """Activations in flight: P + 1 (DeepSeek-V3 report, table 2)."""
    schedule = order("dualpipe", stages, 1, 4 * stages, True)
    assert {in_flight(slots) for slots in schedule} == {stages + 1}


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
def test_1f1b_holds_one_microbatch_a_stage_behind(stages: int) -> None:
    schedule = order("1f1b", stages, 1, 4 * stages, False)
    assert [in_flight(slots) for slots in schedule] == [stages - stage for stage in range(stages)]
    assert {in_flight(slots) for slots in order("gpipe", stages, 1, 12, False)} == {12}
    paired = order("1f1b", stages, 1, 4 * stages, True)
    assert [in_flight(slots) for slots in paired] == [2 * (stages - stage) for stage in range(stages)]


@pytest.mark.parametrize(("stages", "chunks"), [(2, 2), (4, 2), (4, 5), (8, 3)])
def test_interleaving_holds_more(stages: int, chunks: int) -> None:
    """P V (1 + (P - 1) / (P V)) chunks on the first rank (Korthikanti et al. 2022, section 4.2.3), two fewer a rank."""
    schedule = order("interleaved-1f1b", stages, chunks, 4 * stages, False)
    most = stages * chunks + stages - 1
    assert [in_flight(slots) for slots in schedule] == [most - 2 * stage for stage in range(stages)]


def test_weights_put_off_hold_their_inputs() -> None:
    work, other = Work(0, 0), Work(0, 1)
    slots = (Slot(forward=work), Slot(backward=work), Slot(forward=other), Slot(weight=work), Slot(None, other, other))
    assert in_flight(slots) == 2
    assert most_held(slots, {0: 1.0}, {0: 0.25}) == 1.25
    assert most_held(slots, {0: 1.0}, {0: 3.0}) == 4.0


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_messages_lengthen_the_1f1b_period(stages: int) -> None:
    """A microbatch goes down and up all P stages while P microbatches pass: the period grows by 2 (P - 1) / P hops."""
    hop = 0.25
    short, long = (length(order("1f1b", stages, 1, n * stages, False), stages - 1, hop) for n in (8, 16))
    period = (long - short) / (8 * stages)
    assert period == pytest.approx(FORWARD + INPUT + WEIGHT + 2 * hop * (stages - 1) / stages)


def test_dualpipe_pairs_a_forward_with_the_other_directions_backward() -> None:
    half = 16
    for slots in dualpipe(8, 2 * half):
        pairs = [(ahead, back) for ahead, back, _ in slots if ahead is not None and back is not None]
        assert pairs
        assert all((ahead[1] < half) != (back[1] < half) for ahead, back in pairs)
