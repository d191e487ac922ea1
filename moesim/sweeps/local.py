"""Computes points on this machine's cores, in worker processes that may die.

`concurrent.futures` ends all processes when one dies, and cannot tell whose point it was. Here each worker has a
connection of its own and works in order, so that the first unanswered point is the one that it died of: no other point
is blamed or computed again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterator
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from moesim.errors import InternalError
from moesim.sweeps.executors import cores, interpreter
from moesim.sweeps.work import Answer, Task, outcome

AHEAD = {"estimate": 4, "simulate": 1}
"""Points that a worker holds, so that none waits for its next one; a simulated point takes seconds anyway."""
MOST_DEATHS = 2
"""Times that a point may take its worker down before it is given up."""
MOST_STARTS_LOST = 4


class LocalPool:
    """`workers` processes, one a core where None."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or cores()

    def run(self, tasks: Iterator[Task]) -> Generator[Answer]:
        """As `Executor` says. A point whose worker dies is tried once more, then it has failed."""
        work = _Work(tasks, self.workers)
        team = [_Worker() for _ in range(min(self.workers, len(work.waiting)))]
        try:
            while work.share_out(team):
                yield from work.gather(team)
        except KeyboardInterrupt:
            yield from [found for worker in team for found in worker.finished()]
            raise
        finally:
            for worker in team:
                worker.end()


class _Work:
    """What is still to do, and who died of what."""

    def __init__(self, tasks: Iterator[Task], workers: int) -> None:
        self.fresh = tasks
        self.waiting = deque(islice(tasks, workers))
        self.ahead = AHEAD[self.waiting[0].road] if self.waiting else 0
        self.deaths: Counter[str] = Counter()
        self.starts_lost = 0

    def share_out(self, team: list[_Worker]) -> bool:
        """Gives workers what they have room for, one point each in turn; whether anyone has anything to do."""
        for place, worker in enumerate(team):
            if not worker.held and worker.process.poll() is not None:
                worker.end()
                team[place] = _Worker()
        for room in range(self.ahead):
            for worker in team:
                task = self._next() if len(worker.held) == room else None
                if task is not None:
                    worker.give(task)
        return any(worker.held for worker in team)

    def _next(self) -> Task | None:
        return self.waiting.popleft() if self.waiting else next(self.fresh, None)

    def gather(self, team: list[_Worker]) -> Iterator[Answer]:
        """Waits for someone; their answers, and those of points that are given up. The dead are replaced."""
        ready = set(wait([worker.connection for worker in team if worker.held]))
        for place, worker in enumerate(team):
            if worker.connection not in ready:
                continue
            yield from worker.finished()
            if worker.lost:
                worker.end()
                yield from self._bury(worker)
                team[place] = _Worker()

    def _bury(self, worker: _Worker) -> Iterator[Answer]:
        code = worker.process.returncode
        if not worker.began:
            self.starts_lost += 1
            if self.starts_lost > MOST_STARTS_LOST:
                raise InternalError(f"worker processes end before they begin (exit code {code})")
        elif worker.held:
            task = worker.held.popleft()
            self.deaths[task.key] += 1
            if self.deaths[task.key] < MOST_DEATHS:
                self.waiting.appendleft(task)
            else:
                yield Answer(task.key, outcome("failed", f"its worker died {MOST_DEATHS} times (exit code {code})"))
        self.waiting.extendleft(reversed(worker.held))


class _Worker:
    """One worker process, its end of the connection, and the points that it holds, the one it is at first."""

    def __init__(self) -> None:
        self.connection, other = Pipe()
        self.held: deque[Task] = deque()
        self.began = self.lost = False
        start = f"from moesim.sweeps.worker import main; main({other.fileno()})"
        self.process = interpreter(start, pass_fds=[other.fileno()])
        other.close()

    def give(self, task: Task) -> None:
        """Hands over a point; where the worker is dead that is found out when its answers are gathered."""
        self.held.append(task)
        try:
            self.connection.send(tuple(task))
        except OSError:
            self.lost = True

    def finished(self) -> Iterator[Answer]:
        """The answers that have arrived; notes a worker that is no more."""
        for text in _messages(self.connection):
            if text is None:
                self.lost = True
            elif not self.began:
                self.began = True
            else:
                yield Answer(self.held.popleft().key, text)

    def end(self) -> None:
        """Ends the process, whatever it is at: nothing is lost with it but the points that it holds."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _messages(connection: Connection) -> Iterator[str | None]:
    """What has arrived by now; None at the end of the connection."""
    try:
        while connection.poll():
            yield connection.recv_bytes().decode()
    except (EOFError, OSError):
        yield None
