"""Drawn points: inside their bounds, spread as they should be, and the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from moesim.specs.sweep import Range, SweepSpec
from moesim.sweeps.sampling import drawn, points_of

OVER: dict[str, Any] = {
    "a.whole": {"low": 3, "high": 6},
    "b.real": {"low": 0.5, "high": 2.0},
    "c.log": {"low": "1 GB/s", "high": "1 TB/s", "log": True},
    "d.choice": ["x", "y", {"zipf": 1.0}],
    "e.log_whole": {"low": 1, "high": 1000, "log": True},
}


def spec(way: str, points: int = 400, over: dict[str, Any] = OVER, **said: Any) -> SweepSpec:
    return SweepSpec.model_validate({"scenario": {}, way: over, "points": points, **said})


@pytest.mark.parametrize("way", ["random", "latin_hypercube"])
def test_points_are_inside_their_bounds_and_of_their_kind(way: str) -> None:
    found = points_of(spec(way))
    assert len(found) == 400
    assert {point["a.whole"] for point in found} == {3, 4, 5, 6}
    assert all(type(point["e.log_whole"]) is int and 1 <= point["e.log_whole"] <= 1000 for point in found)
    assert all(0.5 <= point["b.real"] <= 2.0 for point in found)
    assert all(1e9 <= point["c.log"] <= 1e12 for point in found)
    assert {str(point["d.choice"]) for point in found} == {"x", "y", "{'zipf': 1.0}"}


@pytest.mark.parametrize("way", ["random", "latin_hypercube"])
def test_the_same_seed_draws_the_same_points(way: str) -> None:
    assert points_of(spec(way)) == points_of(spec(way))
    assert points_of(spec(way)) != points_of(spec(way, draw_seed=1))


def test_another_field_does_not_change_what_is_drawn_for_this_one() -> None:
    fewer = {"b.real": OVER["b.real"]}
    alone = [point["b.real"] for point in points_of(spec("random", over=fewer))]
    assert alone == [point["b.real"] for point in points_of(spec("random"))]


@pytest.mark.parametrize("way", ["random", "latin_hypercube"])
def test_draws_are_even_on_their_scale(way: str) -> None:
    found = points_of(spec(way, points=2000))
    shares = {
        "b.real": [(point["b.real"] - 0.5) / 1.5 for point in found],
        "c.log": [np.log(point["c.log"] / 1e9) / np.log(1e3) for point in found],
    }
    for name, values in shares.items():
        assert kstest(values, "uniform").pvalue > 1e-4, name
    counts = np.unique([point["a.whole"] for point in found], return_counts=True)[1]
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def test_a_latin_hypercube_has_one_point_in_every_stratum() -> None:
    points = 64
    values = [point["b.real"] for point in points_of(spec("latin_hypercube", points=points))]
    strata = np.floor((np.array(values) - 0.5) / 1.5 * points).astype(int)
    assert sorted(strata) == list(range(points))


def test_the_ends_of_a_draw_are_the_ends_of_the_range() -> None:
    ends = np.array([[0.0], [np.nextafter(1.0, 0.0)], [1.0]])
    assert [point["n"] for point in drawn({"n": Range(low=3, high=6)}, ends)] == [3, 6, 6]
    assert [point["n"] for point in drawn({"n": Range(low=1, high=1000, log=True)}, ends)] == [1, 1000, 1000]
    assert [point["n"] for point in drawn({"n": ("x", "y")}, ends)] == ["x", "y", "y"]
    real = [point["n"] for point in drawn({"n": Range(low=0.1, high=0.3, log=True)}, ends)]
    assert real[0] == 0.1
    assert real[-1] == 0.3


def test_grids_and_lists_keep_their_order() -> None:
    grid = SweepSpec.model_validate({"scenario": {}, "grid": {"a": [2, 1], "b": ["x", "y"]}})
    assert points_of(grid) == [{"a": 2, "b": "x"}, {"a": 2, "b": "y"}, {"a": 1, "b": "x"}, {"a": 1, "b": "y"}]
    listed = SweepSpec.model_validate({"scenario": {}, "list": [{"b": 1}, {"a": 2}, {}]})
    assert points_of(listed) == [{"b": 1}, {"a": 2}, {}]
    assert listed.fields == ("b", "a")
