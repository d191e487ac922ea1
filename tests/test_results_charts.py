"""Every picture: complete, light, drawn without a network, and without touching the user's altair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import altair as alt
import numpy as np
import pytest
import vl_convert
from results_fixture import LARGE, Shape, dense, estimated, simulated

from moesim.results.chart_style import axis_unit, colours
from moesim.results.result import Result

NAMES = ("breakdown", "memory", "expert_load", "traffic", "timeline")
RESULTS = {"simulated": simulated(), "estimated": estimated(), "dense": dense()}


def spec(result: Result, name: str) -> dict[str, Any]:
    return getattr(result.charts, name)().to_dict()


def nodes(value: Any) -> list[dict[str, Any]]:
    """Every mapping inside a specification."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [node for child in inner for node in nodes(child)]
    return [value, *found] if isinstance(value, dict) else found


def rows(result: Result, name: str) -> int:
    return sum(len(values) for values in spec(result, name)["datasets"].values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", RESULTS)
def test_every_picture_draws_and_has_a_title(kind: str, name: str) -> None:
    drawn = vl_convert.vegalite_to_svg(spec(RESULTS[kind], name))
    assert drawn.startswith("<svg")
    assert any(
        isinstance(node.get("title"), dict) and node["title"]["text"] for node in nodes(spec(RESULTS[kind], name))
    )


@pytest.mark.parametrize("name", NAMES)
def test_axes_say_their_unit_and_marks_have_tooltips(name: str) -> None:
    found = nodes(spec(RESULTS["simulated"], name))
    axes = [node["axis"] for node in found if node.get("type") == "quantitative" and isinstance(node.get("axis"), dict)]
    assert axes
    assert all(axis["title"] and axis["labelFontSize"] >= 11 for axis in axes)
    assert any("tooltip" in node for node in found)


@pytest.mark.parametrize("name", NAMES)
def test_one_result_gives_one_specification(name: str) -> None:
    assert spec(simulated(), name) == spec(simulated(), name)


def test_no_bar_is_summed_under_its_tooltip() -> None:
    assert not any("aggregate" in node for name in NAMES for node in nodes(spec(RESULTS["simulated"], name)))


def test_large_results_stay_light_and_the_users_altair_is_untouched() -> None:
    before = (alt.data_transformers.active, dict(alt.data_transformers.options), alt.theme.active)
    large = simulated(LARGE)
    assert rows(large, "timeline") <= 6_000
    assert rows(large, "expert_load") <= 21_000
    assert rows(large, "traffic") == 64 * 64
    assert (alt.data_transformers.active, dict(alt.data_transformers.options), alt.theme.active) == before


def test_many_experts_are_drawn_by_their_busiest() -> None:
    result = simulated(Shape(layers=4, experts=2048, ranks=64))
    values = next(v for v in spec(result, "expert_load")["datasets"].values() if "load" in v[0])
    assert len(values) == 4 * 512
    tokens = result.routing_columns["tokens"].reshape(4, 4, 2048)
    load = (tokens / tokens.mean(axis=(1, 2), keepdims=True)).mean(axis=1)
    assert values[0]["load"] == pytest.approx(load[0, :4].max(), rel=1e-3)


def test_breakdown_and_memory_show_every_part() -> None:
    result = RESULTS["simulated"]
    for name, parts in (("breakdown", result.breakdown), ("memory", result.memory)):
        shown = [row["part"] for values in spec(result, name)["datasets"].values() for row in values if "part" in row]
        assert len(shown) == len(parts)
        assert all(any(text.startswith(part) for text in shown) for part in parts)


def test_memory_shows_the_gpus_limit_where_it_is_known() -> None:
    result = RESULTS["simulated"]
    drawn = vl_convert.vegalite_to_svg(spec(result, "memory"))
    assert "80 GB GPU" in drawn
    unknown = replace(result, summary={})
    assert "GB GPU" not in vl_convert.vegalite_to_svg(spec(unknown, "memory"))


def test_absent_data_say_why() -> None:
    assert "simulate to see them" in vl_convert.vegalite_to_svg(spec(estimated(), "timeline"))
    assert "no routed experts" in vl_convert.vegalite_to_svg(spec(dense(), "expert_load"))
    assert "no expert parallelism" in vl_convert.vegalite_to_svg(spec(dense(), "traffic"))
    empty = replace(simulated(), breakdown={}, memory={})
    assert "no breakdown" in vl_convert.vegalite_to_svg(spec(empty, "breakdown"))
    assert "no memory parts" in vl_convert.vegalite_to_svg(spec(empty, "memory"))


def test_overlapping_phases_stand_beside_each_other() -> None:
    columns = simulated().operation_columns
    shifted = columns["begin_mean"] - np.where(columns["phase"] == "backward", 0.03, 0.0)
    dual = replace(simulated(), operation_columns={**columns, "begin_mean": shifted})
    assert any("yOffset" in node for node in nodes(spec(dual, "timeline")))
    assert not any("yOffset" in node for node in nodes(spec(simulated(), "timeline")))


def test_pictures_can_be_joined_by_the_user() -> None:
    charts = simulated().charts
    joined = alt.vconcat(charts.breakdown(), charts.expert_load(), charts.timeline()).to_dict()
    assert vl_convert.vegalite_to_svg(joined).startswith("<svg")


def test_colours_are_steady_and_distinct() -> None:
    memory = list(simulated().memory)
    assert len(set(colours(memory))) == len(memory)
    assert colours(["dispatch"]) == colours(["exposed dispatch"])
    assert colours(["zeta", "alpha"]) == colours(["alpha", "zeta"])[::-1]
    assert colours(["step", "forward"])[1] == colours(["forward"])[0]


def test_axis_units_follow_the_largest_value() -> None:
    assert axis_unit([0.2, 0.012], "s") == (1e-3, "ms")
    assert axis_unit([81e9], "B") == (1e9, "GB")
    assert axis_unit([0.0], "B") == (1.0, "B")
