"""Catalog: search what moesim knows, see each entry with the sources of its numbers, copy it as YAML."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from moesim import listing
from moesim.scenario.loading import to_yaml
from shared import answers, fields, links, shown

PAGE = "catalog"
KEYS = ("kind", "search", "name")
ALL = "all kinds"
LISTS = 64
MOST_SOURCES = 20
USE = {
    "models": "model: {name}",
    "gpus": "cluster: {{gpu: {name}}}",
    "fabrics": "cluster: {{fabric: {name}}}",
    "profiles": "routing: {{load: {name}}}",
    "traces": "routing: {{load: {{trace: {name}}}}}",
    "fitted": "routing: {{load: {{fitted: {name}}}}}",
    "routers": "routing: {{router: {name}}}",
    "dispatchers": "dispatcher: {{kind: {name}}}",
}


def page() -> None:
    """Draws the page."""
    links.state(PAGE, KEYS)
    st.title("Catalog")
    st.markdown("Models, GPUs, fabrics, routers, recorded traces, fitted laws and measurements, each with its sources.")
    kinds = [row["kind"] for row in listing.overview()]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = fields.choice(PAGE, "kind", "Kind", [ALL, *kinds], "models")
        text = fields.text(PAGE, "search", "Search", hint="deepseek")
    found = answers.attempt(lambda: _search(text, None if kind == ALL else kind))
    shown.problems(found.problems)
    if found.value is not None:
        _found(found.value)
    links.publish(PAGE)


def _search(text: str, kind: str | None) -> list[dict[str, Any]]:
    return answers.kept("catalog", LISTS).get((text.lower(), kind), lambda: listing.search(text, kind))


def _found(rows: list[dict[str, Any]]) -> None:
    """The entries that were found, and one of them in full."""
    if not rows:
        st.info("Nothing in the catalog holds these words.")
        return
    frame = pd.DataFrame(rows).map(lambda value: value if value == value and value is not None else "")
    st.caption(f"{len(frame):,} entries")
    several = frame["kind"].nunique() > 1
    st.dataframe(
        frame.astype(str) if several else _plain_types(frame), hide_index=True, key=f"{PAGE}-entries",
        column_order=["kind", "name"] if several else [name for name in frame.columns if name != "kind"],
    )  # fmt: skip
    with st.container(horizontal=True):
        shown.downloads(frame.astype(str), f"{PAGE}-entries", "catalog")
    names = [f"{row['kind']}/{row['name']}" for row in rows]
    told = str if several else _last
    chosen = fields.choice(PAGE, "name", "Entry", names, names[0], told=told)
    _entry(*chosen.split("/", 1))


def _last(name: str) -> str:
    return name.partition("/")[2]


def _plain_types(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of one type each, as a table needs them."""
    mixed = [name for name in frame.columns if frame[name].map(type).nunique() > 1]
    return frame.astype(dict.fromkeys(mixed, str))


def _entry(kind: str, name: str) -> None:
    told = answers.kept("entries", LISTS).get((kind, name), lambda: _read(kind, name))
    shown.problems(told.problems)
    if told.value is None:
        return
    entry, sources = told.value
    st.subheader(shown.plain(name), anchor=False)
    note = entry.get("note") or entry.get("law") or entry.get("title")
    if note:
        st.markdown(shown.plain(str(note)))
    text = to_yaml(entry)
    left, right = st.columns([3, 2])
    with left:
        if kind in USE:
            st.caption("In a scenario")
            st.code(USE[kind].format(name=name), language="yaml")
        st.caption("The entry")
        st.code(text, language="yaml", height=420)
        with st.container(horizontal=True):
            shown.download("YAML", text.encode, f"{name}.yaml", f"{PAGE}-yaml")
            shown.download("JSON", lambda: json.dumps(entry).encode(), f"{name}.json", f"{PAGE}-json")
    with right:
        st.caption("Sources")
        _sources(sources)


def _sources(sources: list[dict[str, Any]]) -> None:
    if not sources:
        st.caption("none stated")
        return
    if len(sources) > MOST_SOURCES:
        st.dataframe(pd.DataFrame(sources).fillna("").astype(str), hide_index=True, key=f"{PAGE}-sources")
        return
    for source in sources:
        said = " · ".join(str(text) for key, text in source.items() if key != "field" and text)
        st.markdown(f"- **{shown.plain(source['field'] or 'all numbers')}**: {shown.plain(said)}")


def _read(kind: str, name: str) -> answers.Answer[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """An entry as plain data, and its sources."""
    return answers.attempt(
        lambda: (json.loads(json.dumps(listing.entry(kind, name), default=str)), listing.sources(kind, name))
    )
