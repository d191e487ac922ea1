"""What `moesim dashboard` serves: the app, and pages that know at once where their server is.

A page opened by its own address, such as /compare, cannot tell whether its server is at the root or at /compare, so
Streamlit's client asks at both, the wrong one first: two answers 404 in the console and half a second lost. The page
is told where its server is by the client's own setting for that, BACKEND_BASE_URL; a client that does not know the
setting finds its server as before.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from threading import Thread

import streamlit as st
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from shared import reach
from shared.pages import HOME, PAGES

_SETTING = "<script>window.__streamlit = { BACKEND_BASE_URL: window.location.origin }</script>"
_INDEX = Path(st.__file__).parent / "static" / "index.html"


def index() -> str:
    """Streamlit's page, with the setting before its first script."""
    text = _INDEX.read_text(encoding="utf-8")
    return text.replace("<script", f"{_SETTING}\n    <script", 1)


async def page(request: Request) -> HTMLResponse:
    """Any page of the dashboard below the root."""
    return HTMLResponse(index(), headers={"Cache-Control": "no-cache"})


@asynccontextmanager
async def _warmed(served: st.App) -> AsyncGenerator[None]:
    """Warns where it must, and loads what the first page needs while the reader still opens the browser."""
    reach.settle()
    Thread(target=import_module, args=("views.what_if",), daemon=True).start()
    yield


app = st.App("main.py", lifespan=_warmed, routes=[Route(f"/{path}", page) for path in PAGES if path != HOME])
