"""What is tried before a sweep begins: not more than can be waited for, and what was left out is said."""

from __future__ import annotations

from typing import Any

import pytest
from sweep_fixture import SMALL

import moesim
from moesim.errors import ScenarioError
from moesim.sweeps import base as base_module
from moesim.sweeps.base import MOST_TRIED, Base, base_of, mistakes

Point = dict[str, Any]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """What the scenario is asked to take before the start."""
    found: list[Point] = []
    at = Base.at

    def counted(self: Base, values: Point, seed: int | None = None) -> moesim.Scenario:
        found.append(dict(values))
        return at(self, values, seed)

    monkeypatch.setattr(Base, "at", counted)
    return found


def loads(count: int) -> list[Point]:
    return [{"routing.load": {"zipf": 0.001 * place}} for place in range(count)]


def test_no_more_values_are_tried_than_can_be_waited_for(tried: list[Point]) -> None:
    points = loads(5000)
    problems, notes = mistakes(base_of(SMALL), points)
    assert problems == []
    assert len(tried) == 1 + MOST_TRIED
    values = [point["routing.load"]["zipf"] for point in tried[1:]]
    assert (values[0], values[-1]) == (0.0, 0.001 * 4999)
    assert values == sorted(set(values))
    assert notes == [
        f"before the start {MOST_TRIED} of the 5,000 values of routing.load were tried; "
        "a mistake in another one is a row with its reason, not a refusal"
    ]


def test_all_of_a_few_values_are_tried(tried: list[Point]) -> None:
    assert mistakes(base_of(SMALL), loads(MOST_TRIED))[1] == []
    assert len(tried) == 1 + MOST_TRIED


def test_fields_share_what_is_tried(tried: list[Point]) -> None:
    """More fields than can be tried at all: the first ones get a value each, the others none, and that is said."""
    points = [{f"routing.load.zip{field}": "x"} for field in range(2 * MOST_TRIED)]
    problems, notes = mistakes(base_of(SMALL), points)
    assert len(tried) == 1 + MOST_TRIED
    assert len(problems) == MOST_TRIED
    assert f"0 of the 1 values of routing.load.zip{MOST_TRIED}" in notes[0]
    assert f"and as few of {MOST_TRIED - 3} other fields" in notes[0]


def test_numbers_are_tried_at_their_ends_only(tried: list[Point]) -> None:
    points = [{"workload.micro_batch": place} for place in range(1, 4000)]
    assert mistakes(base_of(SMALL), points) == ([], [])
    assert sorted(point["workload.micro_batch"] for point in tried[1:]) == [1, 3999]


def test_a_mistake_that_was_not_tried_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "MOST_TRIED", 3)
    points = [{"routing.load": name} for name in ("uniform", "olmoe-like", "nope", "bias-balanced", "balancd")]
    with pytest.raises(ScenarioError, match="unknown profile 'balancd'"):
        moesim.sweep(SMALL, points, workers=0)
    found = moesim.sweep(SMALL, points[:-1], workers=0)
    assert found.counts == {"done": 3, "illegal": 1}
    assert found.failed["routing.load"].tolist() == ["nope"]
    assert "unknown profile 'nope'" in found.failed["reason"].item()
    assert "3 of the 4 values of routing.load were tried" in found.notes[0]
