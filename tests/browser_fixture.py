"""The dashboard in a real browser: a server of its own on 127.0.0.1, Chromium, and a record of what pages ask for."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
MAIN = Path(__file__).parents[1] / "app" / "server.py"
PATIENCE = 120
QUIET = 5
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
_LOCAL = ("127.0.0.1", "localhost")


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def server(log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a dashboard that runs in a process of its own, and the process; its output goes to `log`."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN), "--server.port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(f"{address}/_stcore/health", process, log)
            yield address, process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the dashboard did not start:\n{log.read_text(errors='replace')[-2000:]}")


@dataclass
class Visit:
    """One tab: the page, and what it asked for and complained of."""

    page: Any
    address: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} ({message.location.get('url', '')})")

    def open(self, path: str, **link: Any) -> None:
        """Opens a page of the dashboard by its address, and waits until it has drawn itself."""
        query = urlencode(link, doseq=True)
        self.page.goto(f"{self.address}/{'' if path == 'what-if' else path}{'?' + query if query else ''}")
        self.page.wait_for_selector("h1")
        self.settle()

    def settle(self) -> None:
        """Waits until nothing runs any more, for a second on end: one run of the script may ask for another."""
        quiet = 0
        end = time.monotonic() + PATIENCE
        while quiet < QUIET and time.monotonic() < end:
            self.page.wait_for_timeout(1000 // QUIET)
            app = self.page.locator('[data-testid="stApp"]')
            quiet = quiet + 1 if app.get_attribute("data-test-script-state") == "notRunning" else 0

    def press(self, key: str) -> None:
        """Presses the button of that key, and waits until its work is done."""
        self.page.locator(f".st-key-{key} button").first.click()
        self.page.wait_for_timeout(300)
        self.settle()

    def text(self) -> str:
        """All text of the page."""
        return str(self.page.inner_text('[data-testid="stApp"]'))

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A screenshot of the page, all of it unless told otherwise."""
        if whole:
            height = self.page.evaluate("document.querySelector('[data-testid=\"stMain\"]').scrollHeight")
            size = self.page.viewport_size
            self.page.set_viewport_size({"width": size["width"], "height": min(max(size["height"], height + 80), 9000)})
            self.page.wait_for_timeout(700)
            self.page.screenshot(path=str(path))
            self.page.set_viewport_size(size)
        else:
            self.page.screenshot(path=str(path))

    def strangers(self) -> list[str]:
        """What was asked of anyone but this machine."""
        apart = ("data", "blob", "about")
        return [
            url for url in self.requests if urlsplit(url).scheme not in apart and urlsplit(url).hostname not in _LOCAL
        ]
