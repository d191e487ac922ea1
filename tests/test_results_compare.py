"""Comparisons: differences add up, and the sentence names the part that was really changed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from results_fixture import Shape, dense, simulated
from rich.console import Console

from moesim.errors import UserError
from moesim.provenance import Quantity
from moesim.results.compare import FIRST, compare, comparison_table
from moesim.results.result import Result


def test_a_slower_network_is_named() -> None:
    comparison = compare([simulated(), simulated(Shape(slow_network=3.0), name="slow")])
    why = comparison.explanations[0]
    assert why.parts[0][0] == "exposed combine"
    assert "slow" in why.sentence
    assert "longer" in why.sentence
    assert "exposed combine (+" in why.sentence
    assert "then exposed dispatch (+" in why.sentence
    assert sum(change for _, change in why.parts) == pytest.approx(why.difference)
    assert [abs(change) for _, change in why.parts] == sorted((abs(c) for _, c in why.parts), reverse=True)


def parts(name: str, **seconds: float) -> Result:
    return replace(simulated(name=name), breakdown=seconds)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"a": 1.0, "b": 2.0}, "the same time in every part"),
        ({"a": 2.0, "b": 1.0}, "take the same time; inside, a (+1 s) differs most"),
        ({"a": 2.0, "b": 2.0}, "is 1 s (33.3 %) longer than that of base: mostly by a (+1 s)."),
        ({"a": 1.0}, "is 2 s (66.7 %) shorter than that of base: mostly by b (−2 s)."),
        ({"a": 4.0, "b": 1.0}, "longer than that of base: mostly by a (+3 s), against b (−1 s)."),
        ({"a": 1.5, "b": 2.3, "c": 0.4}, "first by a (+500 ms), then c (+400 ms)."),
    ],
)
def test_the_sentence_fits_the_parts(other: dict[str, float], said: str) -> None:
    why = compare([parts("base", a=1.0, b=2.0), parts("other", **other)]).explanations[0]
    assert said in why.sentence


def test_every_metric_stands_side_by_side() -> None:
    base, other = simulated(), simulated(Shape(slow_network=2.0), name="slow")
    extra = replace(other, summary={**other.summary, "skew_time": Quantity.exact(0.5, "s")})
    comparison = compare([base, extra])
    found = {metric.name: metric for metric in comparison.metrics}
    assert set(found) == set(base.summary) | {"skew_time"}
    assert [m.name for m in comparison.metrics[: len(FIRST)]] == list(FIRST)
    step = found["step_time"]
    assert step.differences[1] == pytest.approx(extra.summary["step_time"].value - base.summary["step_time"].value)
    assert step.ratios == (1.0, extra.summary["step_time"].value / base.summary["step_time"].value)
    assert found["skew_time"].values[0] is None
    assert found["skew_time"].ratios == (None, None)
    assert found["dropped_token_fraction"].ratios == (None, None)


def test_json_is_strict_and_names_are_told_apart() -> None:
    comparison = compare([simulated(), simulated(), dense()])
    document = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert document["names"] == ["small-moe (1)", "small-moe (2)", "small-dense"]
    assert len(document["step_time"]) == 2
    assert document["metrics"]["step_time"]["ratios"][:2] == [1.0, 1.0]


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_two_results(width: int) -> None:
    comparison = compare([simulated(), simulated(Shape(slow_network=2.0), name="slow[i]net")])
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(comparison_table(comparison))
    lines = captured.get().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "slow[i]net" in captured.get()
    assert "…" not in captured.get()
    assert any("step time" in line and "fitted" in line for line in lines)


def test_one_result_is_no_comparison() -> None:
    with pytest.raises(UserError, match="at least two"):
        compare([simulated()])
