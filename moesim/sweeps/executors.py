"""What computes the points of a sweep: a stream of tasks in, their answers out, in whatever order they come."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from typing import Any, Protocol

from moesim.sweeps.work import Answer, Task, answer


class Executor(Protocol):
    """Computes tasks, each once; takes the next task when there is room for it."""

    def run(self, tasks: Iterator[Task]) -> Generator[Answer]:
        """The answer of every task. Closing the iterator ends the work."""
        ...


class InProcess:
    """Computes one point after another in this process."""

    def run(self, tasks: Iterator[Task]) -> Generator[Answer]:
        """As `Executor` says."""
        for task in tasks:
            yield answer(task)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def interpreter(code: str, **options: Any) -> subprocess.Popen[bytes]:
    """A fresh Python that runs `code` and finds what this one finds; it never imports the user's script.

    It has a session of its own, for Ctrl-C is this process's to hear, and leaves standard output alone.
    """
    found = f"import sys; sys.path[:] = {sys.path!r}; {code}"
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", found], start_new_session=True, **quiet, **options)  # noqa: S603
