"""The pictures of What if that the closed form answers: step, memory, routing, network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

import moesim
from moesim import curves, roads
from moesim.results.curve import Curve
from moesim.results.curve_charts import curve_chart
from moesim.results.step_stack_chart import step_stack
from moesim.results.topology_chart import topology_chart
from moesim.results.views import rank_totals
from shared import answers, shown

PAGE = "what-if"
QUICK_SECONDS = 0.4
_CURVES = 64
_WHOLE_MATRIX = 128


def draw(view: str, asked: moesim.Scenario, result: moesim.Result, baseline: moesim.Result | None) -> None:
    """One view's pictures."""
    if view == "step":
        _stack(asked, result, baseline)
    {"step": _step, "routing": _routing, "network": _network}[view](asked, result)


def picture(kind: str, asked: moesim.Scenario, result: moesim.Result) -> dict[str, Any]:
    """One of the result's own charts, kept by content."""
    return shown.kept_chart((kind, result.road, asked.key), lambda: getattr(result.charts, kind)())


def _stack(asked: moesim.Scenario, result: moesim.Result, baseline: moesim.Result | None) -> None:
    """The step as a stacked bar, and the baseline's below it."""
    steps = {"now": result.breakdown, **({"baseline": baseline.breakdown} if baseline else {})}
    key = ("stack", asked.key, hash(str(baseline.breakdown)) if baseline else None)
    drawn = shown.kept_chart(key, lambda: step_stack(steps))
    frame = pd.DataFrame(
        [
            {"part": part, **{name: parts.get(part, 0.0) for name, parts in steps.items()}, "unit": "s"}
            for part in dict.fromkeys(part for parts in steps.values() for part in parts)
        ]
    )
    shown.chart_with_table(drawn, frame, f"{PAGE}-stack", "step-stacked")


def _step(asked: moesim.Scenario, result: moesim.Result) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        parts = shown.quantity_frame(result.parts("step_time"))
        shown.chart_with_table(picture("breakdown", asked, result), parts, f"{PAGE}-breakdown", "step-by-part")
    with right:
        parts = shown.quantity_frame(result.parts("memory_per_gpu"))
        shown.chart_with_table(picture("memory", asked, result), parts, f"{PAGE}-memory", "memory-by-part")
        for note in (note for note in result.notes if note.startswith("memory")):
            st.caption(shown.plain(note))


def _routing(asked: moesim.Scenario, result: moesim.Result) -> None:
    if result.routing_columns is None:
        st.info("A dense model routes no tokens.")
        return
    load = picture("expert_load", asked, result)
    shown.chart_with_table(load, result.routing, f"{PAGE}-experts", "expert-load", columns=(3, 1))
    left, right = st.columns(2, gap="large")
    quick = _is_quick(asked)
    with left:
        _curve("drops", asked, curves.capacity_curve, quick)
    with right:
        _curve("imbalance", asked, curves.expert_parallel_curve, quick)


def _is_quick(asked: moesim.Scenario) -> bool:
    """Whether a whole curve may be drawn without being asked for."""
    return answers.seconds(asked) < QUICK_SECONDS


def _curve(kind: str, asked: moesim.Scenario, ask: Callable[[moesim.Scenario], Curve], quick: bool) -> None:
    store, key = answers.kept("curves", _CURVES), (kind, asked.key)
    names, title = _CURVE_KINDS[kind]
    if not store.holds(key) and not quick:
        st.markdown(f"**{title}**")
        st.caption("Each point of this curve takes this scenario about a second.")
        if not st.button(f"Draw {title.lower()}", key=f"{PAGE}-draw-{kind}"):
            return
    with st.spinner(f"{title} ..."):
        found = store.get(key, lambda: answers.attempt(lambda: ask(asked)))
    if found.value is None:
        shown.problems(found.problems)
        return
    curve = found.value
    chart = shown.kept_chart(
        (kind, "curve", asked.key), lambda: curve_chart(curve, names, title, doubling=kind == "imbalance")
    )
    shown.chart_with_table(chart, curve.frame(), f"{PAGE}-{kind}", f"{kind}-curve")


_CURVE_KINDS = {
    "drops": (curves.DROPS, "Drops against capacity factor"),
    "imbalance": (curves.IMBALANCE, "Imbalance against expert parallelism"),
}


def _network(asked: moesim.Scenario, result: moesim.Result) -> None:
    if result.traffic is None or not asked.exchanges_tokens:
        st.info("No tokens are sent between ranks: there is no expert parallelism.")
        return
    store = answers.kept("links", _CURVES)
    used = store.get(asked.key, lambda: answers.attempt(lambda: roads.link_use(asked)))
    if used.value is None:
        shown.problems(used.problems)
    else:
        use = used.value
        drawn = shown.kept_chart(("links", asked.key), lambda: topology_chart(use))
        shown.chart_with_table(drawn, use.frame(), f"{PAGE}-links", "link-use")
    left, right = st.columns([3, 2], gap="large")
    with left:
        traffic = picture("traffic", asked, result)
        shown.chart_with_table(traffic, _traffic_frame(result), f"{PAGE}-traffic", "dispatch-traffic")
    with right:
        _dispatchers(asked)


def _traffic_frame(result: moesim.Result) -> pd.DataFrame:
    """Bytes from each rank (row) to each rank; of many ranks, what each block of them sends and receives."""
    traffic = result.traffic
    if traffic is None:
        return pd.DataFrame()
    if len(traffic) > _WHOLE_MATRIX:
        return pd.DataFrame([vars(total) for total in rank_totals(traffic)])
    frame = pd.DataFrame(traffic, columns=[f"to {rank}" for rank in range(len(traffic))])
    frame.insert(0, "from rank", range(len(traffic)))
    return frame


def _dispatchers(asked: moesim.Scenario) -> None:
    """The same scenario under every dispatcher."""
    st.markdown("**Every dispatcher on this scenario**")
    store = answers.kept("dispatchers", _CURVES)
    if not store.holds(asked.key) and not st.button("Compare dispatchers", key=f"{PAGE}-dispatchers"):
        st.caption("Prices the scenario under each of them, the quickest first.")
        return
    fresh = not store.holds(asked.key)
    found = store.get(asked.key, lambda: answers.attempt(lambda: moesim.compare_dispatchers(asked)))
    if fresh:
        st.rerun()  # without its button
    if found.value is None:
        shown.problems(found.problems)
        return
    rows = [
        {
            "dispatcher": row.name,
            "step": shown.value_text(row.result.summary["step_time"].value, "s") if row.result else "–",
            "dispatch": shown.value_text(row.result.summary["dispatch_time"].value, "s") if row.result else "–",
            "why not": row.refusal or "",
        }
        for row in found.value
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, key=f"{PAGE}-dispatcher-table")
