"""The state of a page and its link: what the address bar says is what the page shows, so a copied link reopens it.

A page's state is text only, as in a link: key -> values. It lives in the session, so that it survives a visit to
another page; at the end of every run the page publishes it to the address bar. A link that the page did not write
itself (opened, or reached with the browser's Back) replaces the state; an empty one is the state as it was first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from shared.pages import HOME

State = dict[str, tuple[str, ...]]

MOST_VALUES = 64
MOST_CHARACTERS = 4000
_SETTLING_SECONDS = 1.5
_RECENT = 16


def state(page: str, keys: Iterable[str]) -> State:
    """The state of `page`: of the link that was opened, else of the session. Keys not in `keys` are ignored."""
    link = _link(keys)
    memory = _memory(page)
    touched = st.session_state.pop(_TOUCHED, False)
    if not touched and _arrived(page, link):
        memory.clear()
        memory.update(link)
    return memory


def first(values: Mapping[str, tuple[str, ...]], key: str, default: str = "", allowed: Iterable[str] = ()) -> str:
    """The first value of a key; `default` where there is none, or where it is not among `allowed` (if any)."""
    value = next(iter(values.get(key, ())), default)
    known = tuple(allowed)
    return value if not known or value in known else default


def values(page: str, key: str) -> tuple[str, ...]:
    """The values of one key in the state of `page`; for callbacks."""
    return _memory(page).get(key, ())


def put(page: str, key: str, values: str | Sequence[str] | None) -> None:
    """Changes the state of `page`; call it from a widget's `on_change`, or before `publish`."""
    memory = _memory(page)
    texts = (values,) if isinstance(values, str) else tuple(values or ())
    if texts:
        memory[key] = texts
    else:
        memory.pop(key, None)
    st.session_state[_TOUCHED] = True


def publish(page: str, first: State | None = None) -> None:
    """Writes the state of `page` to the address bar; every page does so at its end. `first`: the state that needs no
    link, since the page without one shows it."""
    memory = {key: list(values) for key, values in sorted(_memory(page).items())}
    if _memory(page) == first:
        memory = {}
    link = {key: tuple(values) for key, values in memory.items()}
    recent: list[tuple[str, State, float]] = st.session_state.setdefault(_WRITTEN, [])
    heard = _link(None) == link
    if heard and recent and recent[-1][:2] == (page, link):
        recent.pop()
    if not recent or recent[-1][:2] != (page, link):
        recent.append((page, link, -math.inf if heard else time.monotonic()))
        del recent[:-_RECENT]
    if not heard:
        st.query_params.from_dict(memory)
    st.session_state.pop(_TOUCHED, None)


def go(page: str, values: Mapping[str, str | Sequence[str]]) -> None:
    """Opens another page (its path: "what-if", "plan" ...) in the state given; ends this run."""
    memory = _memory(page)
    memory.clear()
    memory.update({key: (text,) if isinstance(text, str) else tuple(text) for key, text in values.items() if text})
    st.session_state.pop(_TOUCHED, None)
    st.session_state[_WENT] = page
    # With the state at once: a page that is opened empty and then written would be two steps of Back.
    query = {key: list(texts) for key, texts in sorted(memory.items())}
    st.switch_page(st.session_state[_PAGES][page], query_params=query)


def go_later(page: str, values: Mapping[str, str | Sequence[str]]) -> None:
    """The same from a widget's callback, where Streamlit cannot switch: the run that follows opens the page."""
    st.session_state[_LATER] = (page, dict(values))


def register(pages: Mapping[str, Any]) -> None:
    """Tells `go` which pages there are, and goes where a callback has asked; the main file does so on every run."""
    st.session_state[_PAGES] = dict(pages)
    later = st.session_state.pop(_LATER, None)
    if later is not None:
        go(*later)


def address(page: str, values: Mapping[str, str | Sequence[str]]) -> str:
    """The address of a page in a state, relative to the dashboard's root, for a link in text."""
    path = "/" if page == HOME else f"/{page}"
    query = urlencode({key: text for key, text in values.items() if text}, doseq=True)
    return f"{path}?{query}" if query else path


def with_setting(settings: Iterable[str], path: str, text: str | None) -> tuple[str, ...]:
    """Overrides ("a.b=value") with one put at `path`, in place of what was said of it and of what is inside it.

    None: only takes the old one out.
    """
    kept = [one for one in settings if not _inside(one.partition("=")[0].strip(), path)]
    return (*kept, f"{path}={text}") if text is not None else tuple(kept)


def _inside(place: str, path: str) -> bool:
    return place == path or place.startswith(f"{path}.")


_TOUCHED = "links/touched"
_WRITTEN = "links/written"
_PAGES = "links/pages"
_WENT = "links/went"
_LATER = "links/later"


def _memory(page: str) -> State:
    memory: State = st.session_state.setdefault(f"links/{page}", {})
    return memory


def _link(keys: Iterable[str] | None) -> State:
    """The address bar's parameters, cut to sane sizes; `keys`: the ones to read, or all."""
    wanted = st.query_params.keys() if keys is None else keys
    found = {
        key: tuple(text[:MOST_CHARACTERS] for text in st.query_params.get_all(key)[:MOST_VALUES]) for key in wanted
    }
    return {key: texts for key, texts in found.items() if texts}


def _arrived(page: str, link: State) -> bool:
    """Whether the address bar holds a link that no page of this session has just written.

    While the browser has not yet heard of the latest one, it may still send one of those before. Once it has, one of
    those is the reader's step Back, also the next one right after it.
    """
    recent: list[tuple[str, State, float]] = st.session_state.get(_WRITTEN, [])
    if st.session_state.pop(_WENT, None) == page or not recent:
        return not recent
    last_page, last, when = recent[-1]
    if last_page != page:  # a press on the page's name brings no link: its state is as it was left
        return bool(link) and last != link and _link(None) != last
    if last == link:
        return False
    settling = time.monotonic() - when < _SETTLING_SECONDS
    return not (settling and any(link == written for _, written, _ in recent))
