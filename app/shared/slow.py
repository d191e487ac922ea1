"""Work that takes seconds: a bar, a button that stops it, and one at a time on this machine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Semaphore
from typing import Any, TypeVar

import streamlit as st

from shared import answers, shown

T = TypeVar("T")
Progress = Callable[..., None]
_EVERY = 0.2


def run(key: str, what: str, ask: Callable[[Progress], T]) -> answers.Answer[T]:
    """What `ask(progress)` brings, with a bar and a stop button while it works.

    Any press in the page, and leaving it, stop the work at its next word of progress; nothing of it stays then.
    """
    place = st.empty()
    with place.container():
        bar = st.progress(0.0, what)
        st.button("Stop", key=f"{key}-stop", icon=":material/stop:", on_click=_stopped, args=(key,))
    with _turn(bar):
        found = answers.attempt(lambda: ask(_heard(bar)))
    place.empty()
    return found


def told_stopped(key: str) -> None:
    """Says once that the work was stopped."""
    if st.session_state.pop(f"{key}-stopped", False):
        st.info("Stopped; nothing of it was kept.", icon=":material/stop:")


def _heard(bar: Any) -> Progress:
    """What moves the bar: what is being done, which share of it is over, and about how many seconds are left."""
    moved = shown.Bar(bar)

    def hear(what: str, share: float, left: float | None = None) -> None:
        moved(f"{what}, about {left:.0f} s left" if left is not None and left >= 1 else what, share)

    return hear


@contextmanager
def _turn(bar: Any) -> Generator[None]:
    """Waits until no other reader's slow work runs."""
    gate = _gate()
    while not gate.acquire(timeout=_EVERY):
        bar.progress(0.0, "waiting for another reader's work")
    try:
        yield
    finally:
        gate.release()


@st.cache_resource
def _gate() -> Semaphore:
    return Semaphore(1)


def _stopped(key: str) -> None:
    st.session_state[f"{key}-stopped"] = True
