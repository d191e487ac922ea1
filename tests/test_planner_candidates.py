"""Candidates of a plan as scenarios: the screened table, the chart and the answered rows open one and the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planner_fixture import SMALL, spec

import moesim
from moesim import shipped
from moesim.planner.charts import PICKED
from moesim.planner.frame import rows_frame
from moesim.planner.plan import ModelPlan
from moesim.planner.run import run, statement
from moesim.results.overrides import overrides_between


@pytest.fixture(scope="module")
def model() -> ModelPlan:
    """A plan over two GPUs, nothing simulated."""
    search = {**SMALL, "cluster.gpu": ["h100-sxm", "gb200-nvl72"], "cluster.gpus": [8, 16]}
    return run(spec(search=search, simulate=0), Path(), workers=1).models[0]


def test_a_line_of_the_table_is_the_scenario_that_it_says(model: ModelPlan) -> None:
    table = model.table
    for place in (0, len(table["gpus"]) // 2, len(table["gpus"]) - 1):
        scenario = model.candidate(place)
        assert scenario.cluster.gpu.name == table["gpu"][place]
        assert scenario.cluster.gpus == table["gpus"][place]
        assert scenario.parallelism.tensor == table["tensor"][place]
        assert scenario.workload.micro_batch == table["micro_batch"][place]


def test_the_estimate_of_a_line_is_the_one_in_the_table(model: ModelPlan) -> None:
    place = int(np.flatnonzero(~np.isnan(model.table["estimated_step_time"]))[0])
    step = moesim.estimate(model.candidate(place), even_if_infeasible=True).summary["step_time"].value
    assert step == pytest.approx(model.table["estimated_step_time"][place], rel=1e-9)


def test_every_answered_row_opens_from_any_shipped_scenario(model: ModelPlan) -> None:
    file = shipped.scenarios()["mixtral-8x7b-64-h100"]
    for row in model.rows[:3]:
        assert moesim.load(file, overrides_between(file, row.scenario)).key == row.scenario.key


def test_the_chart_knows_which_line_a_point_is(model: ModelPlan) -> None:
    drawn = model.chart().to_dict()
    assert [param["name"] for param in drawn["params"]] == [PICKED]
    points = [point for data in drawn["datasets"].values() for point in data]
    assert points
    for point in points[:20]:
        scenario = model.candidate(point["place"])
        assert point["hardware"] == f"{scenario.cluster.gpus:,} {scenario.cluster.gpu.name}"


def test_the_frame_of_the_rows_is_in_their_order(model: ModelPlan) -> None:
    frame = rows_frame(model)
    assert frame["name"].tolist() == [row.scenario.name for row in model.rows]
    assert frame["days"].tolist() == pytest.approx([row.summary["training_time"].value / 86400 for row in model.rows])


def test_a_statement_leaves_another_gpus_links_out() -> None:
    scenario = moesim.load(shipped.scenarios()["olmoe-8-h100"])
    plan, _ = statement(scenario, {"search": {"cluster.gpu": ["gb200-nvl72"]}})
    assert isinstance(plan.scenario, dict)
    assert "fabric" not in plan.scenario["cluster"]
