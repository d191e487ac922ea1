"""A dashboard that other machines can reach reads no file of its machine for them, wherever a scenario names one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from app_fixture import messages, open_page

from moesim import shipped

config = pytest.importorskip("streamlit.config", reason="streamlit is not installed: pip install 'moesim[app]'")

SCENARIO = "olmoe-8-h100"
REFUSED = "open to other machines"
NAMING = {
    "a trace": "routing.load.trace={path}",
    "a trace in a mapping": 'routing.load={{"trace": "{path}"}}',
    "a fitted load": 'routing={{"load": {{"fitted": "{path}"}}}}',
    "a model": 'model={{"huggingface": "{path}"}}',
    "a GPU": 'cluster={{"gpu": {{"huggingface": "{path}"}}, "gpus": 8}}',
    "a calibration": "cluster.calibration={path}",
    "a plan": "placement.planned_from={path}",
}


@contextmanager
def listening_on(address: str) -> Iterator[None]:
    before = config.get_option("server.address")
    config.set_option("server.address", address)
    yield
    config.set_option("server.address", before)


@pytest.fixture
def opened_wider() -> Iterator[None]:
    """As `moesim dashboard --address 0.0.0.0`."""
    with listening_on("0.0.0.0"):
        yield


@pytest.fixture
def alone() -> Iterator[None]:
    """As `moesim dashboard`."""
    with listening_on("127.0.0.1"):
        yield


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the machine."""
    path = tmp_path / "secret.json"
    path.write_text('{"model_type": "secret-word"}')
    return path


def said(app: Any) -> str:
    return messages(app).replace("\\", "")


@pytest.mark.parametrize(("address", "warned"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
def test_the_app_alone_warns_once_of_a_wider_address(
    address: str, warned: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening_on(address):
        if "shared.reach" in sys.modules:  # an earlier test may have been warned
            sys.modules["shared.reach"].settle.cache_clear()
        for _ in range(2):
            assert not open_page("validation").exception
    assert capsys.readouterr().err.count("warning: on 0.0.0.0") == warned


@pytest.mark.usefixtures("opened_wider")
def test_a_page_of_elsewhere_that_asks_for_a_connection_is_refused_without_asking_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net_util, server_util = import_module("streamlit.net_util"), import_module("streamlit.web.server.server_util")
    assert not open_page("validation").exception
    monkeypatch.setattr(net_util, "_make_blocking_http_get", lambda *_, **__: pytest.fail("it asks another host"))
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("it opens a socket"))
    assert not server_util.is_url_from_allowed_origins("http://elsewhere.example")
    assert server_util.is_url_from_allowed_origins("http://localhost:8501")


@pytest.mark.usefixtures("opened_wider")
@pytest.mark.parametrize("naming", NAMING.values(), ids=NAMING)
def test_a_link_that_names_a_file_is_refused_unread(naming: str, secret: Path) -> None:
    app = open_page("what-if", scenario=SCENARIO, set=[naming.format(path=secret)])
    assert not app.exception
    assert not app.metric
    assert REFUSED in said(app)
    assert "secret-word" not in said(app)
    there, gone = said(app), said(open_page("what-if", scenario=SCENARIO, set=[naming.format(path=f"{secret}x")]))
    assert there.replace(str(secret), "") == gone.replace(f"{secret}x", ""), "it does not tell whether a file is there"


@pytest.mark.usefixtures("opened_wider")
@pytest.mark.parametrize("page", ["compare", "plan", "sweep"])
def test_so_is_one_on_every_page_that_takes_changes(page: str, secret: Path) -> None:
    change = f"cluster.calibration={secret}"
    link: dict[str, Any] = {"a": [SCENARIO, change]} if page == "compare" else {"scenario": SCENARIO, "set": [change]}
    app = open_page(page, **link)
    assert not app.exception
    assert REFUSED in said(app)


@pytest.mark.usefixtures("opened_wider")
def test_so_is_an_axis_of_a_sweep_and_a_file_of_ones_own(secret: Path) -> None:
    app = open_page("sweep", scenario=SCENARIO, x="routing.load.trace", xs=json.dumps(str(secret)))
    assert REFUSED in said(app)
    app = open_page("sweep", scenario=SCENARIO, x="routing.load", xs=json.dumps({"fitted": str(secret)}))
    assert REFUSED in said(app)
    own = shipped.scenarios()[SCENARIO].read_text() + f"\nplacement: {{planned_from: {secret}}}\n"
    app = open_page("compare")
    app.file_uploader(key="compare-upload").set_value([("mine.yaml", own.encode(), "application/yaml")]).run()
    app.selectbox(key="compare-b").set_value("own file: mine.yaml").run()
    assert not app.exception
    assert REFUSED in said(app)


@pytest.mark.usefixtures("opened_wider")
def test_names_of_the_catalog_and_uploads_are_taken_all_the_same() -> None:
    load = 'routing.load={"trace": "cpu-small-gshard-top-2"}'
    app = open_page("what-if", scenario="mixtral-8x7b-64-h100", set=[load])
    assert app.metric
    assert REFUSED not in said(app)
    app = open_page("what-if", scenario=SCENARIO)
    assert app.metric


@pytest.mark.usefixtures("alone")
def test_on_this_machine_alone_its_user_names_files_as_on_the_command_line(secret: Path) -> None:
    app = open_page("what-if", scenario=SCENARIO, set=[f'model={{"huggingface": "{secret}"}}'])
    assert "secret-word" in said(app)
