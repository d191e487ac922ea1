"""The verb `dashboard`: starts, serves this machine alone, ends on Ctrl-C, and says what is missing."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from interrupts import hears, interrupt

from moesim import dashboard_cli, errors, shipped

ROOT = Path(__file__).parents[1]
PATIENCE = 90.0
HOME = "0100007F"  # 127.0.0.1 as the kernel writes it
needs_streamlit = pytest.mark.skipif(not importlib.util.find_spec("streamlit"), reason="streamlit is not installed")


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


@contextmanager
def served(folder: Path, port: int, *more: str, instead: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    words = [*(instead or [sys.executable, "-m", "moesim", "dashboard", "--port", str(port)]), *more]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, cwd=folder, text=True, stdout=pipe, stderr=pipe, preexec_fn=hears)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def healthy(process: subprocess.Popen[str], port: int) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
                return bool(answer.read() == b"ok")
        except OSError:
            time.sleep(0.2)
    return False


def listening(port: int) -> set[str]:
    """Addresses, as the kernel writes them, on which someone listens at a port."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        if (path := Path("/proc/net") / table).exists()
        for line in path.read_text().splitlines()[1:]
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


@needs_streamlit
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs the kernel's table of sockets")
def test_it_serves_this_machine_alone_from_any_folder_until_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    with served(tmp_path, port) as process:
        assert healthy(process, port), process.stderr
        assert listening(port) == {HOME}
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert b"<title>" in answer.read()
        out, said = interrupt(process)
    assert process.returncode == 0
    assert out == ""
    assert f"http://127.0.0.1:{port}" in said
    assert "warning" not in said
    assert not list(tmp_path.iterdir()), "it leaves no file behind"
    assert not listening(port)


@needs_streamlit
def test_the_end_of_the_verb_is_the_end_of_the_server(tmp_path: Path) -> None:
    port = free_port()
    with served(tmp_path, port) as process:
        assert healthy(process, port), process.stderr
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    with pytest.raises(OSError):  # noqa: PT011 - whatever the system says when nobody listens
        urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)


@needs_streamlit
@pytest.mark.parametrize("way", ["moesim dashboard", "streamlit run"])
def test_a_wider_address_is_warned_of_once_however_it_is_started(way: str, tmp_path: Path) -> None:
    port = free_port()
    main = str(shipped.app().with_name("server.py"))
    run = [sys.executable, "-m", "streamlit", "run", main, "--server.port", str(port)] if way == "streamlit run" else []
    with served(tmp_path, port, "--address" if not run else "--server.address", "0.0.0.0", instead=run) as process:
        assert healthy(process, port), process.stderr
        said = interrupt(process)[1]
    assert said.count("warning: on 0.0.0.0 anyone who reaches this machine can use the dashboard") == 1
    assert "asks for no password" in said


@pytest.mark.parametrize(
    ("address", "own"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.1.2.3", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_addresses_are_this_machine_alone(address: str, own: bool) -> None:
    assert dashboard_cli.is_loopback(address) is own


def test_without_streamlit_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_cli, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingPackageError) as caught:
        dashboard_cli.dashboard()
    assert "pip install 'moesim[app]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@needs_streamlit
def test_a_port_that_is_taken_or_an_address_of_nobody_is_the_users_mistake() -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        port = door.getsockname()[1]
        with pytest.raises(errors.UserError, match=rf"cannot listen on 127\.0\.0\.1 port {port}.*--port"):
            dashboard_cli.dashboard(port)
    with pytest.raises(errors.UserError, match=r"cannot listen on 192\.0\.2\.1"):
        dashboard_cli.dashboard(free_port(), "192.0.2.1")


def test_the_app_and_the_scenarios_are_found_and_travel_in_the_wheel() -> None:
    assert shipped.app() == ROOT / "app" / "main.py"
    files = shipped.scenarios()
    assert set(files) == {path.stem for path in (ROOT / "scenarios").glob("*.yaml")}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    carried = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert carried == {"app": "moesim/_app", "scenarios": "moesim/_scenarios"}


def test_an_installation_without_the_app_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "moesim")
    assert shipped.scenarios() == {}
    with pytest.raises(errors.FileError, match="not part of this installation"):
        shipped.app()
    installed = tmp_path / "moesim" / "_app"
    installed.mkdir(parents=True)
    (installed / "main.py").write_text("")
    assert shipped.app() == installed / "main.py"


def test_the_apps_own_settings_keep_it_to_itself() -> None:
    settings = tomllib.loads((ROOT / "app" / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["browser"]["gatherUsageStats"] is False
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["server"]["showEmailPrompt"] is False
    assert settings["client"]["showErrorDetails"] == "none"


def test_the_app_names_no_other_host() -> None:
    """A named page icon would be fetched from another host, too."""
    for path in (ROOT / "app").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!127\.0\.0\.1)", text), path
        assert 'page_icon=":' not in text
