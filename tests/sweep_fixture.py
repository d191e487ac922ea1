"""Small sweeps, and workers that are watched: what they begin and end is logged, and they can be slow or deadly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
OLMOE = ROOT / "scenarios" / "olmoe-8-h100.yaml"
SMALL: dict[str, Any] = {
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "parallelism": {"expert": 8},
    "workload": {"sequence_length": 2048, "global_batch": 64},
    "routing": {"load": "olmoe-like"},
    "simulation": {"microbatch_samples": 1},
}

# Python runs `sitecustomize` in every process that finds it, hence in workers too.
HOOK = """
import os, signal, time

def note(what, scenario):
    line = f"{os.getpid()} {what} {scenario.simulation.seed}\\n".encode()
    log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, line)
    os.close(log)

def deadly(scenario):
    if str(scenario.simulation.seed) != os.environ.get("WATCH_DEADLY"):
        return False
    spent = os.environ["WATCH_LOG"] + ".spent"
    if os.environ.get("WATCH_ONCE") and os.path.exists(spent):
        return False
    open(spent, "w").close()
    return True

def watched(road):
    def run(scenario, *arguments, **options):
        note("begin", scenario)
        if deadly(scenario):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("WATCH_PAUSE", 0)))
        try:
            return road(scenario, *arguments, **options)
        finally:
            note("end", scenario)
    return run

if "WATCH_LOG" in os.environ:
    from moesim import roads
    roads.estimate, roads.simulate = watched(roads.estimate), watched(roads.simulate)
"""


class Watch:
    """What the workers of this test have logged: (process, "begin" or "end", seed of the point) one a line."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.log = folder / "watch.log"
        self.patch = patch
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        path = [str(folder / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("WATCH_LOG", str(self.log))

    def set(self, **settings: object) -> None:
        """How the workers to come behave: pause=seconds, deadly=seed, once=True."""
        for name, value in settings.items():
            self.patch.setenv(f"WATCH_{name.upper()}", str(value))

    def lines(self) -> list[tuple[int, str, int]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(process), what, int(seed)) for process, what, seed in map(str.split, lines)]

    def seeds(self, what: str) -> Counter[int]:
        """How often each point has begun, or ended."""
        return Counter(seed for _, told, seed in self.lines() if told == what)

    def at_work(self) -> list[int]:
        """Processes that are at a point."""
        begun = Counter(process for process, told, _ in self.lines() if told == "begin")
        return list(begun - Counter(process for process, told, _ in self.lines() if told == "end"))


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "moesim", "sweep", *map(str, arguments)]


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, env=environment, **options)
