"""The dashboard's front page: its seven pages under one bar; `moesim dashboard` runs this file."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from shared import links, shown
from views import catalog, compare, plan, sweep, traces, validation, what_if

PAGES = (
    ("What if", "what-if", what_if.page, ":material/tune:"),
    ("Plan", "plan", plan.page, ":material/search:"),
    ("Compare", "compare", compare.page, ":material/compare_arrows:"),
    ("Sweep", "sweep", sweep.page, ":material/grid_on:"),
    ("Traces", "traces", traces.page, ":material/route:"),
    ("Validation", "validation", validation.page, ":material/fact_check:"),
    ("Catalog", "catalog", catalog.page, ":material/menu_book:"),
)

# A picture of our own: a named icon would be fetched from another host.
st.set_page_config(page_title="moesim", page_icon=str(Path(__file__).with_name("icon.png")), layout="wide")
pages = {
    path: st.Page(page, title=title, icon=icon, url_path=path, default=path == "what-if")
    for title, path, page, icon in PAGES
}
links.register(pages)
st.html(shown.STYLE)
st.navigation(list(pages.values()), position="top").run()
