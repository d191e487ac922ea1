"""Runs the command line on files made to harm it: each run in a forked process that cannot outgrow its limits.

One process, started once, has imported everything; it forks for each run, so that a run that hangs, crashes or eats
memory harms nobody, and costs milliseconds.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 5
PATIENCE = 60
MEMORY = 2 << 30
ROOMS = (
    "moesim.cli",
    "moesim.calibration",
    "moesim.listing",
    "moesim.placement.judge",
    "moesim.placement.source",
    "moesim.planner.run",
    "moesim.rebalancing",
    "moesim.results.compare",
    "moesim.results.store",
    "moesim.results.table",
    "moesim.roads",
    "moesim.scenario.loading",
    "moesim.serving.run",
    "moesim.serving.store",
    "moesim.serving.trace_file",
    "moesim.sweeps.run",
    "moesim.traces.importers",
    "moesim.traces.inspect",
    "moesim.validation.run",
    "rich.progress",
)
# Control characters, among them those that end an escape sequence, and marks that turn the direction of text.
UNSHOWN = {
    *map(chr, (*range(0x20), *range(0x7F, 0xA0))),
    *"\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
}


@dataclass(frozen=True)
class Told:
    """What became of a run: exit code (negative: the signal that ended it), what it printed, seconds of the
    processor, bytes of memory that it took beyond what it began with."""

    code: int
    out: str
    err: str
    seconds: float
    memory: int

    @property
    def last(self) -> str:
        """The last line of its standard error."""
        return self.err.rstrip("\n").rpartition("\n")[2]


def run(folder: Path, *words: str | Path, torch: bool = False, seconds: float = PATIENCE, **env: str) -> Told:
    """What `moesim WORDS` does in `folder`; ended by a signal after `seconds`."""
    server = _server()
    request = {"words": list(map(str, words)), "folder": str(folder), "torch": torch, "seconds": seconds, "env": env}
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return Told(**json.loads(server.stdout.readline()))


def assert_refused(told: Told, *words: str, code: int = 2, memory: int = MEMORY // 2) -> None:
    """The run ended by itself with one clear line that holds `words`, and nothing else went to the terminal."""
    assert told.code == code, f"exit {told.code} after {told.seconds:.1f} s: {told.err[-2000:]}"
    assert "Traceback" not in told.err
    assert "internal error" not in told.err
    said = told.err.strip().split("\n")
    assert said[0].startswith("moesim: "), told.err[:300]
    assert all(line.startswith("  - ") for line in said[1:]), told.err[:2000]
    assert len(said) < 60
    assert max(map(len, said)) < 1200, "a line that nobody reads"
    assert_shown(told)
    for word in words:
        assert word in told.err, told.err
    assert told.out == ""
    assert told.seconds < SECONDS
    assert told.memory < memory, f"{told.memory >> 20} MiB"


def assert_shown(told: Told) -> None:
    """Nothing that the run printed steers a terminal."""
    steering = (UNSHOWN - {"\n"}) & {*told.out, *told.err}
    assert not steering, (steering, told.out[:500], told.err[:500])


@cache
def _server() -> subprocess.Popen[str]:
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **quiet},
        cwd=Path(__file__).parents[1],
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.communicate()


def _serve() -> None:
    """Answers requests, one a line, until there are no more."""
    sys.path[0] = os.getcwd()
    for room in ROOMS:
        __import__(room)
    for line in sys.stdin:
        request = json.loads(line)
        if request["torch"]:
            __import__("torch")
        print(json.dumps(_forked(request)), flush=True)


def _forked(request: dict[str, Any]) -> dict[str, Any]:
    answers = [os.memfd_create(name) for name in ("out", "err", "memory")]
    child = os.fork()
    if child == 0:
        _confined(request, answers)
    _, status, used = os.wait4(child, 0)
    texts = [os.pread(answer, 1 << 20, 0).decode("utf-8", "replace") for answer in answers]
    for answer in answers:
        os.close(answer)
    memory = used.ru_maxrss * 1024 - int(texts[2] or 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": texts[0],
        "err": texts[1],
        "seconds": used.ru_utime + used.ru_stime,
        "memory": memory,
    }


def _confined(request: dict[str, Any], answers: list[int]) -> NoReturn:
    """The run itself, in the forked process."""
    code = 99
    try:
        with open("/proc/self/statm") as file:
            size, resident = (int(pages) * resource.getpagesize() for pages in file.read().split()[:2])
        os.write(answers[2], str(resident).encode())
        resource.setrlimit(resource.RLIMIT_AS, (size + 2 * MEMORY, size + 2 * MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(answers[0], 1)
        os.dup2(answers[1], 2)
        os.chdir(request["folder"])
        os.environ.update(request["env"])
        sys.argv = ["moesim", *request["words"]]
        sys.modules["moesim.cli"].main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
