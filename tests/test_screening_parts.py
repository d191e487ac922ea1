"""The compiled parts of the screening against the laws that they repeat: walks, moments of memory, cuts of layers."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.closed_form.pipeline import compile_order, walk
from moesim.closed_form.slots import Reach, SlotTime
from moesim.screening._walk_kernels import walk_plain
from moesim.screening.cutting import cut_layers
from moesim.screening.layouts import lengths, plan
from moesim.step.balance import Weights, cut
from moesim.step.memory import held_at_once
from moesim.step.schedules import Slot, order

SCHEDULES = [
    ("gpipe", 4, 1, 6, False),
    ("1f1b", 8, 1, 20, False),
    ("1f1b", 4, 1, 20, True),
    ("interleaved-1f1b", 4, 3, 12, False),
    ("interleaved-1f1b", 4, 2, 16, True),
    ("zero-bubble-h1", 8, 1, 30, False),
    ("zero-bubble-v", 4, 2, 3, False),
    ("zero-bubble-v", 8, 2, 30, True),
    ("dualpipe", 8, 1, 20, False),
    ("dualpipe", 8, 1, 20, True),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_walk_is_the_closed_forms(schedule: tuple[str, int, int, int, bool]) -> None:
    _, stages, chunks, _, _ = schedule
    generator, made = np.random.default_rng(1), plan(*schedule)
    sides = generator.uniform(0.5, 2.0, (3, stages * chunks + 1))
    sides[:, -1] = 0.0
    starts, hop = generator.uniform(0.0, 3.0, stages), 0.07
    seconds = sum(sides[side][made.kinds[:, side]] for side in range(3))[None]
    ends = starts[None].copy()
    walk_plain(made.steps, made.outputs, seconds, np.zeros_like(seconds), np.array([hop]), ends)

    def spent(slot: Slot) -> SlotTime:
        time = sum(float(sides[side][work.chunk]) for side, work in enumerate(slot) if work is not None)
        reach = Reach(time, time, time)
        return SlotTime(time, (reach, reach, reach), {}, {})

    compiled = compile_order(order(*schedule), stages * chunks - 1)
    true = walk(compiled, [spent(slot) for _, slot in compiled.kinds], hop, starts.tolist())
    np.testing.assert_allclose(ends[0], true, rtol=1e-12)
    assert made.uses.sum() == len(compiled.steps)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_full_moments_are_those_of_the_memory(schedule: tuple[str, int, int, int, bool]) -> None:
    made, generator = plan(*schedule), np.random.default_rng(2)
    for rank in range(schedule[1]):
        every, mine = held_at_once(*schedule, rank), made.held[made.edges[rank] : made.edges[rank + 1]]
        sizes = generator.random((every.shape[1], 50))
        np.testing.assert_allclose((mine @ sizes).max(axis=0), (every @ sizes).max(axis=0))
        assert len(mine) <= len(every)


@pytest.mark.parametrize("stages", [1, 3, 4, 12, 16])
def test_long_schedules_are_extended_from_legal_shorter_ones(stages: int) -> None:
    for microbatches in (1, 8, 64, 1000):
        found = lengths(stages, microbatches)
        assert found == (microbatches,) or all(length % stages == 0 for length in found)
        assert max(found) <= microbatches


def test_cut_is_that_of_the_closed_form() -> None:
    generator = np.random.default_rng(3)
    for _ in range(150):
        layers, dense = int(generator.choice([16, 36, 61, 94])), int(generator.integers(0, 4))
        kinds = ("dense",) * dense + ("moe",) * (layers - dense)
        stages, mirrored = int(generator.choice([2, 4, 8, 16])), bool(generator.random() < 0.3)
        count = stages * int(generator.choice([1, 2] if mirrored else [1, 2, 3]))
        if count > layers + 2:
            continue
        steps = (int(generator.integers(4, 21)), 20, int(generator.integers(0, 3)), int(generator.integers(0, 60)))
        each = tuple(steps[kind == "moe"] / 20 for kind in kinds)
        true = cut(Weights(each, steps[2] / 20, steps[3] / 20), stages, count, mirrored)
        row = np.array([[stages, count // stages, mirrored, *steps]])
        assert cut_layers(kinds, row) == [true]
