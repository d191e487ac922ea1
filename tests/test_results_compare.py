"""Comparisons: differences add up, and the sentence names the part that was really changed."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_fixture import Shape, dense, estimated, simulated
from rich.console import Console

import moesim
from moesim.errors import UserError
from moesim.provenance import Quantity
from moesim.results.compare import Comparison, Explanation, compare
from moesim.results.compare_inputs import differences, value_texts
from moesim.results.compare_kinds import FIRST
from moesim.results.compare_operations import HIDDEN, LESS_COLLECTIVES, seconds_by_operation
from moesim.results.compare_table import MOST_DIFFERENCES, comparison_table, print_comparison
from moesim.results.compare_waterfall import (
    FOLDED_OF_CHANGE,
    FOLDED_OF_STEP,
    SAME,
    axis_begin,
    bar_texts,
    begin_text,
    middle_cut,
    waterfall,
)
from moesim.results.result import Result

SCENARIOS = Path(__file__).parents[1] / "scenarios"


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


SECONDS = st.one_of(st.just(0.0), st.floats(1e-9, 1e4))
BREAKDOWNS = st.dictionaries(st.sampled_from("abcdefghijk"), SECONDS)


def changes(base: dict[str, float], other: dict[str, float]) -> tuple[tuple[str, float], ...]:
    found = {name: other.get(name, 0.0) - base.get(name, 0.0) for name in {**base, **other}}
    return tuple(sorted(found.items(), key=lambda item: -abs(item[1])))


@given(BREAKDOWNS, BREAKDOWNS)
def test_bars_lead_from_one_step_to_the_other(base: dict[str, float], other: dict[str, float]) -> None:
    steps = sum(base.values()), sum(other.values())
    bars = waterfall(("base", "other"), steps, changes(base, other))
    assert (bars[0].begin, bars[0].end, bars[-1].begin, bars[-1].end) == (0.0, steps[0], 0.0, steps[1])
    moves = bars[1:-1]
    for before, bar in zip(bars, moves, strict=False):
        assert bar.begin == before.end
    assert bars[-2].end == pytest.approx(steps[1], rel=2 * SAME, abs=2 * SAME * max(steps))
    sizes = [abs(bar.change) for bar in moves if not bar.folded]
    # The sum so far rounds what is added to it.
    assert all(larger >= smaller - 1e-9 * max(steps) for larger, smaller in pairwise(sizes))
    assert not any(bar.folded for bar in moves[:-1])
    assert len({bar.name for bar in bars}) == len(bars)


@given(BREAKDOWNS, BREAKDOWNS)
def test_folding_hides_little_and_names_what_it_holds(base: dict[str, float], other: dict[str, float]) -> None:
    parts = dict(changes(base, other))
    longest, moved = max(sum(base.values()), sum(other.values())), sum(map(abs, parts.values()))
    bars = waterfall(("base", "other"), (sum(base.values()), sum(other.values())), tuple(parts.items()))
    folded = bars[-2].folded if len(bars) > 2 else ()
    assert sum(abs(parts[name]) for name in folded) <= min(FOLDED_OF_STEP * longest, FOLDED_OF_CHANGE * moved)
    assert len(folded) != 1
    if moved > SAME * longest:
        named = {bar.name for bar in bars[1:-1] if not bar.folded}
        assert named | set(folded) == {name for name, change in parts.items() if change}


def test_small_differences_are_shown_when_steps_are_close() -> None:
    parts = (("attention", 0.003), ("experts", -0.002), ("router", 1e-6), ("optimizer", -2e-6))
    bars = waterfall(("a", "b"), (20.0, 20.000999), parts)
    assert [bar.name for bar in bars[1:-1]] == ["attention", "experts", "all else, 2 parts"]
    begin = axis_begin(bars)
    low, high = (edge(bar.end for bar in bars) for edge in (min, max))
    assert 19.99 < begin < low
    assert float(begin_text(bars).removesuffix(" s")) == pytest.approx(begin, rel=1e-9)
    assert high - low > 0.5 * (high - begin)
    assert [time for time, _ in bar_texts(bars)] == ["20.00000 s", "+0.00300 s", "−0.00200 s", "−1 us", "20.00100 s"]


def test_the_axis_begins_at_zero_where_changes_are_large_or_none() -> None:
    assert axis_begin(waterfall(("a", "b"), (3.0, 2.0), (("attention", -1.0),))) == 0.0
    assert axis_begin(waterfall(("a", "b"), (3.0, 3.0), (("attention", 0.0),))) == 0.0
    assert axis_begin(waterfall(("a", "b"), (0.0, 0.0), ())) == 0.0


def test_names_stay_apart_when_they_are_cut_or_equal_a_part() -> None:
    assert middle_cut("deepseek-v3-2048-h800-long (1)", 20) == "deepseek-v3…long (1)"
    assert len(middle_cut("x" * 500, 24)) == 24
    assert "\n" not in middle_cut("a\nb", 24)
    long = "the same beginning and then"
    bars = waterfall((long + "A" * 30 + "the end", long + "B" * 30 + "the end"), (1.0, 2.0), (("step of x", 1.0),))
    assert len({bar.name for bar in bars}) == 3


SETTINGS = ("simulation.microbatch_samples=1", "workload.global_batch=64")
CASES = {
    "plain": ("olmoe-8-h100", ()),
    "two steps with jitter": ("olmoe-8-h100", ("simulation.steps=2", "simulation.jitter=0.05")),
    "pipeline and tensor parallel": ("mixtral-8x7b-64-h100", ("routing.capacity=dropless",)),
    "overlapped": ("mixtral-8x7b-64-h100", ("routing.capacity=dropless", "overlap.expert_communication=true")),
    "full recompute": ("mixtral-8x7b-64-h100", ("routing.capacity=dropless", "recompute=full")),
    "dense": ("dense-100b-512-h100", ()),
}


@cache
def simulation(case: str) -> Result:
    name, settings = CASES[case]
    scenario = moesim.load(SCENARIOS / f"{name}.yaml", [*SETTINGS, *settings])
    return moesim.simulate(scenario, even_if_infeasible=True)  # what overlaps holds more activations


@pytest.mark.parametrize("case", CASES)
def test_operations_add_up_to_the_parts_of_real_simulations(case: str) -> None:
    result = simulation(case)
    found = seconds_by_operation(result)
    step = sum(result.breakdown.values())
    for part, total in result.breakdown.items():
        rows = {name: seconds for (its_part, name), seconds in found.items() if its_part == part}
        assert sum(rows.values()) == pytest.approx(total, rel=1e-9, abs=1e-8 * step)
    # Every kind of operation has its part: nothing of compute is left over but collectives that count elsewhere.
    collectives = "tensor and context parallel" in result.breakdown
    for part in {"attention", "router", "experts", "dense layers", "embedding and head"} & set(result.breakdown):
        left_over = [name for its_part, name in found if its_part == part and name.startswith(f"{part} ")]
        assert not any("between" in name or HIDDEN in name for name in left_over)
        assert collectives or not any(LESS_COLLECTIVES in name for name in left_over)


def test_operations_tell_what_overlap_hides() -> None:
    alone, beside = simulation("pipeline and tensor parallel"), simulation("overlapped")
    why = compare([alone, beside]).explanations[0]
    rows = {row.operation: row for row in why.operations if row.part == "exposed combine"}
    assert rows[f"combine {HIDDEN}"].change < 0
    assert f"combine {HIDDEN}" not in {name for _, name in seconds_by_operation(alone)}
    by_part = {part: sum(row.change for row in why.operations if row.part == part) for part, _ in why.parts}
    assert by_part == pytest.approx(dict(why.parts), abs=1e-8 * max(why.steps))
    assert list(dict.fromkeys(row.part for row in why.operations)) == [
        part for part, _ in why.parts if part in {row.part for row in why.operations}
    ]


def test_recomputed_operations_have_rows_of_their_own() -> None:
    why = compare([simulation("pipeline and tensor parallel"), simulation("full recompute")]).explanations[0]
    again = {row.operation: row for row in why.operations if "recompute" in row.operation}
    assert again["attention recompute"].base == 0.0 < again["attention recompute"].other
    assert "By operation, most changed: experts recompute (+" in why.sentence


def test_the_sentence_says_what_keeps_steps_from_being_compared() -> None:
    base, other = estimated(), replace(estimated(name="other"), breakdown={"attention": 1.0})
    assert "Estimates hold parts only" in compare([base, other]).explanations[0].sentence
    assert "Estimates" not in compare([base, estimated(name="same")]).explanations[0].sentence
    assert "the roads differ too" in compare([simulated(), other]).explanations[0].sentence
    assert compare([simulated(), other]).explanations[0].operations == ()
    assert "tokens" not in compare([base, other]).explanations[0].sentence
    rate = base.summary["tokens_per_second"]
    more = replace(other, summary={**other.summary, "tokens_per_second": replace(rate, value=3 * rate.value)})
    assert "A step of other trains 3 times the tokens of one of small-moe." in (
        compare([base, more]).explanations[0].sentence
    )


def test_inputs_that_differ_are_listed_and_what_follows_from_a_name_comes_last() -> None:
    base: dict[str, Any] = {
        "name": "a",
        "question": "why?",
        "model": {"name": "small", "layers": 4, "title": "Small", "sources": {"": "x"}},
        "cluster": {"gpu": {"name": "h100", "memory": 80e9}, "gpus": 8},
        "routing": {"capacity": "dropless", "seed": 0},
        "recompute": ("mlp",),
        "prices": {"gpu_hour": None},
    }
    other = {
        **base,
        "name": "b",
        "question": "how?",
        "model": {"name": "large", "layers": 8, "title": "Large", "sources": {"": "y"}},
        "cluster": {"gpu": {"name": "h100", "memory": 80.5e9}, "gpus": 8},
        "routing": {"capacity": {"factor": 1.25}, "seed": 0},
        "recompute": ["mlp"],
        "prices": {},
    }
    found = differences([base, other])
    assert {one.path: one.values for one in found} == {
        "model.name": ("small", "large"),
        "cluster.gpu.memory": (80e9, 80.5e9),
        "routing.capacity": ("dropless", {"factor": 1.25}),
        "model.layers": (4, 8),
    }
    assert [one.path for one in found][-1] == "model.layers"
    assert [value_texts(one) for one in found][1:3] == [["8e+10", "8.05e+10"], ["dropless", "{factor: 1.25}"]]
    assert differences([base, base, base]) == ()


def test_values_that_differ_look_different() -> None:
    one = differences([{"x": {"y": 1.0000001}}, {"x": {"y": 1.0000002}}])[0]
    assert len(set(value_texts(one))) == 2
    layout = differences([{"layout": [4, 4, 4, 1]}, {"layout": [4, 4, 3, 2]}, {"layout": None}])[0]
    assert value_texts(layout) == ["[3 x 4, 1]", "[2 x 4, 3, 2]", "–"]


def test_json_keeps_its_keys_and_tells_bars_operations_and_inputs() -> None:
    comparison = compare([simulated(), simulated(Shape(slow_network=3.0), name="slow")])
    document = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert list(document) == ["names", "differences", "metrics", "step_time"]
    why = document["step_time"][0]
    assert list(why) == ["difference", "parts", "sentence", "steps", "bars", "operations"]
    assert why["parts"] == dict(comparison.explanations[0].parts)
    assert why["steps"][1] - why["steps"][0] == pytest.approx(why["difference"])
    assert why["bars"][0]["end"] == why["steps"][0]
    assert {"part", "operation", "base", "other", "change"} == set(why["operations"][0])


def printed(comparison: Comparison, width: int) -> str:
    console = Console(width=width, color_system=None, markup=False)
    with console.capture() as captured:
        print_comparison(comparison, console)
    return captured.get()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_everything_prints_in_eighty_columns(count: int) -> None:
    shapes = [Shape(), Shape(slow_network=3.0, seed=8), Shape(microbatches=32, seed=9), Shape(layers=32)]
    results = [simulated(shape, name="a-rather-long-scenario-name") for shape in shapes[:count]]
    told = printed(compare(results), 80)
    assert all(len(line) <= 80 for line in told.splitlines())
    for words in ("Inputs that differ", "From step to step", "By operation", "exposed combine", "█", "datasheet"):
        assert words in told
    assert told.count("From step to step") == count - 1


def test_many_inputs_are_counted_and_names_are_no_markup() -> None:
    base = simulated(name="[red]a[/red]")
    other = replace(base, name="b\x1b[31m", scenario={**base.scenario, "extra": {f"key{i}": i for i in range(20)}})
    base = replace(base, scenario={**base.scenario, "extra": {f"key{i}": -i - 1 for i in range(20)}})
    told = printed(compare([base, other]), 100)
    assert f"and {20 - MOST_DIFFERENCES} more, in extra; --json tells all" in " ".join(told.split())
    assert "[red]a[/red]" in told
    assert "\x1b" not in told


def test_the_same_scenario_twice_has_no_part_to_show() -> None:
    comparison = compare([simulated(), simulated()])
    why: Explanation = comparison.explanations[0]
    assert [bar.kind for bar in why.bars] == ["whole", "whole"]
    assert why.sentence.endswith("take the same time in every part.")
    told = printed(comparison, 80)
    assert "Inputs that differ" not in told
    assert "By operation" not in told
