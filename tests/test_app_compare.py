"""The page Compare in Streamlit's harness: its four places, own files, waterfalls, simulation, links."""

from __future__ import annotations

from typing import Any

import pytest
from app_fixture import messages, open_page

import moesim
from moesim import shipped
from moesim.results.table import shown

SMALL = "olmoe-8-h100"
QUICK = ["simulation.microbatch_samples=1", "workload.global_batch=64"]


def results(*slots: tuple[str, list[str]]) -> list[moesim.Result]:
    files = shipped.scenarios()
    return [moesim.estimate(moesim.load(files[name], overrides), even_if_infeasible=True) for name, overrides in slots]


def main_table(app: Any) -> Any:
    return app.dataframe[0].value


def test_it_opens_with_two_scenarios_and_says_what_makes_the_difference() -> None:
    app = open_page("compare")
    assert not app.exception
    assert not app.warning
    first, second = results(("mixtral-8x7b-64-h100", []), ("mixtral-8x7b-64-h100", ["routing.capacity=dropless"]))
    row = main_table(app).set_index("metric").loc["step time"]
    assert row["A mixtral-8x7b-64-h100"] == shown(first.summary["step_time"].value, "s")
    assert row["B mixtral-8x7b-64-h100"] == shown(second.summary["step_time"].value, "s")
    ratio = second.summary["step_time"].value / first.summary["step_time"].value
    assert float(row["ratio to A: B"]) == pytest.approx(ratio, rel=1e-3)
    why = moesim.compare([first, second]).explanations[0]
    largest = why.parts[0][0]
    assert any(largest in text.value for text in app.markdown)
    assert len(app.get("vega_lite_chart")) == 1
    inputs = app.dataframe[-1].value
    assert list(inputs["input"]) == ["routing.capacity"]
    assert not dict(app.query_params), "the first view needs no link, so that Back leaves it"
    app.text_area(key="compare-a-set").set_value("cluster.gpus=128").run()
    assert app.query_params["a"] == ["mixtral-8x7b-64-h100", "cluster.gpus=128"]
    assert app.query_params["b"] == ["mixtral-8x7b-64-h100", "routing.capacity=dropless"]


def test_every_place_takes_a_scenario_and_changes() -> None:
    app = open_page("compare", a=[SMALL], b=[SMALL, "parallelism.expert=4"])
    for key, letter, change in (("c", "C", "parallelism.expert=2"), ("d", "D", "routing.load=uniform")):
        app.selectbox(key=f"compare-{key}").set_value(SMALL).run()
        app.text_area(key=f"compare-{key}-set").set_value(change).run()
        assert app.query_params[key] == [SMALL, change]
        assert f"{letter} {SMALL}" in main_table(app).columns
    assert len(app.get("vega_lite_chart")) == 3
    assert {"ratio to A: B", "ratio to A: C", "ratio to A: D"} <= set(main_table(app).columns)
    app.selectbox(key="compare-d").set_value("–").run()
    assert "d" not in app.query_params
    assert len(app.get("vega_lite_chart")) == 2


def test_a_mistake_is_explained_in_its_place_and_the_others_are_compared() -> None:
    app = open_page("compare", a=[SMALL], b=[SMALL, "parallelism.expert=3"], c=[SMALL, "parallelism.expert=4"])
    assert not app.exception
    place = app.columns[1]
    assert "64 experts do not divide" in place.warning[0].value.replace("\\", "")
    columns = main_table(app).columns
    assert f"C {SMALL}" in columns
    assert f"B {SMALL}" not in columns


def test_one_scenario_alone_asks_for_another() -> None:
    app = open_page("compare", a=[SMALL])
    assert "two scenarios" in messages(app)


def test_an_unknown_name_in_a_link_is_a_message() -> None:
    app = open_page("compare", a=["<script>alert(1)</script>"], b=["own file: mine.yaml"])
    assert not app.exception
    assert "no scenario" in messages(app)
    assert "add it again" in messages(app)


