"""The page that the dashboard serves below its root: Streamlit's own, told where its server is."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'moesim[app]'")
Request = pytest.importorskip("starlette.requests").Request
APP = Path(__file__).parents[1] / "app"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that is served."""
    monkeypatch.syspath_prepend(str(APP))
    import server

    yield server
    sys.modules.pop("server")


def test_the_setting_stands_before_every_script(server: Any) -> None:
    text = server.index()
    assert 0 < text.index("BACKEND_BASE_URL") < text.index('type="module"')
    assert text.count("<script", 0, text.index("BACKEND_BASE_URL")) == 1
    assert text.replace(f"{server._SETTING}\n    ", "") == server._INDEX.read_text(encoding="utf-8")


def test_every_page_below_the_root_has_it(server: Any) -> None:
    routes = server.app._user_routes
    assert [route.path for route in routes] == ["/plan", "/compare", "/sweep", "/traces", "/validation", "/catalog"]
    answer = asyncio.run(routes[0].endpoint(Request({"type": "http", "method": "GET", "headers": []})))
    assert answer.status_code == 200
    assert b"BACKEND_BASE_URL" in answer.body
    assert answer.headers["cache-control"] == "no-cache"
