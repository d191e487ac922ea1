"""Curves of metrics over one input: each point is the closed form's own answer, or says why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import moesim
from moesim import curves, roads
from moesim.provenance import Quantity
from moesim.results.curve import Curve, Point
from moesim.results.curve_charts import curve_chart

SCENARIOS = Path(__file__).parents[1] / "scenarios"
DROPPED = "dropped_token_fraction"
OLMOE, MIXTRAL = SCENARIOS / "olmoe-8-h100.yaml", SCENARIOS / "mixtral-8x7b-64-h100.yaml"


def test_a_point_is_what_estimate_says_there() -> None:
    scenario = moesim.load(OLMOE)
    values = [(float(degree), [f"parallelism.expert={degree}"]) for degree in (8, 2, 3)]
    found = curves.curve(scenario, "EP", values, ["step_time", "no_such_metric"], here=8.0)
    assert [point.at for point in found.points] == [2.0, 3.0, 8.0]
    for point in (found.points[0], found.points[2]):
        own = moesim.estimate(moesim.load(OLMOE, [f"parallelism.expert={int(point.at)}"]))
        assert point.metrics == {"step_time": own.summary["step_time"]}
        assert not point.why
    assert not found.points[1].metrics
    assert "64 experts do not divide over 3 ranks" in found.points[1].why


def test_drops_fall_with_capacity_and_reach_the_scenarios_own() -> None:
    scenario = moesim.load(MIXTRAL)
    found = curves.capacity_curve(scenario, (0.5, 1.0, 2.0, 4.0))
    drops = [one.value for _, one in found.answered(DROPPED)]
    assert [at for at, _ in found.answered(DROPPED)] == [0.5, 1.0, 1.25, 2.0, 4.0]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] >= 0.5  # at half the even share at least half finds no room
    own = moesim.estimate(scenario).summary[DROPPED].value
    assert dict(found.answered(DROPPED))[1.25].value == own
    assert found.here == 1.25
    assert "megatron" in found.note


def test_a_dropless_scenario_that_samples_tokens_has_a_curve_too() -> None:
    scenario = moesim.load(SCENARIOS / "deepseek-v3-2048-h800.yaml")
    assert scenario.simulation.sampled_tokens
    found = curves.capacity_curve(scenario, (1.0, 2.0))
    assert found.here is None
    assert "Megatron" in found.note
    assert not any(point.why for point in found.points)


def test_imbalance_of_one_rank_is_one_and_grows_with_the_ranks() -> None:
    scenario = moesim.load(OLMOE)
    found = curves.expert_parallel_curve(scenario)
    assert [at for at, _ in found.answered("rank_load_max_over_mean")] == [1.0, 2.0, 4.0, 8.0]
    ratios = [one.value for _, one in found.answered("rank_load_max_over_mean")]
    assert ratios[0] == pytest.approx(1.0)
    assert ratios == sorted(ratios)
    assert found.here == 8.0


@pytest.mark.parametrize("most", [3, 5])
def test_few_degrees_are_chosen_with_the_scenarios_own_among_them(most: int) -> None:
    scenario = moesim.load(MIXTRAL, ["parallelism.expert=4"])
    found = curves.expert_parallel_curve(scenario, most)
    assert 4.0 in [point.at for point in found.points]
    assert len(found.points) <= most


def test_a_dense_model_has_one_degree() -> None:
    scenario = moesim.load(SCENARIOS / "dense-100b-512-h100.yaml")
    assert curves.expert_degrees(scenario) == [1]


def test_the_table_holds_every_metric_and_every_reason() -> None:
    quantity = Quantity.within(2.0, "ratio", 0.5, "fitted", "why")
    frame = Curve("EP", (Point(1.0, {"balancedness": quantity}), Point(2.0, why="no"))).frame()
    assert list(frame["EP"]) == [1.0, 2.0]
    assert list(frame["metric"]) == ["balancedness", ""]
    assert list(frame["why"]) == ["", "no"]
    assert frame.loc[0, "high"] == 3.0


def test_the_picture_draws_line_range_and_place_and_leaves_out_what_is_zero() -> None:
    nothing = Quantity.exact(0.0, "fraction")
    points = tuple(
        Point(at, {DROPPED: Quantity.within(0.1 / at, "fraction", 0.2, "fitted"), "padded_token_fraction": nothing})
        for at in (1.0, 2.0)
    )
    spec = curve_chart(Curve("capacity factor", points, 1.5, "note"), curves.DROPS, "Drops").to_dict()
    marks = [layer["mark"]["type"] for layer in spec["layer"]]
    assert marks == ["line", "area", "rule", "text"]
    rows = _rows(spec)
    assert [row["value"] for row in rows] == pytest.approx([10.0, 5.0])
    assert {row["metric"] for row in rows} == {"dropped token fraction"}
    assert "%" in rows[0]["reads"]
    assert "fitted" in rows[0]["reads"]
    assert spec["title"]["subtitle"] == "note"


def test_without_answers_the_picture_says_why() -> None:
    spec = curve_chart(Curve("EP", (Point(1.0, why="no experts here"),)), curves.IMBALANCE, "Imbalance").to_dict()
    assert "no experts here" in str(spec)


def test_doublings_are_equally_wide() -> None:
    points = tuple(Point(float(at), {"balancedness": Quantity.exact(1.0, "ratio")}) for at in (1, 2, 4))
    spec = curve_chart(Curve("EP", points), ["balancedness"], "x", doubling=True).to_dict()
    axis = spec["layer"][0]["encoding"]["x"]
    assert axis["scale"]["type"] == "log"
    assert axis["axis"]["values"] == [1.0, 2.0, 4.0]


def _rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the picture's first part."""
    data = spec["layer"][0].get("data") or spec["data"]
    return data["values"] if "values" in data else spec["datasets"][data["name"]]


@pytest.mark.parametrize("name", ["mixtral-8x7b-64-h100", "deepseek-v3-2048-h800"])
def test_routing_alone_says_what_the_whole_estimate_says_of_it(name: str) -> None:
    scenario = moesim.load(SCENARIOS / f"{name}.yaml")
    whole = moesim.estimate(scenario, even_if_infeasible=True).summary
    alone = roads.routing_metrics(scenario)
    assert set(curves.DROPS) | set(curves.IMBALANCE) <= set(alone)
    assert alone == {metric: whole[metric] for metric in alone}
