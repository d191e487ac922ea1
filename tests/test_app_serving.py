"""Scenarios of serving on the page What if: their own controls, the steady state, and every request on a button."""

from __future__ import annotations

from typing import Any

import pytest
from app_fixture import messages, open_page

import moesim
from moesim import shipped
from moesim.results.table import shown

CLOSED, APART = "serving/gpt-oss-120b-8-h100", "serving/deepseek-v3-96-h800"
FOLDER = next(iter(shipped.scenarios().values())).parent


def answer(name: str, *settings: str) -> Any:
    return moesim.estimate(moesim.load(FOLDER / f"{name}.yaml", settings), even_if_infeasible=True)


def settings(app: Any) -> list[str]:
    found = app.query_params.get("set", [])
    return [found] if isinstance(found, str) else list(found)


def test_the_picker_offers_what_is_shipped() -> None:
    options = open_page("what-if").selectbox(key="what-if-scenario").options
    shipped_names = {f"serving/{path.stem}" for path in (FOLDER / "serving").glob("*.yaml")}
    assert {CLOSED, APART} <= shipped_names <= set(options)


@pytest.mark.parametrize("name", [CLOSED, APART])
def test_the_steady_state_with_its_charts_and_tables(name: str) -> None:
    app = open_page("what-if", scenario=name)
    assert not messages(app)
    assert "serves requests" in app.caption[0].value
    summary = answer(name).summary
    values = {tile.label: tile.value for tile in app.metric}
    assert values["time to first token mean"] == shown(summary["time_to_first_token_mean"].value, "s")
    labels = [box.label for box in app.main.expander]
    assert labels == ["Table: iteration-by-part", "Table: memory-by-part", "All numbers"]
    assert len(app.get("vega_lite_chart")) == 2
    assert len(app.get("download_button")) == 9


def test_controls_change_the_answer_and_the_link() -> None:
    app = open_page("what-if", scenario=APART)
    assert app.select_slider(key="what-if-workload.arrivals.rate").value == 40
    app.select_slider(key="what-if-workload.arrivals.rate").set_value(20).run()
    assert settings(app) == ["workload.arrivals.rate=20"]
    summary = answer(APART, *settings(app)).summary
    assert app.metric[1].label == "time per output token mean"
    assert app.metric[1].value == shown(summary["time_per_output_token_mean"].value, "s")
    assert app.metric[1].delta
    app.button(key="what-if-reset").click().run()
    assert settings(app) == []
    app = open_page("what-if", scenario=CLOSED)
    app.number_input(key="what-if-workload.arrivals.concurrency").set_value(64).run()
    assert settings(app) == ["workload.arrivals.concurrency=64"]
    app.select_slider(key="what-if-engine.token_budget").set_value(4096).run()
    app.button(key="what-if-pin").click().run()
    assert app.metric[0].delta == "no change"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("cluster.gpus=7", "gpus"),
        ("engine.token_budget=-1", "token_budget"),
        ("model=mixtrol-8x7b", "mixtral-8x7b"),
        ("workload.kind=training", ""),
        ("workload.arrivals=5", ""),
        ("workload={}", ""),
    ],
)
def test_a_mistake_is_explained(wrong: str, said: str) -> None:
    app = open_page("what-if", scenario=CLOSED, set=[wrong])
    assert not app.exception
    assert not app.metric
    assert "does not run" in messages(app)
    assert "internal error" not in messages(app)
    assert said in messages(app).replace("\\", "")


def test_every_request_is_simulated_on_a_button_and_kept() -> None:
    few = ["workload.requests=200"]
    app = open_page("what-if", scenario=CLOSED, set=few)
    app.button(key="what-if-serve").click().run()
    assert not app.exception
    result = moesim.simulate(moesim.load(FOLDER / f"{CLOSED}.yaml", few))
    latest = [tile for tile in app.metric if tile.label == "request latency mean"][-1]
    assert latest.value == shown(result.summary["request_latency_mean"].value, "s")
    assert latest.delta  # the same statistic by the closed form
    assert [tile.delta for tile in app.metric if tile.label == "request latency p99"] == []
    assert [caption.value for caption in app.caption if "too short for a steady rate" in caption.value]
    labels = [box.label for box in app.main.expander]
    assert labels[2:6] == ["Table: latency", "Table: batch", "Table: kv-cache", "Table: imbalance"]
    again = open_page("what-if", scenario=CLOSED, set=few)
    assert len(again.get("vega_lite_chart")) > 2, "the same requests are not simulated twice"


def test_other_pages_do_not_take_them() -> None:
    for page in ("plan", "sweep"):
        app = open_page(page, scenario=CLOSED)
        assert not app.exception
        assert "internal error" not in messages(app)
