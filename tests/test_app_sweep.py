"""The page Sweep: axes, progress, any metric as lines or as a heat map, and the points without an answer."""

from __future__ import annotations

from typing import Any

import pytest
from app_fixture import messages, open_page

MANY = ", ".join(map(str, range(1, 60)))
LINK = {"x": "workload.micro_batch", "xs": "1, 2", "y": "parallelism.expert", "ys": "4, 8"}


@pytest.fixture(scope="module")
def swept() -> Any:
    """The page after a sweep of four points."""
    app = open_page("sweep", **LINK)
    app.button(key="sweep-run").click().run()
    return app


def test_a_page_that_opens_has_not_swept() -> None:
    app = open_page("sweep", x="workload.micro_batch", xs="1, 2, 4")
    assert "3 points by the closed form" in app.caption[0].value
    assert not app.get("vega_lite_chart")


def test_a_sweep_shows_its_metric_and_table(swept: Any) -> None:
    assert not messages(swept)
    assert swept.caption[0].value == "4 done"
    assert len(swept.get("vega_lite_chart")) == 1
    table = swept.dataframe[0].value
    assert set(table["workload.micro_batch"]) == {1, 2}
    assert (table["value"] > 0).all()


def test_metric_and_view_change_with_their_controls(swept: Any) -> None:
    swept.selectbox(key="sweep-metric").set_value("memory_per_gpu").run()
    swept.segmented_control(key="sweep-view").set_value("heat-map").run()
    assert swept.query_params["metric"] == "memory_per_gpu"
    assert swept.query_params["view"] == "heat-map"
    assert (swept.dataframe[0].value["value"] > 1e9).all()


def test_a_link_reopens_a_kept_sweep(swept: Any) -> None:
    app = open_page("sweep", **LINK, metric="model_flops_utilization", view="heat-map")
    assert app.selectbox(key="sweep-metric").value == "model_flops_utilization"
    assert app.caption[0].value == "4 done"


def test_points_without_an_answer_say_why() -> None:
    app = open_page("sweep", x="parallelism.expert", xs="8, 7")
    app.button(key="sweep-run").click().run()
    assert app.caption[0].value == "1 done, 1 illegal"
    failed = app.dataframe[1].value
    assert failed["parallelism.expert"].tolist() == [7]
    assert "7" in failed["reason"].iloc[0]


def test_seeds_road_and_changes_enter_the_question() -> None:
    app = open_page("sweep", x="workload.micro_batch", xs="2", set=["workload.global_batch=256"])
    app.number_input(key="sweep-seeds").set_value(3).run()
    assert "3 points by the closed form" in app.caption[0].value
    app.selectbox(key="sweep-scenario").set_value("mixtral-8x7b-64-h100").run()
    assert app.query_params["scenario"] == "mixtral-8x7b-64-h100"
    app.text_area(key="sweep-set").input("workload.global_batch=512\nworkload.micro_batch=1").run()
    assert app.query_params["set"] == ["workload.global_batch=512", "workload.micro_batch=1"]


def test_another_axis_starts_with_values_of_its_own() -> None:
    app = open_page("sweep", **LINK)
    app.selectbox(key="sweep-x").set_value("workload.sequence_length").run()
    assert "xs" not in app.query_params
    assert app.text_input(key="sweep-xs").value == "2048, 4096, 8192"
    assert app.text_input(key="sweep-ys").value == "4, 8"
    app.selectbox(key="sweep-y").set_value("").run()
    assert "ys" not in app.query_params
    assert not app.exception


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"x": "no.such.field", "xs": "1"}, "unknown"),
        ({"x": "workload.micro_batch", "xs": "1, [2"}, "values of workload"),
        ({"x": "workload.micro_batch", "xs": " "}, "at least one value"),
        ({"x": "workload.micro_batch", "y": "workload.micro_batch"}, "same field"),
        ({"x": "workload.micro_batch", "xs": MANY, "y": "cluster.gpus", "ys": MANY, "seeds": "9"}, "at most"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_message(link: dict[str, str], said: str) -> None:
    app = open_page("sweep", **link)
    if [button for button in app.button if button.key == "sweep-run"]:
        app.button(key="sweep-run").click().run()
    assert not app.exception
    assert said in messages(app).replace("\\", "")
