"""What if, slowly: the simulation on a button with progress, its timeline, and every number and file to take away."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import streamlit as st

import moesim
from moesim.results.report import write_html
from moesim.scenario.loading import to_yaml
from shared import answers, links, shown, slow
from views.what_if_charts import picture

PAGE = "what-if"
SIMULATED = (
    "step_time",
    "tokens_per_second_per_gpu",
    "model_flops_utilization",
    "communication_fraction",
    "skew_fraction",
)


def timeline(asked: moesim.Scenario) -> None:
    """The simulated step, once it has been asked for; any change of the scenario stops a running simulation."""
    if not answers.simulated(asked):
        settings = asked.simulation
        st.caption(
            f"The timeline comes from the discrete-event simulation: {settings.steps} step"
            f"{'s' if settings.steps > 1 else ''}, {settings.microbatch_samples} routing samples a layer, seed "
            f"{settings.seed}. It is kept, so that the same scenario is simulated once."
        )
        slow.told_stopped(PAGE)
        if not st.button("Simulate", key=f"{PAGE}-simulate", type="primary", icon=":material/play_arrow:"):
            return
    result = _simulated(asked)
    if result is None:
        return
    estimated = answers.estimate(asked).value
    st.markdown("**Simulated**, with the change against the closed form")
    shown.tiles(result.summary, SIMULATED, estimated.summary if estimated else None, "simulated")
    shown.chart_with_table(picture("timeline", asked, result), result.operations, f"{PAGE}-timeline", "operations")
    with st.container(horizontal=True):
        _files(asked, result)


def _simulated(asked: moesim.Scenario) -> moesim.Result | None:
    """The simulation's result, with a bar while it runs and waits for its turn."""
    if not answers.simulated(asked):
        ran = slow.run(PAGE, "simulating", lambda progress: answers.simulate(asked, progress))
        if ran.value is None:
            shown.problems(ran.problems)
            return None
        if ran.value.value is not None:
            st.rerun()
    found = answers.simulate(asked)
    shown.problems(found.problems)
    return found.value


def _files(asked: moesim.Scenario, result: moesim.Result) -> None:
    name, key = asked.name, f"{PAGE}-{result.road}"
    shown.download("Report (HTML)", lambda: write_html(result).encode(), f"{name}.html", f"{key}-html")
    shown.download("Result (JSON)", lambda: json.dumps(result.as_dict()).encode(), f"{name}.json", f"{key}-json")
    if result.road == "simulate":
        shown.download("Timeline (Perfetto)", lambda: _perfetto(result), f"{name}-timeline.json", f"{key}-perfetto")


def _perfetto(result: moesim.Result) -> bytes:
    """The timeline file that `moesim simulate` writes."""
    with TemporaryDirectory() as folder:
        moesim.save(result, Path(folder) / "out")
        return (Path(folder) / "out" / "timeline.json").read_bytes()


def everything(asked: moesim.Scenario, result: moesim.Result) -> None:
    """Every metric with its note, the notes, the scenario as a file, and the downloads."""
    frame = shown.quantity_frame(result.summary)
    frame["range"] = [shown.range_text(one) for one in result.summary.values()]
    order = ["metric", "reads", "range", "note", "value", "low", "high", "unit", "basis"]
    st.dataframe(frame, hide_index=True, column_order=order, key=f"{PAGE}-summary")
    settings = links.values(PAGE, "set")
    base = next(iter(links.values(PAGE, "scenario")), asked.name)
    written = answers.written(base, settings)
    with st.container(horizontal=True):
        shown.downloads(frame, f"{PAGE}-summary", "summary")
        if written.value is not None:
            text = to_yaml(written.value)
            shown.download("Scenario (YAML)", text.encode, f"{asked.name}.yaml", f"{PAGE}-yaml")
        filled = to_yaml(asked.document())
        shown.download("Filled in (YAML)", filled.encode, f"{asked.name}-filled.yaml", f"{PAGE}-filled")
        _files(asked, result)
    if result.notes:
        st.markdown("**Notes**")
        st.markdown("\n".join(f"- {shown.plain(note)}" for note in result.notes))
    if written.value is not None:
        with st.expander("The scenario as a file"):
            st.code(text, language="yaml")
