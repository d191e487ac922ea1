"""Widgets that show one key of a page's state and put what is chosen back; the state is text, as in the link."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import streamlit as st

from shared import links


def choice(
    page: str,
    key: str,
    label: str,
    options: Iterable[str],
    default: str,
    *,
    told: Callable[[str], str] = str,
    horizontal: bool = False,
    others: bool = False,
    clears: str = "",
) -> str:
    """One of several; a link that names another has the default. `horizontal`: side by side instead of in a list;
    `others`: what is not in the list may be typed; `clears`: the key that another choice sets back."""
    known = list(dict.fromkeys(options))
    value = links.first({key: links.values(page, key)}, key, default, () if others else known)
    name = _shown(page, key, value)
    how: dict[str, Any] = {"key": name, "format_func": told, "on_change": _put, "args": (page, key, default, clears)}
    if horizontal:
        st.segmented_control(label, known, **how)
    else:
        listed = known if value in known else [*known, value]
        st.selectbox(label, listed, accept_new_options=others, **how)
    return value


def choices(page: str, key: str, label: str, options: Iterable[str], default: Sequence[str] = ()) -> tuple[str, ...]:
    """Any number of several."""
    known = list(dict.fromkeys(options))
    value = tuple(one for one in links.values(page, key) if one in known) or tuple(default)
    name = _shown(page, key, list(value))
    st.multiselect(label, known, key=name, on_change=_put, args=(page, key, list(default)))
    return value


def text(page: str, key: str, label: str, default: str = "", *, hint: str = "", help_: str | None = None) -> str:
    """A line of text."""
    value = links.first({key: links.values(page, key)}, key, default)
    name = _shown(page, key, value)
    st.text_input(
        label, key=name, placeholder=hint, help=help_, on_change=_put, args=(page, key, default), max_chars=200
    )
    return value


def lines(page: str, key: str, label: str) -> tuple[str, ...]:
    """Several lines of text, each a value of the key."""
    value = links.values(page, key)
    name = _shown(page, key, "\n".join(value))
    st.text_area(label, key=name, on_change=_put_lines, args=(page, key), height=100)
    return value


def number(page: str, key: str, label: str, default: int, least: int, most: int) -> int:
    """A whole number from `least` to `most`."""
    said = links.first({key: links.values(page, key)}, key, str(default))
    value = min(max(int(said), least), most) if said.isdecimal() and len(said) < 10 else default
    name = _shown(page, key, value)
    st.number_input(label, least, most, step=1, key=name, on_change=_put, args=(page, key, default))
    return value


def switch(page: str, key: str, label: str, default: bool = False, *, help_: str | None = None) -> bool:
    """A switch."""
    value = links.first({key: links.values(page, key)}, key, _word(default), ("yes", "no")) == "yes"
    name = _shown(page, key, value)
    st.toggle(label, key=name, help=help_, on_change=_put, args=(page, key, default))
    return value


def _shown(page: str, key: str, value: Any) -> str:
    """Makes the widget show a value; its key."""
    name = f"{page}-{key}"
    st.session_state[name] = value
    return name


def _word(value: Any) -> Any:
    return ("yes" if value else "no") if isinstance(value, bool) else value


def _put(page: str, key: str, default: Any, clears: str = "") -> None:
    """A widget's callback: the state holds its value, or nothing where that is the default, and nothing of `clears`."""
    value = st.session_state[f"{page}-{key}"]
    same = value is None or value == default
    said = [str(one) for one in value] if isinstance(value, list) else str(_word(value))
    links.put(page, key, None if same else said)
    if clears:
        links.put(page, clears, None)


def _put_lines(page: str, key: str) -> None:
    said = (line.strip() for line in st.session_state[f"{page}-{key}"].splitlines())
    links.put(page, key, [line for line in said if line][: links.MOST_VALUES])
