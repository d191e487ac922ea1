"""The space: every combination is counted once, every legal one is there once, a budget draws the same ones."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_fixture import question

from moesim.planner.pareto import front
from moesim.planner.sieve import sieve
from moesim.planner.space import COLUMNS, NOT_SCREENED, SAME, axes_of_cluster, candidates, canonical, enumerate_space
from moesim.scenario.checks import problems
from moesim.screening import scenario_of


def by_hand(asked: Any) -> tuple[int, int, set[tuple[Any, ...]]]:
    """All combinations one by one: how many, how many legal, and the different ones among these."""
    axes = axes_of_cluster(asked, 0)
    total, legal, different = 0, 0, set()
    for values in product(*(axes[name].tolist() for name in COLUMNS)):
        total += 1
        row = np.array([values], dtype=np.int32)
        scenario = scenario_of(asked.base, asked.choices, candidates(row), 0)
        if problems(scenario):
            continue
        legal += 1
        layout = tuple(scenario.parallelism.model_dump().values())
        different.add((layout, scenario.schedule_kind, scenario.workload.micro_batch, str(scenario.recompute)))
    return total, legal, different


def test_the_space_is_what_one_finds_by_hand() -> None:
    asked = question()
    space = enumerate_space(asked)
    total, legal, different = by_hand(asked)
    assert space.total == total == 288
    assert len(space.rows) == len(different)
    assert space.rejected[SAME] == legal - len(different) > 0
    assert sum(space.rejected.values()) + len(space.rows) == total


def test_a_setting_without_effect_is_no_candidate_of_its_own() -> None:
    """One expert-parallel rank: no dispatcher and nothing to hide; one stage: no schedule."""
    search = {
        "parallelism.tensor": 1,
        "parallelism.pipeline": 1,
        "parallelism.expert": 1,
        "parallelism.expert_tensor": 1,
        "workload.micro_batch": 1,
        "recompute": "none",
        "schedule.kind": ["auto", "zero-bubble-v", "interleaved-1f1b"],
        "dispatcher.kind": ["auto", "nccl-all-to-all", "deepep-normal"],
        "overlap.expert_communication": [True, False],
        "parallelism.virtual_pipeline": [1, 2],
    }
    assert len(enumerate_space(question(search=search)).rows) == 1


def test_a_budget_draws_the_same_ones_each_time() -> None:
    whole = enumerate_space(question())
    few = [enumerate_space(question(candidates=20)) for _ in range(2)]
    assert np.array_equal(few[0].rows, few[1].rows)
    assert 0 < len(few[0].rows) <= 20
    assert len(few[0].rows) + few[0].rejected[NOT_SCREENED] == len(whole.rows)
    known = {row.tobytes() for row in whole.rows}
    assert all(row.tobytes() in known for row in few[0].rows)


def test_neighbours_use_up_the_budget_and_find_the_best() -> None:
    """A tenth of OLMoE's 4,000 layouts on a node is enough, for the neighbours of the best ones lead to the best."""
    asked = question(objective="time", search={})
    everything, _ = sieve(asked, enumerate_space(asked), None)
    budget = len(everything) // 10
    asked = question(objective="time", search={}, candidates=budget)
    found, rejected = sieve(asked, enumerate_space(asked), None)
    assert len(found) == budget
    assert len(found) + rejected[NOT_SCREENED] == len(everything) > 3000
    assert len({row.tobytes() for row in canonical(asked, found.rows)}) == len(found)
    best, told = (one.figures.step_seconds[one.bound < 0].min() for one in (everything, found))
    assert told == pytest.approx(best, rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=0, max_size=40))
def test_pareto_front_is_the_undominated(points: list[tuple[int, int, int]]) -> None:
    """By the definition, pair by pair."""
    values = np.array(points, dtype=np.float64).reshape(len(points), 3)

    def dominates(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and one != other

    expected = [at for at, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    assert front(values).tolist() == expected


def test_pareto_front_of_many() -> None:
    """Across blocks: a random cloud's front dominates all the rest and nothing of itself."""
    values = np.random.default_rng(0).random((3000, 3))
    edge = front(values)
    rest = np.setdiff1d(np.arange(3000), edge)
    beaten = [(values[edge] <= values[one]).all(axis=1).any() for one in rest]
    assert all(beaten)
    assert not any((np.delete(values[edge], at, 0) <= values[one]).all(axis=1).any() for at, one in enumerate(edge))
