"""The page Plan: limits in, the winner, Pareto front and candidates out, and on to What if."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from app_fixture import messages, open_page

import moesim
from moesim import shipped

SMALL = {"candidates": "1000", "simulate": "0", "scenario": "olmoe-8-h100", "set": ["simulation.microbatch_samples=1"]}


@pytest.fixture(scope="module")
def planned() -> Any:
    """The page after a small plan."""
    app = open_page("plan", **SMALL)
    app.button(key="plan-run").click().run(timeout=300)
    return app


def test_a_page_that_opens_has_not_planned() -> None:
    app = open_page("plan", candidates="3000")
    assert "At most 3,000 layouts are screened" in app.caption[0].value
    assert not app.get("vega_lite_chart")
    assert not messages(app)


def test_a_plan_shows_winner_front_candidates_and_reasons(planned: Any) -> None:
    assert not messages(planned)
    assert "keep all limits" in planned.caption[0].value
    assert "8 h100" in planned.subheader[0].value.replace("\\", "")
    assert len(planned.get("vega_lite_chart")) == 1
    assert {"Table", "Rejected", "Notes"} <= {box.label.split(":")[0] for box in planned.expander}
    labels = [button.label for button in planned.get("download_button")]
    assert {"Winner (YAML)", "Plan (JSON)", "Scenario (YAML)", "CSV", "Parquet"} <= set(labels)


def test_its_words_are_those_of_the_page(planned: Any) -> None:
    assert any("front of time, cost, memory and drops" in box.value for box in planned.caption)
    said = sys.modules["views.plan_answer"]._said("8 GPUs are the most that were tried; more may do better (--gpus).")
    assert said.replace("\\", "").endswith("more may do better (How many).")


def test_candidates_are_sorted_by_the_objective(planned: Any) -> None:
    table = next(frame.value for frame in planned.dataframe if "parallelism.tensor" in frame.value)
    assert table["cost"].tolist() == sorted(table["cost"])
    assert (table["days"] > 0).all()


def test_a_candidate_opens_in_what_if_as_that_layout(planned: Any) -> None:
    table = next(frame.value for frame in planned.dataframe if "parallelism.tensor" in frame.value)
    app = open_page("plan", **SMALL)
    app.selectbox(key="plan-candidate").select_index(1).run()
    app.button(key="plan-open").click().run()
    assert app.title[0].value == "What if"
    settings = app.query_params["set"]
    scenario = moesim.load(shipped.scenarios()["olmoe-8-h100"], settings)
    wanted = table.iloc[1]
    assert scenario.parallelism.tensor == wanted["parallelism.tensor"]
    assert scenario.workload.micro_batch == wanted["workload.micro_batch"]
    found = moesim.estimate(scenario).summary["training_time"].value
    assert found == pytest.approx(wanted["training_time"], rel=1e-6)


def test_every_control_enters_the_question_and_the_link() -> None:
    app = open_page("plan")
    app.selectbox(key="plan-scenario").set_value("mixtral-8x7b-64-h100").run()
    app.selectbox(key="plan-model").set_value("qwen3-30b-a3b").run()
    app.multiselect(key="plan-gpu").set_value(["h100-sxm", "gb200-nvl72"]).run()
    app.text_input(key="plan-count").input("64, 128").run()
    app.multiselect(key="plan-fabric").set_value(["rail-optimized-400g"]).run()
    app.selectbox(key="plan-objective").set_value("time").run()
    app.text_input(key="plan-tokens").input("1T").run()
    limits = {"days": "30", "dollars": "2M$", "dropped_fraction": "1%", "power": "5 MW", "gpus": "256"}
    for name, text in {**limits, "memory_headroom": "5%"}.items():
        app.text_input(key=f"plan-{name}").input(text).run()
    app.text_area(key="plan-price").input("h100-sxm=2.5\ngb200-nvl72=6").run()
    app.selectbox(key="plan-candidates").set_value("1000").run()
    app.number_input(key="plan-simulate").set_value(0).run()
    assert not messages(app)
    said = {"scenario": "mixtral-8x7b-64-h100", "model": "qwen3-30b-a3b", "count": "64, 128", **limits}
    assert {name: app.query_params[name] for name in said} == said
    assert app.query_params["price"] == ["h100-sxm=2.5", "gb200-nvl72=6"]
    assert "At most 1,000 layouts" in app.caption[0].value


def test_nothing_feasible_names_the_binding_limit() -> None:
    app = open_page("plan", **SMALL, days="0.5")
    app.button(key="plan-run").click().run(timeout=300)
    assert "Nothing keeps all limits" in messages(app)
    assert any("days" in text.value for text in app.markdown)
    assert not app.get("vega_lite_chart")
    assert app.button(key="plan-open")


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"days": "soon"}, "Days to train"),
        ({"dollars": "30 kg"}, "Dollars"),
        ({"count": "many"}, "search.cluster.gpus"),
        ({"price": ["no-such-gpu=2"]}, "prices.no-such-gpu"),
        ({"tokens": "a lot"}, "workload.total_tokens"),
        ({"set": ["precision.compute=fp99"]}, "precision.compute"),
    ],
)
def test_a_mistake_is_one_clear_message(link: dict[str, Any], said: str) -> None:
    app = open_page("plan", **link)
    if [button for button in app.button if button.key == "plan-run"]:
        app.button(key="plan-run").click().run()
    assert not app.exception
    assert said in messages(app).replace("\\", "")
