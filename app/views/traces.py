"""Traces: a recorded router, shipped or uploaded: what it chose, how unevenly, its fit, and it as a load."""

from __future__ import annotations

import streamlit as st

from moesim.catalog import recorded
from moesim.results.trace_charts import TraceCharts
from moesim.results.trace_report import page as report
from moesim.traces import frames, importers
from moesim.traces.counts import Recording, RouterCounts
from moesim.traces.inspect import inspect
from moesim.traces.inspection import Inspection
from shared import answers, fields, links, shown
from views import traces_files, traces_fit
from views.traces_files import TYPES, UPLOADED

PAGE = "traces"
KEYS = ("trace", "view", "layer", "format", "options", "scenario")
DEFAULT = "cpu-small-gshard-top-2"
STRONGEST = "of the strongest pair"
LOOKS = 16
VIEWS = {
    "load": "Load",
    "imbalance": "Imbalance",
    "sources": "Sources",
    "drops": "Drops",
    "locality": "Locality",
    "coactivation": "Co-activation",
    "all": "All numbers",
}
TABLES = {
    "load": frames.load,
    "imbalance": frames.imbalance,
    "sources": frames.sources,
    "drops": frames.drops,
    "locality": frames.locality,
    "coactivation": frames.coactivation,
}


def page() -> None:
    """Draws the page."""
    links.state(PAGE, KEYS)
    st.title("Traces")
    st.markdown("Which experts did a router choose, how unevenly, and what does that do to a training step?")
    with st.sidebar:
        name = _choice()
        told = _upload()
    shown.problems(told.problems, "The upload cannot be read")
    name = told.value or name
    found = answers.attempt(lambda: traces_files.recording(name))
    shown.problems(found.problems)
    if found.value is not None:
        _show(name, found.value)
    links.publish(PAGE)


def _choice() -> str:
    """The recording that the page shows."""
    names = recorded.names("traces")
    said = links.first({"trace": links.values(PAGE, "trace")}, "trace", DEFAULT)
    held = [said] if said.startswith(UPLOADED) else []
    default = DEFAULT if DEFAULT in names else names[0]
    return fields.choice(PAGE, "trace", "Recording", [*names, *held], default, told=_title)


def _title(name: str) -> str:
    return f"uploaded ({name.removeprefix(UPLOADED)[:8]})" if name.startswith(UPLOADED) else name


def _upload() -> answers.Answer[str]:
    """The name of a recording that was uploaded just now."""
    limit = traces_files.most_bytes() >> 20
    file = st.file_uploader(
        "Or upload one",
        type=list(TYPES),
        key=f"{PAGE}-upload",
        on_change=_fresh,
        help=f"up to {limit} MB: moesim's own, vLLM, SGLang, TensorRT-LLM, Megatron, .npz, .csv ... Never a pickle.",
    )
    with st.expander("What an upload leaves open"):
        format_ = fields.choice(PAGE, "format", "Format", ["", *importers.IMPORTERS], "", told=_format)
        options = fields.text(PAGE, "options", "Options", hint="top_k=8, experts=64")
        again = st.button("Read again", key=f"{PAGE}-again", disabled=file is None)
    if file is None or not (st.session_state.pop(f"{PAGE}-fresh", False) or again):
        return answers.Answer()
    with st.spinner("reading"):
        found = answers.attempt(lambda: traces_files.take(file.name, file.getvalue(), format_ or None, options))
    if found.value is not None:
        links.put(PAGE, "trace", found.value)
        links.publish(PAGE)
        st.rerun()
    return found


def _format(name: str) -> str:
    return name or "found out"


def _fresh() -> None:
    st.session_state[f"{PAGE}-fresh"] = st.session_state[f"{PAGE}-upload"] is not None


def _show(name: str, found: Recording) -> None:
    looked = answers.kept("looks", LOOKS).get(name, lambda: answers.attempt(lambda: inspect(found)))
    shown.problems(looked.problems)
    if looked.value is None:
        return
    look = looked.value
    meta = look.meta
    size = f"{look.tokens:,.0f} tokens" + (f" in {look.sequences:,} sequences" if look.sequences else "")
    st.caption(shown.plain(f"{size} · {len(meta.model_layers)} layers · {meta.experts} experts, top-{meta.top_k}"))
    about = {name: text for name, text in meta.model_dump(mode="json").items() if text and isinstance(text, str)}
    if about:
        with st.expander("About this recording"):
            st.markdown("\n".join(f"- {name}: {shown.plain(text)}" for name, text in about.items()))
    view = fields.choice(PAGE, "view", "View", VIEWS, "load", told=VIEWS.__getitem__, horizontal=True)
    if view == "all":
        _numbers(look)
    else:
        _picture(name, look, view)
    with st.container(horizontal=True):
        shown.download("Report (HTML)", lambda: report(look).encode(), f"{name}.html", f"{PAGE}-html")
        if not isinstance(found, RouterCounts):
            write = lambda: traces_files.file_of(name).read_bytes()  # noqa: E731
            shown.download("Trace", write, f"{name}.safetensors", f"{PAGE}-file")
    traces_fit.section(name, found)


def _picture(name: str, look: Inspection, view: str) -> None:
    """One picture and its table."""
    charts = TraceCharts(look)
    layer = None
    if view == "coactivation" and look.coactivation is not None:
        layers = [str(layer) for layer in look.meta.model_layers]
        chosen = fields.choice(PAGE, "layer", "Layer", [STRONGEST, *layers], STRONGEST)
        layer = layers.index(chosen) if chosen != STRONGEST else None
    draw = charts.coactivation if view == "coactivation" else getattr(charts, view)
    picture = shown.kept_chart((PAGE, name, view, layer), lambda: draw(layer) if view == "coactivation" else draw())
    shown.chart_with_table(picture, TABLES[view](look), f"{PAGE}-{view}", view)


def _numbers(look: Inspection) -> None:
    frame = frames.summary(look)
    st.dataframe(frame, hide_index=True, key=f"{PAGE}-summary")
    with st.container(horizontal=True):
        shown.downloads(frame, f"{PAGE}-summary", "summary")
