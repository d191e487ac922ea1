"""Compare: up to four scenarios side by side, and what makes one step, or one iteration of serving, longer."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

import moesim
from moesim.provenance import worst
from moesim.results.compare import Comparison
from moesim.results.compare_inputs import value_texts
from moesim.results.compare_kinds import TRAINING
from moesim.results.compare_report import page as report_page
from moesim.results.compare_table import signed
from moesim.results.table import metric_label
from moesim.scenario.loading import AnyScenario
from moesim.scenario.serving import ServingScenario
from shared import answers, links, shown, slow
from views.compare_slots import DEFAULTS, PAGE, SLOTS, Slot, slots

KEYS = tuple(SLOTS)
MAIN = (
    "step_time",
    "tokens_per_second_per_gpu",
    "model_flops_utilization",
    "exposed_communication_time",
    "dropped_token_fraction",
    "rank_load_max_over_mean",
    "memory_per_gpu",
    "training_time",
    "cost",
)
_COMPARISONS = 32


def page() -> None:
    """Draws the page."""
    state = links.state(PAGE, KEYS)
    if not state:
        state.update(DEFAULTS)
    st.title("Compare")
    st.markdown("Scenarios side by side; every change is told against **A**.")
    chosen = slots(state)
    if len(chosen) < 2:
        st.info("Choose two scenarios that run, or more.")
    else:
        _compared(chosen)
    links.publish(PAGE, DEFAULTS)


def _compared(chosen: list[Slot]) -> None:
    found = _results([slot.scenario for slot in chosen])
    shown.problems([problem for answer in found for problem in answer.problems], "Not every scenario has an answer")
    results = [answer.value for answer in found if answer.value is not None]
    if len(results) < 2:
        return
    answered = [(answer.value, slot) for answer, slot in zip(found, chosen, strict=True) if answer.value is not None]
    key = tuple((result.name, result.road, slot.scenario.key) for result, slot in answered)
    ask = lambda: answers.attempt(lambda: moesim.compare(results))  # noqa: E731
    comparison = answers.kept("comparisons", _COMPARISONS).get(key, ask)
    if comparison.value is None:
        shown.problems(comparison.problems)
        return
    _metrics(comparison.value)
    _explanations(comparison.value, key)
    _inputs(comparison.value)
    _take_away(comparison.value)


def _results(scenarios: list[AnyScenario]) -> list[answers.Answer[Any]]:
    """The closed form of each, or the simulation of each where all have been simulated."""
    known = all(map(answers.simulated, scenarios))
    asked = not known and st.button("Simulate all", key=f"{PAGE}-simulate", icon=":material/play_arrow:")
    if not (known or asked):
        slow.told_stopped(PAGE)
        st.caption("Closed form. Simulated, steps are told by operation, and requests with their 99th percentiles.")
        return [_estimate(scenario) for scenario in scenarios]
    if asked:
        slow.run(PAGE, "simulating", lambda progress: _simulated(scenarios, progress))
        st.rerun()
    st.caption("Simulated.")
    return [_simulate(scenario) for scenario in scenarios]


def _estimate(scenario: AnyScenario) -> answers.Answer[Any]:
    return answers.steady(scenario) if isinstance(scenario, ServingScenario) else answers.estimate(scenario)


def _simulate(scenario: AnyScenario, progress: slow.Progress | None = None) -> answers.Answer[Any]:
    found = answers.serve if isinstance(scenario, ServingScenario) else answers.simulate
    return found(scenario, progress)


def _simulated(scenarios: list[AnyScenario], progress: slow.Progress) -> None:
    """Simulates one after another; the bar is over all of them."""
    for place, scenario in enumerate(scenarios):

        def hear(what: str, share: float, place: int = place, name: str = scenario.name) -> None:
            progress(f"{name}: {what}", (place + min(max(share, 0.0), 1.0)) / len(scenarios))

        _simulate(scenario, hear)


def _metrics(comparison: Comparison) -> None:
    rows = []
    for metric in comparison.metrics:
        row: dict[str, object] = {"metric": metric_label(metric.name)}
        for place, (name, value, ratio) in enumerate(zip(comparison.names, metric.values, metric.ratios, strict=True)):
            row[name] = shown.value_text(value.value, metric.unit) if value else "–"
            if place:
                row[f"ratio to A: {name[:1]}"] = "–" if ratio is None else f"{ratio:.4g}"
        row["basis"] = worst(value.basis for value in metric.values if value)
        rows.append((metric.name, row))
    first = MAIN if comparison.kind is TRAINING else comparison.kind.first
    main = pd.DataFrame([row for name, row in rows if name in first])
    st.dataframe(main, hide_index=True, key=f"{PAGE}-main")
    shown.table(pd.DataFrame([row for _, row in rows]), f"{PAGE}-metrics", "all-metrics")


def _explanations(comparison: Comparison, key: object) -> None:
    """A waterfall from A to each of the others, and a sentence."""
    for which, why in enumerate(comparison.explanations, 1):
        name, whole = comparison.names[why.which], why.whole.name
        of = "" if whole == "step" else f": {whole}"
        st.subheader(f"From A to {shown.plain(name)}{of}", divider="gray")
        st.markdown(shown.plain(why.sentence))
        chart = shown.kept_chart(("waterfall", key, which), lambda which=which: comparison.charts.waterfall(which))
        operations = [{**row.as_dict(), "reads": signed(row.change)} for row in why.operations]
        parts = [{"part": part, "change": change, "reads": signed(change)} for part, change in why.parts]
        frame = pd.DataFrame(operations or parts)
        shown.chart_with_table(chart, frame, f"{PAGE}-waterfall-{which}", "by-operation" if operations else "by-part")


def _inputs(comparison: Comparison) -> None:
    st.subheader("Inputs that differ", divider="gray")
    if not comparison.differences:
        st.caption("None: these are the same scenario.")
        return
    rows = [
        {"input": one.path, **dict(zip(comparison.names, value_texts(one), strict=True))}
        for one in comparison.differences
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, key=f"{PAGE}-inputs")


def _take_away(comparison: Comparison) -> None:
    with st.container(horizontal=True):
        shown.download("Report (HTML)", lambda: report_page(comparison).encode(), "comparison.html", f"{PAGE}-html")
        shown.download(
            "Comparison (JSON)", lambda: json.dumps(comparison.as_dict()).encode(), "comparison.json", f"{PAGE}-json"
        )
