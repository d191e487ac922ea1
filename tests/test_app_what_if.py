"""The page What if in Streamlit's harness: every control, every picture, mistakes beside their controls, links."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import yaml
from app_fixture import messages, open_page

import moesim
from moesim import shipped
from moesim.results.table import shown

SCENARIO = "olmoe-8-h100"
# control -> (the kind of widget, what it is set to, the override that this is)
CONTROLS: dict[str, tuple[str, Any, str]] = {
    "model": ("selectbox", "mixtral-8x7b", "model=mixtral-8x7b"),
    "cluster.gpu": ("selectbox", "h200-sxm", "cluster.gpu=h200-sxm"),
    "cluster.gpus": ("select_slider", 16, "cluster.gpus=16"),
    "cluster.fabric": ("selectbox", "fat-tree-nonblocking", "cluster.fabric=fat-tree-nonblocking"),
    "cluster.nic_bandwidth": ("selectbox", "200 Gb/s", "cluster.nic_bandwidth=200 Gb/s"),
    "parallelism.expert": ("select_slider", 4, "parallelism.expert=4"),
    "parallelism.tensor": ("select_slider", 2, "parallelism.tensor=2"),
    "parallelism.pipeline": ("select_slider", 2, "parallelism.pipeline=2"),
    "schedule.kind": ("selectbox", "gpipe", "schedule.kind=gpipe"),
    "routing.capacity": ("selectbox", "switch", 'routing.capacity={"factor": 1.25, "dialect": "switch"}'),
    "routing.router": ("selectbox", "expert-choice", "routing.router=expert-choice"),
    "routing.load": ("selectbox", "zipf", 'routing.load={"zipf": 0.6}'),
    "dispatcher": ("selectbox", "nccl-all-to-all", 'dispatcher={"kind": "nccl-all-to-all"}'),
    "overlap.expert_communication": ("toggle", True, "overlap.expert_communication=true"),
    "overlap.two_batch": ("toggle", True, "overlap.two_batch=true"),
    "overlap.shared_experts": ("toggle", True, "overlap.shared_experts=true"),
    "overlap.data_parallel": ("toggle", False, "overlap.data_parallel=false"),
    "overlap.pipeline": ("toggle", False, "overlap.pipeline=false"),
    "overlap.tensor_parallel": ("toggle", False, "overlap.tensor_parallel=false"),
    "precision.compute": ("selectbox", "fp8", "precision.compute=fp8"),
    "precision.dispatch": ("selectbox", "fp8-block", "precision.dispatch=fp8-block"),
    "precision.combine": ("selectbox", "fp8-block", "precision.combine=fp8-block"),
    "precision.gradients": ("selectbox", "bf16", "precision.gradients=bf16"),
    "precision.optimizer": ("selectbox", "adam-bf16-moments", "precision.optimizer=adam-bf16-moments"),
    "workload.global_batch": ("number_input", 512, "workload.global_batch=512"),
    "workload.micro_batch": ("number_input", 1, "workload.micro_batch=1"),
    "workload.sequence_length": ("number_input", 2048, "workload.sequence_length=2048"),
    "recompute": ("selectbox", "full", "recompute=full"),
    "parallelism.data_sharding": ("selectbox", "full", "parallelism.data_sharding=full"),
}


def settings(app: Any) -> list[str]:
    found = app.query_params.get("set", [])
    return [found] if isinstance(found, str) else list(found)


def step(overrides: list[str], scenario: str = SCENARIO) -> str:
    """What the first tile must read."""
    loaded = moesim.load(shipped.scenarios()[scenario], overrides)
    return shown(moesim.estimate(loaded, even_if_infeasible=True).summary["step_time"].value, "s")


def widget(app: Any, control: str) -> Any:
    return getattr(app, CONTROLS[control][0])(key=f"what-if-{control}")


def test_every_control_of_the_page_has_a_test() -> None:
    app = open_page("what-if", scenario=SCENARIO)
    drawn = {box.key for kind in ("selectbox", "select_slider", "toggle", "number_input") for box in getattr(app, kind)}
    own = {"what-if-scenario", "what-if-routing.capacity.factor"}
    assert drawn - own == {f"what-if-{control}" for control in CONTROLS}
    assert not app.exception


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_changes_the_scenario_the_numbers_and_the_link(control: str) -> None:
    app = open_page("what-if", scenario=SCENARIO)
    kind, value, override = CONTROLS[control]
    box = widget(app, control)
    if box.value == value:
        pytest.fail(f"{control} is {value} before it is set")
    box.set_value(value).run()
    assert not app.exception
    assert settings(app)[0] == override
    try:
        expected = step(settings(app))
    except moesim.ScenarioError:
        assert not app.metric
        assert "does not run" in messages(app)
    else:
        assert app.metric[0].value == expected
    assert widget(app, control).value == value, kind


def test_a_control_set_back_leaves_no_override() -> None:
    app = open_page("what-if", scenario=SCENARIO, set=["parallelism.expert=4"])
    assert widget(app, "parallelism.expert").value == 4
    widget(app, "parallelism.expert").set_value(8).run()
    assert settings(app) == []


def test_capacity_factor_moves_within_its_dialect_and_keeps_the_rest() -> None:
    app = open_page("what-if", scenario="mixtral-8x7b-64-h100")
    app.select_slider(key="what-if-routing.capacity.factor").set_value(2.0).run()
    (override,) = settings(app)
    assert moesim.load(shipped.scenarios()["mixtral-8x7b-64-h100"], [override]).routing.capacity.factor == 2.0
    assert app.metric[0].value == step([override], "mixtral-8x7b-64-h100")
    assert app.metric[0].delta
    app.selectbox(key="what-if-routing.capacity").set_value("dropless").run()
    assert settings(app) == ["routing.capacity=dropless"]
    assert app.select_slider(key="what-if-routing.capacity.factor").disabled


def test_skew_has_its_own_slider() -> None:
    app = open_page("what-if", scenario=SCENARIO, set=['routing.load={"zipf": 0.6}'])
    app.select_slider(key="what-if-routing.load.zipf").set_value(1.0).run()
    assert settings(app) == ['routing.load={"zipf": 1.0}']
    assert app.metric[0].value == step(settings(app))


def test_a_pipeline_layout_leaves_with_the_number_of_stages_that_it_lists() -> None:
    app = open_page("what-if")
    app.select_slider(key="what-if-parallelism.pipeline").set_value(8).run()
    assert settings(app) == ["parallelism.pipeline=8", "stack_options.pipeline_layout=null"]
    assert app.metric[0].value == step(settings(app), "deepseek-v3-2048-h800")
    app.select_slider(key="what-if-parallelism.pipeline").set_value(16).run()
    assert settings(app) == []


@pytest.mark.parametrize(
    ("wrong", "control", "said"),
    [
        ("cluster.gpus=96", "Workload and memory", "sequences do not divide"),
        ("parallelism.expert=3", "Parallelism", "64 experts do not divide over 3 ranks"),
        ("routing.load=cpu-small-switch-top-1", "Routing", "recorded with 8 experts"),
        ("dispatcher=one-sided-nvlx", "Communication", "unknown dispatcher"),
        ("precision.compute=fp7", "Precision", "nearest: fp8"),
        ("not an override", "All changes", "is not of the form"),
        ("model=mixtrol-8x7b", "Model and hardware", "mixtral-8x7b"),
    ],
)
def test_a_mistake_is_explained_in_the_group_of_its_control(wrong: str, control: str, said: str) -> None:
    app = open_page("what-if", scenario=SCENARIO, set=[wrong])
    assert not app.exception
    assert not app.metric
    (group,) = [box for box in app.sidebar.expander if control in box.label]
    assert group.label == control
    assert "error" in group.icon
    assert group.proto.expanded
    assert said in "\n".join(box.value.replace("\\", "") for box in group.warning)
    assert "does not run" in messages(app)


def test_what_does_not_fit_is_said_beside_the_gpu_with_numbers_all_the_same() -> None:
    app = open_page("what-if", scenario="mixtral-8x7b-64-h100", set=["cluster.gpus=8", "parallelism.pipeline=1"])
    group = app.sidebar.expander[0]
    assert "error" in group.icon
    assert any("does not fit" in box.value or "GB" in box.value for box in group.warning)
    assert app.metric[0].value == step(["cluster.gpus=8", "parallelism.pipeline=1"], "mixtral-8x7b-64-h100")


def test_a_mistake_is_explained_below_the_control_that_was_moved_last() -> None:
    app = open_page("what-if", scenario=SCENARIO)
    app.select_slider(key="what-if-cluster.gpus").set_value(96).run()
    group = app.sidebar.expander[0]
    assert group.label == "Model and hardware"
    assert "sequences do not divide" in "\n".join(box.value for box in group.warning)
    app.toggle(key="what-if-overlap.two_batch").set_value(True).run()
    hardware, overlap = (box for box in app.sidebar.expander if box.label in ("Model and hardware", "Communication"))
    assert not [box for box in (*hardware.warning, *overlap.warning) if "do not divide" in box.value]
    app.select_slider(key="what-if-cluster.gpus").set_value(8).run()
    assert not app.sidebar.expander[0].warning


def test_a_group_whose_mistake_is_undone_stays_open() -> None:
    app = open_page("what-if", scenario=SCENARIO, set=["workload.micro_batch=3"])
    for value in (3, 1, 3):
        app.number_input(key="what-if-workload.micro_batch").set_value(value).run()
        (group,) = [box for box in app.sidebar.expander if box.label == "Workload and memory"]
        assert group.proto.expanded
        assert bool(group.icon) == (value == 3)


def test_back_to_the_address_before_a_change_undoes_it() -> None:
    app = open_page("what-if")
    was = app.select_slider(key="what-if-parallelism.expert").value
    app.select_slider(key="what-if-parallelism.expert").set_value(32).run()
    assert settings(app) == ["parallelism.expert=32"]
    time.sleep(1.6)  # longer than a browser that has not heard yet is given
    app.query_params.clear()
    app.run()
    assert app.select_slider(key="what-if-parallelism.expert").value == was
    assert settings(app) == []
    app.query_params["set"] = "parallelism.expert=32"
    app.run()
    assert app.select_slider(key="what-if-parallelism.expert").value == 32


def test_changes_are_told_against_the_pin() -> None:
    app = open_page("what-if", scenario=SCENARIO)
    assert app.metric[0].delta in ("", None)
    app.select_slider(key="what-if-parallelism.expert").set_value(4).run()
    assert app.metric[0].delta.endswith(" %")
    changed = app.metric[0].delta
    app.button(key="what-if-pin").click().run()
    assert app.query_params["pin"] == [SCENARIO, "parallelism.expert=4"]
    assert app.metric[0].delta == "no change"
    app.select_slider(key="what-if-parallelism.expert").set_value(8).run()
    assert app.metric[0].delta[0] == ("+" if changed[0] == "-" else "-")
    app.button(key="what-if-unpin").click().run()
    assert "pin" not in app.query_params
    app.select_slider(key="what-if-parallelism.expert").set_value(2).run()
    app.button(key="what-if-reset").click().run()
    assert settings(app) == []


def test_a_link_reopens_the_view_and_a_later_link_replaces_it() -> None:
    link = {"scenario": SCENARIO, "set": ["parallelism.expert=4"], "view": "all", "pin": ["mixtral-8x7b-64-h100"]}
    app = open_page("what-if", **link)
    assert app.selectbox(key="what-if-scenario").value == SCENARIO
    assert app.button_group(key="what-if-view").value in ("all", ["all"])
    for key, value in {"scenario": "mixtral-8x7b-64-h100", "set": "cluster.gpus=128", "view": "step"}.items():
        app.query_params[key] = value
    app.run()
    assert app.selectbox(key="what-if-scenario").value == "mixtral-8x7b-64-h100"
    assert app.metric[0].value == step(["cluster.gpus=128"], "mixtral-8x7b-64-h100")


def test_another_scenario_starts_without_the_changes_of_the_last() -> None:
    app = open_page("what-if", scenario=SCENARIO, set=["parallelism.expert=4"])
    app.selectbox(key="what-if-scenario").set_value("mixtral-8x7b-64-h100").run()
    assert settings(app) == []
    assert app.metric[0].value == step([], "mixtral-8x7b-64-h100")


def test_typed_changes_reach_any_key() -> None:
    app = open_page("what-if", scenario=SCENARIO)
    app.text_area(key="what-if-settings").set_value("routing.seed=3\n\n workload.sequence_length=2048 ").run()
    assert settings(app) == ["routing.seed=3", "workload.sequence_length=2048"]
    assert app.metric[0].value == step(settings(app))
    assert app.number_input(key="what-if-workload.sequence_length").value == 2048


PICTURES = {
    "step": ["step-stacked", "step-by-part", "memory-by-part"],
    "routing": ["expert-load", "drops-curve", "imbalance-curve"],
    "network": ["link-use", "dispatch-traffic"],
}


@pytest.mark.parametrize("view", PICTURES)
def test_every_view_has_its_pictures_and_a_table_behind_each(view: str) -> None:
    app = open_page("what-if", scenario="mixtral-8x7b-64-h100", view=view)
    assert not app.exception
    assert not app.warning
    tables = {box.label.removeprefix("Table: "): box.dataframe[0].value for box in app.main.expander}
    assert list(tables) == PICTURES[view]
    assert all(len(frame) for frame in tables.values())
    assert len(app.get("vega_lite_chart")) >= len(PICTURES[view])
    assert len(app.get("download_button")) == 2 * len(PICTURES[view])


def test_the_views_are_chosen_on_the_page() -> None:
    app = open_page("what-if", scenario=SCENARIO)
    app.button_group(key="what-if-view").set_value("network").run()
    assert app.query_params["view"] in ("network", ["network"])
    app.button(key="what-if-dispatchers").click().run()
    rows = app.dataframe[-1].value
    assert set(rows["dispatcher"]) >= {"nccl-all-to-all", "deepep-normal"}


def test_a_dense_model_says_what_it_has_not() -> None:
    for view, said in (("routing", "routes no tokens"), ("network", "No tokens are sent")):
        app = open_page("what-if", scenario="dense-100b-512-h100", view=view)
        assert said in messages(app)
        assert not app.exception


def test_the_simulation_runs_on_its_button_and_is_kept() -> None:
    quick = ["simulation.microbatch_samples=1", "workload.global_batch=64"]
    app = open_page("what-if", scenario=SCENARIO, view="timeline", set=quick)
    assert not app.get("vega_lite_chart")
    app.button(key="what-if-simulate").click().run()
    assert not app.exception
    loaded = moesim.load(shipped.scenarios()[SCENARIO], quick)
    result = moesim.simulate(loaded)
    simulated = [tile.value for tile in app.metric if tile.label == "step time"][-1]
    assert simulated == shown(result.summary["step_time"].value, "s")
    assert len(app.get("vega_lite_chart")) == 2
    again = open_page("what-if", scenario=SCENARIO, view="timeline", set=quick)
    assert again.get("vega_lite_chart"), "the same scenario is not simulated twice"


def test_simulations_wait_for_their_turn_on_the_gate_of_all_slow_work(monkeypatch: pytest.MonkeyPatch) -> None:
    what = open_page("what-if", scenario=SCENARIO, view="timeline", set=["simulation.seed=71"])
    both = open_page("compare", a=[SCENARIO, "simulation.seed=72"], b=[SCENARIO, "simulation.seed=73"])
    turns = []

    def run(key: str, what: str, ask: Any) -> Any:
        turns.append(key)
        return answers.Answer(problems=())

    slow, answers = sys.modules["shared.slow"], sys.modules["shared.answers"]
    monkeypatch.setattr(slow, "run", run)
    what.button(key="what-if-simulate").click().run()
    both.button(key="compare-simulate").click().run()
    assert turns == ["what-if", "compare"]
    assert not what.exception
    assert not both.exception


def test_all_numbers_and_files() -> None:
    app = open_page("what-if", scenario=SCENARIO, view="all", set=["parallelism.expert=4"])
    frame = app.dataframe[0].value
    loaded = moesim.load(shipped.scenarios()[SCENARIO], ["parallelism.expert=4"])
    summary = moesim.estimate(loaded).summary
    assert list(frame["metric"]) == list(summary)
    assert list(frame["value"]) == [one.value for one in summary.values()]
    labels = [button.label for button in app.get("download_button")]
    assert labels[:6] == [
        "CSV",
        "Parquet",
        "Scenario (YAML)",
        "Filled in (YAML)",
        "Report (HTML)",
        "Result (JSON)",
    ]
    (code,) = app.code
    document = moesim.load(yaml.safe_load(code.value))
    assert document.key == loaded.key


def test_compare_takes_the_baseline_and_the_change_along() -> None:
    app = open_page("what-if", scenario=SCENARIO, set=["parallelism.expert=4"])
    app.button(key="what-if-compare").click().run()
    assert not app.exception
    assert app.title[0].value == "Compare"
    assert app.query_params["a"] in (SCENARIO, [SCENARIO])
    assert app.query_params["b"] == [SCENARIO, "parallelism.expert=4"]
