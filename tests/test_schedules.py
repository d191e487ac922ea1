"""Schedules are plain data: every microbatch passes every chunk once, and balanced stages show the textbook bubble."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.closed_form.pipeline import compile_order, walk
from moesim.closed_form.slots import Reach, SlotTime
from moesim.step.dualpipe import dualpipe
from moesim.step.schedules import Order, Slot, in_flight, order

FORWARD, INPUT, WEIGHT = 1.0, 1.0, 1.0


def length(schedule: Order, last_chunk: int, hop: float = 0.0, per_chunk: float = 1.0) -> float:
    """Time of a schedule whose forward, input gradient and weight gradient each take `per_chunk` on every chunk."""

    def time(stage: int, slot: Slot) -> SlotTime:
        parts = (slot.forward is not None, slot.backward is not None, slot.weight is not None)
        seconds = per_chunk * sum(share * part for share, part in zip((FORWARD, INPUT, WEIGHT), parts, strict=True))
        reach = Reach(seconds, seconds, seconds)
        return SlotTime(seconds, (reach, reach, reach), {}, {})

    plan = compile_order(schedule, last_chunk)
    return max(walk(plan, [time(*kind) for kind in plan.kinds], hop, [0.0] * plan.stages))


def works(schedule: Order, side: str) -> Counter[object]:
    return Counter(getattr(slot, side) for slots in schedule for slot in slots if getattr(slot, side) is not None)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["gpipe", "1f1b", "interleaved-1f1b", "dualpipe"]),
    st.integers(1, 6),
    st.integers(2, 4),
    st.integers(1, 5),
    st.booleans(),
)
def test_every_work_is_done_once(kind: str, stages: int, chunks: int, groups: int, paired: bool) -> None:
    stages = 2 * stages if kind == "dualpipe" else stages
    chunks = chunks if kind == "interleaved-1f1b" and stages > 1 else 1
    microbatches = {"interleaved-1f1b": groups * stages, "dualpipe": 2 * stages + 2 * groups}.get(kind, groups)
    schedule = order(kind, stages, chunks, microbatches, paired)
    expected = {(chunk, batch) for chunk in range(stages * chunks) for batch in range(microbatches)}
    for side in ("forward", "backward", "weight"):
        found = works(schedule, side)
        assert set(found) == expected
        assert set(found.values()) == {1}
    # It can be walked to the end: nobody waits for himself.
    assert length(schedule, stages * chunks - 1) > 0


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "microbatches"), [(1, 4), (2, 2), (4, 8), (8, 32)])
def test_textbook_bubble(kind: str, stages: int, microbatches: int) -> None:
    """(P - 1) / (M + P - 1) of the time is bubble (Narayanan et al. 2021, section 2.2)."""
    total = length(order(kind, stages, 1, microbatches, False), stages - 1)
    work = microbatches * (FORWARD + INPUT + WEIGHT)
    assert 1 - work / total == pytest.approx(float(Fraction(stages - 1, microbatches + stages - 1)))


@pytest.mark.parametrize(("stages", "chunks", "microbatches"), [(2, 2, 4), (4, 2, 8), (4, 4, 16), (8, 3, 16)])
def test_interleaving_divides_the_bubble(stages: int, chunks: int, microbatches: int) -> None:
    total = length(
        order("interleaved-1f1b", stages, chunks, microbatches, False), stages * chunks - 1, per_chunk=1 / chunks
    )
    bubble = total / (microbatches * (FORWARD + INPUT + WEIGHT)) - 1
    assert bubble == pytest.approx((stages - 1) / (chunks * microbatches))


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 8), (4, 20), (8, 16), (16, 120)])
def test_dualpipe_bubble(stages: int, microbatches: int) -> None:
    """(P/2 - 1)(F&B + B - 3W) (DeepSeek-V3 report, table 2)."""
    total = length(order("dualpipe", stages, 1, microbatches, True), stages - 1)
    pair, whole_backward = FORWARD + INPUT + WEIGHT, INPUT + WEIGHT
    bubble = (stages / 2 - 1) * (pair + whole_backward - 3 * WEIGHT)
    assert total - microbatches * pair == pytest.approx(bubble)


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
