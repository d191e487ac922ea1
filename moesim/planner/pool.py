"""Worker processes that answer candidates, one for each core; answers come back in the order of the questions.

They are plain programs on pipes, not forks: a user's script needs no guard around its main part, and Ctrl-C reaches
this process alone, which ends them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from queue import SimpleQueue

from moesim.errors import InternalError, UserError
from moesim.planner.answers import BROKEN, Answer, Road, ask, from_line, question_line
from moesim.scenario.loading import AnyScenario
from moesim.sweeps.executors import cores

FEWEST = 4
"""Questions for which starting workers would take longer than answering here."""
MOST_LOST = 16
"""Workers that may end on their own before the plan gives up."""


class Pool:
    """Workers, started at the first need or ahead of it; to be used in a `with` block, which ends them.

    `workers`: how many; the cores this process may use unless stated. One means that this process answers itself.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or cores()
        self._all: list[subprocess.Popen[str]] = []
        self._over = False
        self._lost = 0
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.kill()
        for worker in self._all:
            for pipe in (worker.stdin, worker.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            worker.wait()
        self._all = []

    def start_ahead(self) -> None:
        """Starts one a core, so that they are ready when they are asked; without, the first question does."""
        if self.workers > 1:
            self._start(min(self.workers, cores()))

    def answers(
        self, road: Road, scenarios: Sequence[AnyScenario], heard: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """The answers in the order of the scenarios; `heard` is told how many are there."""
        few = len(scenarios) < FEWEST and road == "estimate"
        if self.workers == 1 or (not self._all and (few or len(scenarios) < 2)):
            return self._here(road, scenarios, heard)
        self._start(min(self.workers, len(scenarios)))
        with ThreadPoolExecutor(len(self._all)) as threads:
            places = {threads.submit(self._there, road, scenario): at for at, scenario in enumerate(scenarios)}
            found: dict[int, Answer] = {}
            try:
                for done in as_completed(places):
                    found[places[done]] = done.result()
                    if heard is not None:
                        heard(len(found))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                self._over = True
                for worker in self._all:
                    worker.kill()
                raise
        return [found[place] for place in range(len(scenarios))]

    def _here(self, road: Road, scenarios: Sequence[AnyScenario], heard: Callable[[int], None] | None) -> list[Answer]:
        found = []
        for scenario in scenarios:
            found.append(ask(road, scenario))
            if heard is not None:
                heard(len(found))
        return found

    def _start(self, count: int) -> None:
        """Starts as many as are missing to `count`."""
        for _ in range(count - len(self._all)):
            worker = _worker()
            self._all.append(worker)
            self._idle.put(worker)

    def _there(self, road: Road, scenario: AnyScenario) -> Answer:
        """What a worker answers. One that dies of a candidate is replaced, and the candidate is refused."""
        worker = self._idle.get()
        line = _exchanged(worker, question_line(road, scenario))
        if not line:
            code = worker.wait()
            self._lost += 1
            if self._lost > MOST_LOST:
                raise UserError(f"{self._lost} worker processes ended, the last with exit code {code}: out of memory?")
            if not self._over:
                worker = _worker()
                self._all.append(worker)
        self._idle.put(worker)
        if not line:
            return Answer(road, {}, {}, {}, (), f"its worker process ended (exit code {code})")
        answer = from_line(line)
        if answer.refusal is not None and answer.refusal.startswith(BROKEN):
            raise InternalError(f"a candidate of the plan failed: {answer.refusal.removeprefix(BROKEN)}")
        return answer


def _exchanged(worker: subprocess.Popen[str], question: str) -> str:
    """The worker's line in answer to a line; empty where it is no more."""
    if worker.stdin is None or worker.stdout is None:
        raise InternalError("a worker has no pipes")
    try:
        worker.stdin.write(question + "\n")
        worker.stdin.flush()
        return worker.stdout.readline()
    except (BrokenPipeError, ValueError):
        return ""


def _worker() -> subprocess.Popen[str]:
    """A process of its own session, which finds the same modules as this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "moesim.planner.answers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=environment,
        start_new_session=True,
    )
