"""Loads the dashboard: many sessions at once that move sliders over loopback; to be run by hand.

    python tests/benchmarks/load_dashboard.py [--sessions 20] [--seconds 60] [--pause 1.0]

Each session is a WebSocket to a dashboard that this script starts, as a browser has one: it moves a slider, reads what
comes back until the script has finished, waits a little, and goes on; the time begins when all are open. A session has
a routing seed of its own, so that none finds its answers kept for another; a move to what does not run is taken back.
Told: answers with numbers and with reasons why not, errors, response times of those with numbers, and how much memory
the dashboard took. Exit code 1 where there was an error or the median is beyond two seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[1]))

import browser_fixture
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketError, websocket_connect

SCENARIOS = ("deepseek-v3-2048-h800", "mixtral-8x7b-64-h100", "olmoe-8-h100", "qwen3-235b-256-gb200")
MEDIAN_LIMIT = 2.0
PATIENCE = 60.0
MOST_SESSIONS, MOST_SECONDS = 100, 600


@dataclass
class Told:
    """What all sessions found."""

    times: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    refused: int = 0
    moved: int = 0
    processor: float = 0.0


class Session:
    """One reader: a page of What if, its widgets, and the hash of the page."""

    def __init__(self, port: int, seed: int) -> None:
        self._random = Random(seed)
        own = f"routing.seed={seed + 1}"
        self._query = urlencode({"scenario": SCENARIOS[seed % len(SCENARIOS)], "set": own})
        self._address = f"ws://127.0.0.1:{port}/_stcore/stream"
        self._origin = f"http://127.0.0.1:{port}"
        self._sliders: dict[str, Any] = {}
        self._back: tuple[str, str] | None = None
        self.numbers = 0
        self._page = ""
        self._socket: Any = None

    async def open(self) -> None:
        """Connects and waits for the first page."""
        request = HTTPRequest(self._address, headers={"Origin": self._origin})
        self._socket = await websocket_connect(request, subprotocols=["streamlit"])
        message = BackMsg()
        message.rerun_script.query_string = self._query
        await self._ask(message)

    async def move(self) -> bool:
        """Moves one slider by one step and waits for the whole answer; whether the page's link changed with it."""
        before = self._query
        key, option = self._back or self._step()
        now = self._chosen(key)
        message = BackMsg()
        message.rerun_script.page_script_hash = self._page
        message.rerun_script.query_string = self._query
        state = message.rerun_script.widget_states.widgets.add()
        state.id = key
        state.string_array_value.data.append(option)
        await self._ask(message)
        self._back = None if self.numbers else (key, now)
        return self._query != before

    def _step(self) -> tuple[str, str]:
        """A slider by chance, and the option beside the one that it shows."""
        key = self._random.choice(sorted(self._sliders))
        options = list(self._sliders[key].options)
        now = options.index(self._chosen(key))
        return key, options[now + self._random.choice([step for step in (-1, 1) if 0 <= now + step < len(options)])]

    def _chosen(self, key: str) -> str:
        """What a slider shows."""
        slider = self._sliders[key]
        return str(slider.raw_value[0]) if slider.set_value else str(slider.options[int(slider.default[0])])

    async def _ask(self, message: BackMsg) -> None:
        await self._socket.write_message(message.SerializeToString(), binary=True)
        end = time.monotonic() + PATIENCE
        while True:
            data = await asyncio.wait_for(self._socket.read_message(), max(0.1, end - time.monotonic()))
            if data is None:
                raise ConnectionError("the dashboard closed the connection")
            answer = ForwardMsg()
            answer.ParseFromString(data)
            if self._over(answer):
                return

    def _over(self, answer: ForwardMsg) -> bool:
        """Takes in one message; whether it is the last of a run."""
        kind = answer.WhichOneof("type")
        if kind == "new_session":
            self.numbers = 0
            self._page = answer.new_session.page_script_hash
        elif kind == "page_info_changed":
            self._query = answer.page_info_changed.query_string
        elif kind == "delta":
            self._see(answer.delta.new_element)
        return bool(kind == "script_finished" and answer.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY)

    def _see(self, element: Any) -> None:
        if element.WhichOneof("type") == "exception":
            raise RuntimeError(f"the page shows an exception: {element.exception.message[:200]}")
        self.numbers += element.WhichOneof("type") == "metric"
        if element.WhichOneof("type") == "slider" and len(element.slider.options) > 1 and not element.slider.disabled:
            self._sliders[element.slider.id] = element.slider

    def close(self) -> None:
        """Ends the session."""
        if self._socket is not None:
            self._socket.close()