def test_files_of_ones_own_are_read_and_compared() -> None:
    own = shipped.scenarios()[SMALL].read_bytes().replace(b"expert: 8", b"expert: 4")
    app = open_page("compare", a=[SMALL])
    app.file_uploader(key="compare-upload").set_value(
        [("mine.yaml", own, "application/yaml"), ("bad.yaml", b"model: [", "application/yaml")]
    ).run()
    assert not app.exception
    app.selectbox(key="compare-b").set_value("own file: mine.yaml").run()
    assert "B mine" in main_table(app).columns
    (expected,) = results((SMALL, ["parallelism.expert=4"]))
    row = main_table(app).set_index("metric").loc["step time"]
    assert row["B mine"] == shown(expected.summary["step_time"].value, "s")
    assert app.button(key="compare-b-open").disabled
    app.selectbox(key="compare-c").set_value("own file: bad.yaml").run()
    assert not app.exception
    assert "bad" in app.columns[2].warning[0].value


def test_a_file_that_is_not_text_is_refused() -> None:
    app = open_page("compare", a=[SMALL])
    app.file_uploader(key="compare-upload").set_value([("b.yaml", b"\xff\xfe\x00", "application/yaml")]).run()
    assert not app.exception
    assert "UTF" in messages(app)


def test_simulated_the_differences_are_told_by_operation() -> None:
    app = open_page("compare", a=[SMALL, *QUICK], b=[SMALL, *QUICK, "parallelism.expert=4"])
    parts = next(box for box in app.expander if box.label == "Table: by-part")
    assert "part" in parts.dataframe[0].value.columns
    app.button(key="compare-simulate").click().run()
    assert not app.exception
    operations = next(box for box in app.expander if box.label == "Table: by-operation")
    frame = operations.dataframe[0].value
    assert {"part", "operation", "base", "other", "change"} <= set(frame.columns)
    files = shipped.scenarios()
    pair = [moesim.simulate(moesim.load(files[SMALL], [*QUICK, *more])) for more in ([], ["parallelism.expert=4"])]
    assert frame["change"].sum() == pytest.approx(
        pair[1].summary["step_time"].value - pair[0].summary["step_time"].value, rel=1e-6, abs=1e-9
    )
    assert not [button for button in app.button if button.key == "compare-simulate"]


def test_a_place_opens_in_what_if() -> None:
    app = open_page("compare", a=[SMALL], b=[SMALL, "parallelism.expert=4"])
    app.button(key="compare-b-open").click().run()
    assert not app.exception
    assert app.title[0].value == "What if"
    assert app.query_params["scenario"] in (SMALL, [SMALL])
    assert app.query_params["set"] in ("parallelism.expert=4", ["parallelism.expert=4"])
    assert app.select_slider(key="what-if-parallelism.expert").value == 4


def test_the_comparison_can_be_taken_away() -> None:
    app = open_page("compare")
    labels = [button.label for button in app.get("download_button")]
    assert {"CSV", "Parquet", "Report (HTML)", "Comparison (JSON)"} == set(labels)


SERVING = "serving/gpt-oss-120b-8-h100"


def test_deployments_are_compared_iteration_by_iteration() -> None:
    app = open_page("compare", a=[SERVING], b=[SERVING, "cluster.gpu=h200-sxm"])
    assert not app.exception
    assert not app.warning
    file = shipped.scenarios()[SMALL].parent / f"{SERVING}.yaml"
    pair = [moesim.estimate(moesim.load(file, changes)) for changes in ([], ["cluster.gpu=h200-sxm"])]
    rates = [shown(result.summary["output_tokens_per_second_per_gpu"].value, "token/s") for result in pair]
    row = main_table(app).set_index("metric").loc["output tokens per second per GPU"]
    assert list(row[:2]) == rates
    assert len(app.get("vega_lite_chart")) == 1
    assert any("The iteration of" in text.value for text in app.markdown)
    assert any(box.value.endswith(": iteration") for box in app.subheader)


def test_a_step_and_an_iteration_are_not_compared() -> None:
    app = open_page("compare", a=[SMALL], b=[SERVING])
    assert not app.exception
    assert "compare each with its own kind" in messages(app)
    assert not app.dataframe
