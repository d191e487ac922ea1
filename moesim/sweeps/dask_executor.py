"""Computes points on Dask workers: a scheduler of the user's by its address, or loopback workers of our own.

Answers come back to this process, which alone writes them: workers need no common folder. Estimated points travel in
small batches, because a Dask task costs about as much as a tenth of an estimate. A worker that is lost takes the batch
it is at with it; Dask gives that to another one. The points of a batch that takes down every worker it is given to are
tried one by one with nothing beside them, so that only the one at fault fails.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
import time
from asyncio import CancelledError
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from moesim.errors import InternalError, MissingPackageError, MoesimError, UserError
from moesim.sweeps.executors import cores, interpreter
from moesim.sweeps.work import Answer, Task, answers, outcome
from moesim.version import __version__

BATCH = {"estimate": 8, "simulate": 1}
AHEAD = 2
"""Batches for each thread of a worker: the one it is at, and its next."""
PATIENCE = 60.0
"""Seconds without any worker after which a sweep ends."""
MOST_DEATHS = 2
"""Workers that may die of a point with nothing beside it; one may have died of something else."""
MOST_REPEATS = 5
"""Times that a batch is sent again after Dask has lost it."""
_LOST = (CancelledError, TimeoutError, OSError, KeyError)
_REACH, _LOOK, _PAUSE = 15.0, 1.0, 0.002


class DaskPool:
    """Workers of the scheduler at `address`, or `workers` loopback processes (one a core) where None."""

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        if address is not None and workers is not None:
            raise UserError("workers counts processes started here; those of a Dask scheduler are its own")
        _distributed()
        self.address = address
        self.workers = workers or cores()

    def run(self, tasks: Iterator[Task]) -> Generator[Answer]:
        """As `Executor` says. A point that takes down Dask's workers again and again has failed."""
        with ExitStack() as stack:
            address = self.address or stack.enter_context(_loopback(self.workers))
            client = stack.enter_context(_client(address))
            _meet(client, address)
            yield from _Flow(client, tasks).answers()


class _Flow:
    """Batches on their way: enough for every worker to have its next one, not more."""

    def __init__(self, client: Any, tasks: Iterator[Task]) -> None:
        self.client = client
        self.fresh = tasks
        self.again: deque[list[Task]] = deque()
        self.suspects: deque[Task] = deque()
        self.trial: Task | None = None
        self.deaths: Counter[str] = Counter()
        self.repeats: Counter[str] = Counter()
        self.under_way: dict[Any, list[Task]] = {}
        self.done = _distributed().as_completed(loop=client.loop)
        self.threads, self.looked, self.seen = 0, -_LOOK, time.monotonic()

    def answers(self) -> Iterator[Answer]:
        """Every answer, as it arrives."""
        while self._submit():
            futures = self._done()
            for future, result in zip(futures, self._fetched(futures), strict=True):
                yield from self._settle(self.under_way.pop(future), result)
                future.release()

    def _submit(self) -> bool:
        """Sends batches while there is room; whether any is under way. A suspect goes alone: no other is blamed."""
        self._count_threads()
        while len(self.under_way) < (1 if self.suspects or self.trial else AHEAD * max(1, self.threads)):
            batch = self._batch()
            if not batch:
                break
            future = self.client.submit(answers, __version__, batch, pure=False)
            self.under_way[future] = batch
            self.done.add(future)
        return bool(self.under_way)

    def _batch(self) -> list[Task]:
        if self.suspects:
            self.trial = self.suspects.popleft()
            return [self.trial]
        if self.again:
            return self.again.popleft()
        first = next(self.fresh, None)
        return [] if first is None else [first, *islice(self.fresh, BATCH[first.road] - 1)]

    def _done(self) -> list[Any]:
        """What is done by now; waits for it, and gives up where there has been no worker for long."""
        while not self.done.has_ready():
            self._count_threads()
            if self.threads:
                self.seen = time.monotonic()
            elif time.monotonic() - self.seen > PATIENCE:
                raise UserError(f"the Dask scheduler has had no worker for {PATIENCE:.0f} s")
            time.sleep(_PAUSE)
        return list(self.done.next_batch(block=False))

    def _fetched(self, futures: list[Any]) -> list[Any]:
        """The results, in one journey; where that fails, one by one, with errors in their places."""
        try:
            return list(self.client.gather(futures))
        except (Exception, CancelledError):  # noqa: BLE001 - told one by one
            return [_result(future) for future in futures]

    def _count_threads(self) -> None:
        """Looks about once a second how many points can be worked on at a time."""
        if time.monotonic() - self.looked < _LOOK:
            return
        self.looked = time.monotonic()
        try:
            self.threads = sum(self.client.nthreads().values())
        except (OSError, TimeoutError, RuntimeError) as error:
            raise UserError(f"the Dask scheduler is gone: {error}") from error

    def _settle(self, batch: list[Task], result: Any) -> Iterator[Answer]:
        """The answers of a batch that is back, or what to do about one that is not."""
        if batch == [self.trial]:
            self.trial = None
            self.deaths[batch[0].key] += 1 + getattr(result, "allowed_failures", 0)
        if isinstance(result, list):
            yield from result
        elif not isinstance(result, _distributed().KilledWorker):
            self._repeat(batch, result)
        elif self.deaths[batch[0].key] >= MOST_DEATHS:
            yield Answer(batch[0].key, outcome("failed", "its Dask workers died, each time it was tried"))
        else:
            self.suspects.extend(batch)

    def _repeat(self, batch: list[Task], error: Any) -> None:
        """Sends a batch again that Dask has lost or forgotten; other errors are told."""
        if isinstance(error, MoesimError):
            raise error
        if self.client.status != "running":
            raise UserError("the Dask scheduler is gone") from error
        key = batch[0].key
        self.repeats[key] += 1
        if self.repeats[key] > MOST_REPEATS or not isinstance(error, _LOST):
            why = f"{type(error).__name__}: {error}"
            raise InternalError(f"a Dask worker could not begin with a point: {why}") from error
        self.again.append(batch)


