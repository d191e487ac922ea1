"""The dashboard's front page: its pages under one bar. `server.py` serves it; Streamlit alone can run it too."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from shared import links, reach, shown
from shared.pages import HOME, PAGES
from views import catalog, compare, plan, sweep, traces, validation, what_if

DRAWN = {
    "what-if": what_if.page,
    "plan": plan.page,
    "compare": compare.page,
    "sweep": sweep.page,
    "traces": traces.page,
    "validation": validation.page,
    "catalog": catalog.page,
}

# A picture of our own: a named icon would be fetched from another host.
st.set_page_config(page_title="moesim", page_icon=str(Path(__file__).with_name("icon.png")), layout="wide")
pages = {
    path: st.Page(DRAWN[path], title=title, icon=icon, url_path=path, default=path == HOME)
    for path, (title, icon) in PAGES.items()
}
reach.settle()
links.register(pages)
st.html(shown.style())
st.navigation(list(pages.values()), position="top").run()
