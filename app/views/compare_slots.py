"""The four places of Compare: a shipped scenario or a file of the reader's own, with changes, one a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from moesim.errors import Problem
from moesim.scenario.loading import AnyScenario
from shared import answers, links, shown

PAGE = "compare"
SLOTS = {"a": "A", "b": "B", "c": "C", "d": "D"}
DEFAULTS = {"a": ("mixtral-8x7b-64-h100",), "b": ("mixtral-8x7b-64-h100", "routing.capacity=dropless")}
NOTHING = "–"
OWN = "own file: "
MOST_OWN = 8
MOST_BYTES = 2 << 20


@dataclass(frozen=True)
class Slot:
    """A place that holds a scenario which can be read."""

    letter: str
    scenario: AnyScenario


def slots(state: links.State) -> list[Slot]:
    """Draws the four places; returns those that hold a scenario which can be read, named by their letters."""
    _upload()
    found = []
    for place, (key, letter) in zip(st.columns(4), SLOTS.items(), strict=True):
        with place.container(border=True):
            values = state.get(key, ())
            scenario = _slot(key, letter, values)
        if scenario is not None:
            name = f"{letter} {scenario.name}"[:100].rstrip()
            found.append(Slot(letter, scenario.model_copy(update={"name": name})))
    return found


def _upload() -> None:
    """Files of the reader's own; they stay in this session and are in no link."""
    with st.expander("Add a scenario file of your own"):
        files = st.file_uploader(
            "Scenario files (YAML, at most 2 MB each)",
            type=["yaml", "yml"],
            accept_multiple_files=True,
            key=f"{PAGE}-upload",
            max_upload_size=2,
        )
        st.caption("They stay in this session: a copied link does not hold them.")
    held: dict[str, str] = st.session_state.setdefault(f"{PAGE}-own", {})
    for file in (files or [])[:MOST_OWN]:
        try:
            held[f"{OWN}{file.name}"] = file.getvalue()[: MOST_BYTES + 1].decode("utf-8")
        except UnicodeDecodeError:
            st.warning(f"{shown.plain(file.name)} is not text in UTF-8.", icon=":material/error:")
    while len(held) > MOST_OWN:
        held.pop(next(iter(held)))


def _slot(key: str, letter: str, values: tuple[str, ...]) -> AnyScenario | None:
    own: dict[str, str] = st.session_state[f"{PAGE}-own"]
    options = [NOTHING, *answers.scenario_files(), *answers.serving_files(), *own]
    name, settings = (values[0], values[1:]) if values else (NOTHING, ())
    if name not in options:
        options.append(name)
    which, changes = f"{PAGE}-{key}", f"{PAGE}-{key}-set"
    st.session_state[which], st.session_state[changes] = name, "\n".join(settings)
    st.selectbox(f"Scenario {letter}", options, key=which, on_change=_changed, args=(key,))
    hint = "cluster.gpus=128"
    st.text_area(f"Changes of {letter}", key=changes, on_change=_changed, args=(key,), height=90, placeholder=hint)
    if name == NOTHING:
        return None
    found = _read(name, settings, own)
    shown.problems(found.problems)
    if found.value is None:
        return None
    st.button("Open in What if", key=f"{which}-open", on_click=_open, args=(name, settings), disabled=name in own)
    return found.value


def _read(name: str, settings: tuple[str, ...], own: dict[str, str]) -> answers.Answer[Any]:
    if name.startswith(OWN):
        if name not in own:
            missing = Problem("", "this file is not part of a link: add it again")
            return answers.Answer(problems=(missing,))
        return answers.own_scenario(own[name], name.removeprefix(OWN).rpartition(".")[0] or "own", settings)
    return answers.serving(name, settings) if name in answers.serving_files() else answers.scenario(name, settings)


def _changed(key: str) -> None:
    name = st.session_state[f"{PAGE}-{key}"]
    lines = (line.strip() for line in st.session_state[f"{PAGE}-{key}-set"].splitlines())
    values = (name, *(line for line in lines if line))
    links.put(PAGE, key, None if name == NOTHING else values[: links.MOST_VALUES])


def _open(name: str, settings: tuple[str, ...]) -> None:
    links.go_later("what-if", {"scenario": name, "set": settings})
