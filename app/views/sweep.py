"""Sweep: one scenario along one or two axes, under several seeds; any metric as lines or as a heat map."""

from __future__ import annotations

import streamlit as st

import moesim
from moesim.columns import SUMMARY
from moesim.results.table import metric_label
from moesim.sweeps import charts
from moesim.sweeps.result import Sweep
from shared import answers, fields, links, shown, slow
from views.sweep_question import KEYS, PAGE, Asked, controls

SWEEPS = 12
VIEWS = {"lines": "Lines", "heat-map": "Heat map"}


def page() -> None:
    """Draws the page."""
    links.state(PAGE, KEYS)
    if not answers.scenario_files():
        st.error("No scenario is shipped with this installation.")
        return
    with st.sidebar:
        asked = controls()
    st.title("Sweep")
    st.markdown("How does a metric change along one or two inputs? Every combination is answered, under every seed.")
    shown.problems(asked.problems, "This sweep cannot run")
    if asked.spec is not None:
        _answer(asked)
    links.publish(PAGE)


def _answer(asked: Asked) -> None:
    sweeps = answers.kept("sweeps", SWEEPS)
    if not sweeps.holds(asked.key):
        st.caption(f"{asked.count:,} points by the {'simulation' if asked.road == 'simulate' else 'closed form'}.")
        slow.told_stopped(PAGE)
        if not st.button("Run", key=f"{PAGE}-run", type="primary", icon=":material/play_arrow:"):
            return
        found = slow.run(PAGE, "sweeping", lambda progress: _sweep(asked, progress))
        if found.value is None:
            shown.problems(found.problems, "No sweep")
            return
        swept = found.value
        sweeps.get(asked.key, lambda: swept)
        st.rerun()
    _show(asked, sweeps.get(asked.key, lambda: _sweep(asked, None)))


def _sweep(asked: Asked, progress: slow.Progress | None) -> Sweep:
    return moesim.sweep(asked.spec or {}, progress=progress)


def _show(asked: Asked, sweep: Sweep) -> None:
    """What the sweep brought: a metric as chart, what has no answer, the whole table."""
    known = [name for name in sweep.metrics if sweep.table[name].notna().any()]
    counts = ", ".join(f"{count:,} {status}" for status, count in sweep.counts.items())
    st.caption(f"{counts}")
    if known:
        _chart(asked, sweep, known)
    if len(sweep.failed):
        st.markdown("**Points without an answer**")
        st.dataframe(sweep.failed.drop(columns="key"), hide_index=True, key=f"{PAGE}-failed")
    shown.table(sweep.table, f"{PAGE}-all", "sweep")


def _chart(asked: Asked, sweep: Sweep, known: list[str]) -> None:
    first = "step_time" if "step_time" in known else known[0]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        metric = fields.choice(PAGE, "metric", "Metric", known, first, told=metric_label)
        two = len(asked.axes) == 2
        view = "lines"
        if two:
            view = fields.choice(PAGE, "view", "Drawn as", VIEWS, "lines", told=VIEWS.__getitem__, horizontal=True)
    if metric in SUMMARY:
        st.caption(shown.plain(SUMMARY[metric].meaning))
    x, y = asked.axes[0], asked.axes[-1] if two else None
    key = ("sweep", asked.key, metric, view)
    if view == "heat-map" and y is not None:
        drawn = shown.kept_chart(key, lambda: charts.heat_map(sweep, metric, x, y))
    else:
        drawn = shown.kept_chart(key, lambda: charts.lines(sweep, metric, x, y))
    shown.chart_with_table(drawn, charts.points(sweep, metric, asked.axes), f"{PAGE}-{view}", f"sweep-{metric}")