def _result(future: Any) -> Any:
    try:
        return future.result(timeout=_REACH)
    except (Exception, CancelledError) as error:  # noqa: BLE001 - judged by whoever asked
        return error


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingPackageError("Dask is not installed: pip install 'moesim[dask]'") from error
    return distributed


@contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        client = _distributed().Client(address, timeout=_REACH, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {address}: {error}") from error
    try:
        yield client
    finally:
        client.close(timeout=2)


def _meet(client: Any, address: str) -> None:
    """Waits for a first worker and holds every worker's moesim against this one."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        raise UserError(f"the Dask scheduler at {address} has no worker") from error
    for worker, found in client.run(_version, on_error="return").items():
        if found != __version__:
            told = f"moesim {found}" if isinstance(found, str) else f"no moesim that works ({found})"
            raise UserError(f"the Dask worker {worker} has {told}; install {__version__} there, as here")


def _version() -> str:
    return __version__


@contextmanager
def _loopback(workers: int) -> Iterator[str]:
    """A scheduler in this process and worker processes, reachable from this machine alone; its address."""
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="moesim-dask-", ignore_cleanup_errors=True))
        address: str = stack.enter_context(_cluster()).scheduler_address
        options = [address, "--nworkers", str(workers), "--nthreads", "1", "--host", "127.0.0.1"]
        options += [
            "--no-dashboard",
            "--dashboard-address",
            "127.0.0.1:0",
            "--memory-limit",
            "0",
            "--local-directory",
            scratch,
            "--death-timeout",
            "120",
        ]
        start = f"import sys; sys.argv[1:] = {options!r}; from distributed.cli.dask_worker import main; main()"
        process = interpreter(start, stderr=subprocess.DEVNULL)
        stack.callback(_end, process)
        yield address


def _cluster() -> Any:
    """A scheduler without workers."""
    try:
        return _distributed().LocalCluster(
            n_workers=0,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            scheduler_kwargs={"allowed_failures": 0},
        )
    except (OSError, RuntimeError, TimeoutError) as error:
        why = f"a Dask scheduler cannot be started or reached on 127.0.0.1: {error}"
        raise UserError(f"{why}; --executor local needs no network") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """Lets the nanny stop its workers, and does not wait for ever."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
