"""A plan's answer on the page: the winner, the Pareto front, the candidates, what was rejected, and the files."""

from __future__ import annotations

import json
from collections.abc import Hashable

import pandas as pd
import streamlit as st

import moesim
from moesim.planner.explain import label, settings
from moesim.planner.frame import rows_frame
from moesim.planner.plan import ModelPlan, Plan, Row
from moesim.planner.store import candidates, winner_yaml
from moesim.results.overrides import overrides_between
from moesim.scenario.loading import to_yaml
from shared import answers, links, shown

PAGE = "plan"
HEADLINE = ("training_time", "step_time", "model_flops_utilization", "memory_per_gpu")
SHORT = {
    "road": "By",
    "cluster.gpu": "GPU",
    "cluster.gpus": "GPUs",
    "days": st.column_config.NumberColumn("Days", format="%.3g"),
    "cost": st.column_config.NumberColumn("Cost", format="dollar"),
    "gpu_hours": st.column_config.NumberColumn("GPU-hours", format="compact"),
    "fits_in_memory": st.column_config.NumberColumn("Memory used", format="percent"),
    "dropped_token_fraction": st.column_config.NumberColumn("Dropped", format="percent"),
    "pareto": "Pareto",
}
LAYOUT = ("tensor", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "context")


def show(plan: Plan, name: str, key: Hashable) -> None:
    """The answer for the one model of the page; `name`: the shipped scenario that it started from."""
    model = plan.models[0]
    st.caption(f"{model.total:,} combinations, {model.screened:,} screened, {model.feasible:,} keep all limits")
    winner = model.winner
    if winner is None:
        st.warning("**Nothing keeps all limits**", icon=":material/block:")
    else:
        st.subheader(shown.plain(label(winner)), anchor=False)
        st.caption(f"{shown.plain(settings(winner))} · {'simulated' if winner.road == 'simulate' else 'closed form'}")
        shown.tiles(winner.summary, ("cost" if "cost" in winner.summary else "gpu_hours", *HEADLINE))
    st.markdown("\n".join(f"- {_said(sentence)}" for sentence in model.words))
    if model.rows:
        _front(plan, model, name, key)
    _rows(model, name)
    _files(plan, model)
    _rejected(model)
    if model.notes:
        with st.expander("Notes"):
            st.markdown("\n".join(f"- {_said(note)}" for note in model.notes))


def _said(sentence: str) -> str:
    """A sentence of the planner, with the name of the control in place of the command's option."""
    return shown.plain(sentence.replace("--gpus", "How many"))


def _front(plan: Plan, model: ModelPlan, name: str, key: Hashable) -> None:
    picture = shown.kept_chart(("plan", key), model.chart)
    frame = answers.kept("plan-frames", 8).get(key, lambda: candidates(plan).to_pandas())
    picked = shown.chart_with_table(picture, frame, f"{PAGE}-front", "candidates", select=True)
    st.caption(
        "Large points are the Pareto front of time, cost, memory and drops: no other layout is better in one of the "
        "four without being worse in another. A click on a point opens that layout in What if."
    )
    places = (picked or {}).get("selection", {}).get("picked") or []
    if places:
        _open(model.candidate(int(places[0]["place"])), name)


def _rows(model: ModelPlan, name: str) -> None:
    """The answered candidates as a table, and what can be done with one of them."""
    rows: tuple[Row, ...] = model.rows or ((model.closest,) if model.closest else ())
    if not rows:
        return
    st.markdown("**Candidates that were answered in full**" if model.rows else "**The closest candidate**")
    frame = rows_frame(model)
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    degrees = {f"parallelism.{degree}": degree.replace("_", " ") for degree in LAYOUT}
    order = ["road", "cluster.gpus", "cluster.gpu", "days", "cost" if "cost" in frame else "gpu_hours"]
    order += [
        "fits_in_memory",
        "dropped_token_fraction",
        *degrees,
        "workload.micro_batch",
        "recompute",
        "schedule.kind",
    ]
    st.dataframe(frame, column_order=[*order, "pareto"], column_config={**SHORT, **degrees}, key=f"{PAGE}-rows")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        told = [f"{at}. {label(row)}" for at, row in enumerate(rows, 1)]
        place = st.selectbox("Candidate", range(len(rows)), format_func=told.__getitem__, key=f"{PAGE}-candidate")
        row = rows[place or 0]
        if st.button("Open in What if", key=f"{PAGE}-open", icon=":material/tune:"):
            _open(row.scenario, name)
        text = to_yaml(row.scenario.document())
        shown.download("Scenario (YAML)", text.encode, f"{row.scenario.name}.yaml", f"{PAGE}-yaml")


def _open(wanted: moesim.Scenario, name: str) -> None:
    """Opens a candidate in What if, as changes of the scenario that the plan started from."""
    found = answers.attempt(lambda: overrides_between(answers.scenario_files()[name], wanted))
    if found.value is None:
        shown.problems(found.problems)
        return
    links.go("what-if", {"scenario": name, "set": found.value})


def _files(plan: Plan, model: ModelPlan) -> None:
    with st.container(horizontal=True):
        if model.rows:
            shown.download("Winner (YAML)", lambda: winner_yaml(model).encode(), "winner.yaml", f"{PAGE}-winner")
        shown.download("Plan (JSON)", lambda: json.dumps(plan.as_dict()).encode(), "plan.json", f"{PAGE}-json")
        shown.downloads(rows_frame(model), f"{PAGE}-rows", "answered")


def _rejected(model: ModelPlan) -> None:
    lines = [(code, count, model.meanings[code]) for code, count in model.rejected.items()]
    frame = pd.DataFrame(lines, columns=["reason", "candidates", "meaning"])
    with st.expander(f"Rejected: {sum(model.rejected.values()):,}, each by its binding reason"):
        st.dataframe(frame, hide_index=True, key=f"{PAGE}-rejected")