async def opened(session: Session, told: Told) -> None:
    """Opens a session's first page."""
    began = time.monotonic()
    with heard(told):
        await session.open()
        told.first.append(time.monotonic() - began)


async def reader(session: Session, end: float, pause: float, told: Told) -> None:
    """One session that moves sliders to the end of the time."""
    with heard(told):
        while time.monotonic() < end:
            began = time.monotonic()
            changed = await session.move()
            told.moved += changed
            if session.numbers:
                told.times.append(time.monotonic() - began)
            else:
                told.refused += 1
            await asyncio.sleep(pause)


@contextmanager
def heard(told: Told) -> Iterator[None]:
    """Takes down what goes wrong."""
    try:
        yield
    except (OSError, RuntimeError, TimeoutError, WebSocketError) as error:
        told.errors.append(f"{type(error).__name__}: {error}")


async def memory(pid: int, end: float, found: list[int]) -> None:
    """The dashboard's resident bytes, once a second."""
    while time.monotonic() < end:
        found.append(resident(pid))
        await asyncio.sleep(1.0)


def resident(pid: int) -> int:
    """Resident bytes of a process, by /proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def processor_seconds(pid: int) -> float:
    """Processor time of a process and of its threads, by /proc."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


async def load(port: int, pid: int, asked: argparse.Namespace) -> tuple[Told, list[int]]:
    """All sessions at once: first they open, then the time begins."""
    told, sizes = Told(), [resident(pid)]
    sessions = [Session(port, seed) for seed in range(asked.sessions)]
    await asyncio.gather(*(opened(session, told) for session in sessions))
    before, end = processor_seconds(pid), time.monotonic() + asked.seconds
    readers = [reader(session, end, asked.pause, told) for session in sessions]
    await asyncio.gather(*readers, memory(pid, end, sizes))
    told.processor = processor_seconds(pid) - before
    for session in sessions:
        session.close()
    return told, sizes


def main() -> int:
    """Starts the dashboard, loads it, tells what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between an answer and the next move")
    asked = parser.parse_args()
    asked.sessions, asked.seconds = min(asked.sessions, MOST_SESSIONS), min(asked.seconds, MOST_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with browser_fixture.server(log) as (address, process):
            told, sizes = asyncio.run(load(int(address.rpartition(":")[2]), process.pid, asked))
        if told.errors:
            print(log.read_text(errors="replace")[-3000:])
    times = sorted(told.times)
    print(f"{asked.sessions} sessions, {asked.seconds:g} s: {len(times)} answers, {told.refused} refusals, ", end="")
    print(f"{told.moved} with another link, {len(told.errors)} errors")
    for line in told.errors[:10]:
        print(f"  {line}")
    if not times:
        return 1
    at = lambda share: times[min(len(times) - 1, int(share * len(times)))]  # noqa: E731
    median = statistics.median(times)
    print(f"response: median {median:.2f} s, 95 % below {at(0.95):.2f} s, longest {times[-1]:.2f} s")
    print(f"first page: median {statistics.median(told.first):.2f} s, longest {max(told.first):.2f} s")
    at_first, most, at_end = (size / 1e6 for size in (sizes[0], max(sizes), sizes[-1]))
    each = told.processor / (len(times) + told.refused)
    print(f"processor: {each:.2f} s an answer; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"memory: {at_first:.0f} MB at first, {most:.0f} MB at most, {at_end:.0f} MB at the end")
    return int(bool(told.errors) or median > MEDIAN_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
