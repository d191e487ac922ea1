"""Opens a page of the dashboard in Streamlit's test harness, with a link's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

util = pytest.importorskip("streamlit.util", reason="streamlit is not installed: pip install 'moesim[app]'")
testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed: pip install 'moesim[app]'")

MAIN = Path(__file__).parents[1] / "app" / "main.py"
DEFAULT = "what-if"
PATIENCE = 120


def open_page(path: str, **link: str | Sequence[str]) -> Any:
    """The page at `path` ("what-if", "plan" ...) after its first run; `link`: the parameters of its address."""
    app = testing.AppTest.from_file(str(MAIN), default_timeout=PATIENCE)
    if path != DEFAULT:
        app._page_hash = page_hash(path)
    for key, value in link.items():
        app.query_params[key] = value
    return app.run()


def page_hash(path: str) -> str:
    """What Streamlit knows the page by: a hash of its path; releases name the function differently."""
    function = getattr(util, "calc_hash", None) or util.calc_md5
    return str(function(path))


def messages(app: Any) -> str:
    """All that the page warns of, in one text."""
    boxes = [*app.warning, *app.error, *app.info, *app.exception]
    return "\n".join(str(box.value) for box in boxes)
