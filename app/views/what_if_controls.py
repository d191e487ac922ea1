"""The controls of What if: each shows one place of the scenario, changes it by an override, and says what is wrong.

A control shows the scenario with all overrides put in, whether it is valid or not, so that a mistake can be undone
where it was made.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

import moesim
from moesim.catalog.yaml_files import parse_mapping
from moesim.errors import Problem, UserError
from moesim.scenario.loading import override_key
from moesim.scenario.serving import ServingScenario
from shared import answers, links, shown

PAGE = "what-if"
AS_WRITTEN = "as in the scenario"
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\Z")
_YAML_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


@dataclass
class Board:
    """Where the controls read and complain: the shipped scenario, the one with overrides, and what is wrong with it.

    `moved`: the key of the control that was moved last; `before`: what was wrong before it was.
    """

    shipped: dict[str, Any]
    merged: dict[str, Any]
    problems: tuple[Problem, ...]
    moved: str = ""
    before: tuple[Problem, ...] = ()
    told: list[Problem] = field(default_factory=list)

    def value(self, path: str) -> Any:
        """What stands at a dotted path, with overrides."""
        return dig(self.merged, path)

    def wrong(self, places: Iterable[str]) -> list[Problem]:
        """The problems at these places."""
        return [problem for problem in self.problems if shown.beside(problem, places)]

    def complain(self, places: Iterable[str], key: str = "") -> None:
        """Explains the problems at these places, below the control that was just drawn; each once.

        Below the control that was moved last, by its key, also what its move has made wrong elsewhere.
        """
        here = self.wrong(places)
        for problem in here:
            if problem not in self.told:
                self.told.append(problem)
                st.warning(shown.plain(problem.what), icon=":material/error:")
        if key and key == self.moved:
            shown.problems(one for one in self.problems if one not in here and one not in self.before)


def board(scenario: moesim.Scenario | ServingScenario, settings: Sequence[str], problems: Sequence[Problem]) -> Board:
    """The board of a shipped scenario under overrides; those that cannot be read are left out of what is shown."""
    shipped = scenario.document()
    merged = shipped
    for setting in settings:
        try:
            merged = override_key(merged, setting)
        except UserError:
            continue
    st.session_state[_WRONG] = tuple(problems)
    moved, before = st.session_state.get(_MOVED, ("", ()))
    return Board(shipped, merged, tuple(problems), moved, before)


def dig(document: Any, path: str) -> Any:
    """What stands at a dotted path; None where nothing does."""
    for key in path.split("."):
        document = document.get(key) if isinstance(document, dict) else None
    return document


def name_of(value: Any) -> str:
    """The name of a catalog entry that stands in a scenario by name or in full."""
    if isinstance(value, dict):
        value = value.get("name") or value.get("base") or value.get("kind")
    return AS_WRITTEN if value in (None, "inline") else str(value)


def text_of(value: Any) -> str:
    """A value as the text of an override."""
    if isinstance(value, str) and _PLAIN.match(value) and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value)


@dataclass(frozen=True)
class Edit:
    """What a control does when it changes: the override at `path`, and other overrides that go with it.

    `shipped`: the control's value in the scenario as shipped, which needs no override; `text`: value -> its text.
    """

    path: str
    shipped: Any
    text: Callable[[Any], str] = text_of
    also: tuple[tuple[str, str], ...] = ()


_MOVED = f"{PAGE}-moved"
_WRONG = f"{PAGE}-wrong"


def remember(key: str) -> None:
    """Remembers which control was moved last, and what was wrong before it was; "": none."""
    last, before = st.session_state.get(_MOVED, ("", ()))
    st.session_state[_MOVED] = (key, before if key == last else st.session_state.get(_WRONG, ()))


def changed(key: str, edit: Edit) -> None:
    """A widget's callback: its value becomes an override of the page's state."""
    remember(key)
    value = st.session_state[key]
    settings = links.values(PAGE, "set")
    same = value == edit.shipped
    settings = links.with_setting(settings, edit.path, None if same else edit.text(value))
    for path, text in edit.also:
        settings = links.with_setting(settings, path, None if same else text)
    links.put(PAGE, "set", settings)


def choice(
    on: Board, label: str, path: str, options: Sequence[str], *, edit: Edit | None = None, places: Sequence[str] = ()
) -> None:
    """A named entry; one that is in no list (written in full in the file) is offered as it is."""
    current, shipped = name_of(on.value(path)), name_of(dig(on.shipped, path))
    known = list(dict.fromkeys([*([shipped] if shipped not in options else []), *options]))
    pick(on, label, current, known, edit or Edit(path, shipped), places or (path,))


def pick(on: Board, label: str, current: str, options: list[str], edit: Edit, places: Sequence[str]) -> None:
    """A select box over texts that shows `current`."""
    key = f"{PAGE}-{edit.path}"
    known = options if current in options else [*options, current]
    st.session_state[key] = current
    st.selectbox(label, known, key=key, on_change=changed, args=(key, edit))
    on.complain(places, key)


def steps(
    on: Board,
    label: str,
    path: str,
    options: Iterable[int],
    *,
    places: Sequence[str] = (),
    also: tuple[tuple[str, str], ...] = (),
) -> None:
    """A slider over numbers, among them the shipped one and the one that holds."""
    shipped, current = (_step(value) for value in (dig(on.shipped, path), on.value(path)))
    current = shipped if current is None else current
    known = sorted({*options, *(value for value in (shipped, current) if value is not None)})
    key = f"{PAGE}-{path}"
    st.session_state[key] = current
    edit = Edit(path, shipped, also=also)
    if len(known) > 1:
        st.select_slider(label, known, key=key, format_func="{:,}".format, on_change=changed, args=(key, edit))
    else:
        st.caption(f"{label}: {current}, the only value here")
    on.complain(places or (path,), key)


def _step(value: Any) -> int | float | None:
    """A finite number, a whole one as such; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def toggle(on: Board, label: str, path: str, *, shipped: bool | None = None, help: str | None = None) -> None:  # noqa: A002
    """A switch."""
    before = dig(on.shipped, path) if shipped is None else shipped
    current = on.value(path)
    key = f"{PAGE}-{path}"
    st.session_state[key] = bool(before if current is None else current)
    st.toggle(label, key=key, help=help, on_change=changed, args=(key, Edit(path, bool(before))))
    on.complain((path,), key)


def number(on: Board, label: str, path: str) -> None:
    """A whole number that is typed."""
    current, shipped = on.value(path), dig(on.shipped, path)
    key = f"{PAGE}-{path}"
    st.session_state[key] = current if isinstance(current, int) and current >= 1 else shipped
    edit = Edit(path, shipped)
    st.number_input(label, 1, 1 << 32, step=1, key=key, on_change=changed, args=(key, edit))
    on.complain((path,), key)


def all_settings(on: Board, settings: Sequence[str]) -> None:
    """Every change as text, one a line: any key of a scenario can be set here."""
    key = f"{PAGE}-settings"
    st.session_state[key] = "\n".join(settings)
    st.text_area("Changes, one a line: `a.b=value`", key=key, on_change=_typed, height=140)
    on.complain(("--set",), key)


def _typed() -> None:
    remember(f"{PAGE}-settings")
    lines = (line.strip() for line in st.session_state[f"{PAGE}-settings"].splitlines())
    links.put(PAGE, "set", [line for line in lines if line][: links.MOST_VALUES])


def read_value(text: str) -> Any:
    """A value that stands in a link, read as an override's."""
    found = answers.attempt(lambda: parse_mapping(f"value: {text}", "link"))
    return (found.value or {}).get("value")
