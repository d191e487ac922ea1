"""The pictures and tables that the dashboard shows of sweeps, validations and recordings: what stands in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim
from moesim import listing, shipped
from moesim.catalog import recorded
from moesim.errors import ScenarioError, UserError
from moesim.results import chart_theme, goodness_chart
from moesim.results.compare_inputs import differences
from moesim.results.overrides import overrides_between
from moesim.results.trace_charts import TraceCharts
from moesim.routing.profile import RoutingProfile
from moesim.sweeps import charts as sweep_charts
from moesim.sweeps.result import Sweep
from moesim.traces import frames, store
from moesim.traces.inspect import inspect
from moesim.validation import cases, charts, frame
from moesim.validation.run import Row, Validation
from moesim.validation.words import unit_of

OLMOE = "olmoe-8-h100"


def values(chart: Any) -> list[dict[str, Any]]:
    """All rows that a picture draws."""
    spec = chart.to_dict()
    return [row for data in spec["datasets"].values() for row in data] if "datasets" in spec else inline(spec)


def inline(spec: Any) -> list[dict[str, Any]]:
    if isinstance(spec, dict):
        own = spec["data"]["values"] if isinstance(spec.get("data"), dict) and "values" in spec["data"] else []
        return [*own, *(row for key, part in spec.items() if key != "data" for row in inline(part))]
    return [row for part in spec for row in inline(part)] if isinstance(spec, list) else []


@pytest.fixture(scope="module")
def swept() -> Sweep:
    """Two micro-batches under two expert-parallel degrees, one of them illegal."""
    scenario = moesim.load(shipped.scenarios()[OLMOE])
    return moesim.sweep(scenario, {"workload.micro_batch": [1, 2], "parallelism.expert": [8, 7]}, workers=0)


def test_points_of_a_sweep_are_means_with_the_reason_of_what_is_missing(swept: Sweep) -> None:
    found = sweep_charts.points(swept, "step_time", ["parallelism.expert"])
    done = found[found["parallelism.expert"] == 8].iloc[0]
    table = swept.table[swept.table["parallelism.expert"] == 8]
    assert done["value"] == pytest.approx(table["step_time"].mean())
    assert done["low"] == table["step_time_low"].min()
    assert done["high"] == table["step_time_high"].max()
    missing = found[found["parallelism.expert"] == 7].iloc[0]
    assert np.isnan(missing["value"])
    assert "7" in missing["reason"]


def test_lines_draw_what_the_points_say(swept: Sweep) -> None:
    drawn = values(sweep_charts.lines(swept, "step_time", "workload.micro_batch", "parallelism.expert"))
    known = sweep_charts.points(swept, "step_time", ["workload.micro_batch", "parallelism.expert"]).dropna(
        subset="value"
    )
    assert {row["value"] for row in drawn} == {float(f"{value:.7g}") for value in known["value"]}
    assert {row["line"] for row in drawn} == {"8"}


def test_a_heat_map_holds_every_cell_and_says_why_one_is_empty(swept: Sweep) -> None:
    drawn = values(sweep_charts.heat_map(swept, "step_time", "workload.micro_batch", "parallelism.expert"))
    assert len({(row["x"], row["y"]) for row in drawn}) == 4
    empty = [row for row in drawn if row["y"] == "7"]
    assert all(row["value"] is None and "7" in row["reads"] for row in empty)


def test_a_metric_that_nobody_has_is_a_picture_that_says_so(swept: Sweep) -> None:
    drawn = values(sweep_charts.lines(swept, "expert_fetch_time_per_token", "workload.micro_batch"))
    assert drawn[0]["why"]


def row(**said: Any) -> Row:
    """A predicted row."""
    known = {"id": "a", "kind": "gemm", "metric": "time", "measured": 1.0, "predicted": 1.2, "error": 0.2, "unit": "s"}
    return Row(**{**known, **said})


def test_a_scatter_leaves_out_what_has_no_place_and_says_so() -> None:
    rows = (row(), row(id="b", predicted=None, error=None), row(id="c", unit="ratio"), row(id="d", measured=0.0))
    chart = charts.scatter(Validation(rows), "s")
    drawn = values(chart)
    assert [one["case"] for one in drawn if "case" in one] == ["a"]
    assert "2 not drawn" in str(chart.to_dict()["title"])
    ends = sorted(one["at"] for one in drawn if "at" in one)
    assert ends[0] < 1.0 < 1.2 < ends[1]


def test_units_come_commonest_first_and_ratios_of_scenarios_are_ratios() -> None:
    found = Validation((row(unit="ratio"), row(), row(), row(unit="fraction", predicted=None)))
    assert charts.units(found) == ("s", "ratio")
    ratios = next(path for path in cases.shipped() if path.stem == "train-step-ratios")
    read = moesim.validate([ratios])
    assert {one.unit for one in read.cases if one.metric == "tokens_per_second_per_gpu"} == {"ratio"}


@pytest.mark.parametrize(
    ("metric", "unit"),
    [("time", "s"), ("dispatch_time", "s"), ("dropped_token_fraction[1.25]", "fraction"), ("bus_bandwidth", "B/s"),
     ("tokens_per_second_per_gpu", "token/s"), ("distinct_destination_ranks", "ratio")],
)  # fmt: skip
def test_every_metric_has_its_unit(metric: str, unit: str) -> None:
    assert unit_of(metric) == unit


def test_errors_by_group_are_those_of_the_statistics() -> None:
    found = Validation((row(), row(error=0.4, predicted=1.4), row(kind="moe", predicted=2.0, error=1.0)))
    drawn = {one["group"]: one for one in values(charts.errors(found.by_kind, "kind"))}
    assert drawn["gemm"]["median"] == pytest.approx(0.3)
    assert drawn["moe"]["median"] == pytest.approx(1.0)
    table = frame.stats_frame(found.by_kind)
    assert table["n"].tolist() == [2, 1]
    assert len(frame.rows_frame(found)) == 3


def test_tables_of_a_recording_hold_what_its_pictures_show() -> None:
    look = inspect(store.load(recorded.find("traces", "cpu-small-switch-top-1")))
    load = frames.load(look)
    assert load["copies"].sum() == look.load.copies.sum()
    assert load.groupby("layer")["over_mean"].mean().tolist() == pytest.approx([1.0] * 4)
    assert len(frames.imbalance(look)) == len(look.imbalance)
    assert len(frames.drops(look)) == sum(len(part.factors) for part in look.drops)
    assert set(frames.locality(look)["tokens_before"]) == set(look.locality.lags if look.locality else ())
    assert frames.coactivation(look)["phi"].abs().max() <= 1.0
    assert len(frames.summary(look)) == len(look.rows())
    assert len(frames.sources(look)) == len(look.sources)


def test_goodness_draws_every_row_of_the_table() -> None:
    profile = RoutingProfile.load(recorded.find("fitted", "cpu-small-switch-top-1"))
    drawn = [one for one in values(goodness_chart.goodness(profile)) if "law" in one]
    mine = [one["error"] for one in drawn if one["law"] == "profile"]
    assert mine == [float(f"{100 * row.error:.5g}") for row in profile.meta.goodness]
    assert len(frames.goodness(profile)) == len(mine)


@pytest.mark.parametrize("base", [OLMOE, "deepseek-v3-2048-h800"])
@pytest.mark.parametrize("wanted", ["mixtral-8x7b-64-h100", "qwen3-235b-256-gb200", "dense-100b-512-h100", OLMOE])
def test_overrides_turn_one_scenario_into_another(base: str, wanted: str) -> None:
    files = shipped.scenarios()
    target = moesim.load(files[wanted])
    settings = overrides_between(files[base], target)
    assert moesim.load(files[base], settings).key == target.key
    assert (settings == ()) == (base == wanted)


def test_what_the_catalog_does_not_hold_is_told_in_full_or_refused() -> None:
    files = shipped.scenarios()
    own = moesim.load(files[OLMOE], ["cluster.gpu.memory=141e9", "routing.load={zipf: 0.7}"])
    again = moesim.load(files[OLMOE], overrides_between(files[OLMOE], own))
    assert not differences([again.document(), own.document()])
    assert again.cluster.gpu.memory == 141e9
    with pytest.raises((UserError, ScenarioError)):
        overrides_between(Path("no-such-file.yaml"), own)


def test_search_finds_every_word_in_one_kind_or_in_all() -> None:
    assert [found["name"] for found in listing.search("nvl72 gb300", "gpus")] == ["gb300-nvl72"]
    kinds = {found["kind"] for found in listing.search("deepseek-v3")}
    assert {"models", "routers"} <= kinds
    assert listing.search("no-such-thing") == []
    assert {found["kind"] for found in listing.search("rail", "fabrics")} == {"fabrics"}


@pytest.mark.parametrize("kind", [row["kind"] for row in listing.overview()])
def test_every_entry_tells_its_sources(kind: str) -> None:
    for entry in listing.entries(kind)[:5]:
        for source in listing.sources(kind, entry["name"]):
            assert source["field"] is not None
            assert len(source) > 1


def test_legends_of_long_names_stand_above_in_as_many_columns_as_fit() -> None:
    names = {"domain": ["the batch's own sequences", "sampling", "popularity of experts"]}
    spec = {"mark": "bar", "encoding": {"color": {"field": "a", "type": "nominal", "scale": names, "legend": {}}}}
    legend = chart_theme.themed(spec, dark=False)["encoding"]["color"]["legend"]
    assert legend["orient"] == "top"
    assert legend["columns"] == {"expr": f"max(1, min(8, floor(width / {30 + 6 * (25 + 21) // 2})))"}
    spec["encoding"]["color"]["legend"] = {"orient": "bottom", "columns": 3}
    assert chart_theme.themed(spec, dark=False)["encoding"]["color"]["legend"]["orient"] == "bottom"


def test_dark_pages_lighten_marks_and_scales_that_would_drown() -> None:
    scale = {"scheme": {"name": "viridis", "extent": [0.0, 0.85]}}
    spec = {"mark": {"type": "line", "color": "#0072B2"}, "encoding": {"color": {"field": "a", "scale": scale}}}
    drawn = chart_theme.themed(spec, dark=True)
    assert drawn["mark"]["color"] == "#3D9BD9"
    assert drawn["encoding"]["color"]["scale"]["scheme"]["extent"] == [0.3, 1.0]
    light = chart_theme.themed(spec, dark=False)
    assert light["mark"] == spec["mark"]
    assert light["encoding"]["color"]["scale"] == scale


def test_a_line_of_comparison_is_labelled_within_the_picture_whatever_its_width() -> None:
    trace = store.load(recorded.find("traces", "cpu-small-gshard-top-2"))
    layers = TraceCharts(inspect(trace)).locality().to_dict()["layer"]
    (label,) = [layer for layer in layers if layer["mark"]["type"] == "text"]
    assert label["encoding"]["x"] == {"value": "width"}
