"""Many mutants in one pytest session: tests are collected once, each mutant lives in a fork of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import numpy as np
import pytest
from _pytest.runner import runtestprotocol
from mutants import Mutant
from runner import PLAIN, outcome_of, restrain
from swap import Place, put


@dataclass(frozen=True)
class Job:
    """A mutant, its changed functions, and the tests that judge it, within `limit` processor seconds."""

    mutant: Mutant
    changed: list[tuple[Place, CodeType]]
    tests: Sequence[str]
    limit: float


Tell = Callable[[Job, tuple[str, float, str]], None]


class _Loop:
    """A pytest plugin that judges mutants in place of running the tests."""

    def __init__(self, jobs: Sequence[Job], tell: Tell) -> None:
        self.jobs, self.tell = jobs, tell

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """One fork a mutant."""
        items = {item.nodeid: item for item in session.items}
        for job in self.jobs:
            self.tell(job, _judged(job, [items[test] for test in job.tests if test in items]))
        return True


def judge_all(jobs: Sequence[Job], tests: Sequence[str], tell: Tell) -> None:
    """Judges all jobs in one session over the test files; `tell` hears of each."""
    if jobs:
        pytest.main([*PLAIN, *tests], plugins=[_Loop(jobs, tell)])


def _judged(job: Job, items: Sequence[pytest.Item]) -> tuple[str, float, str]:
    began, (reader, writer) = time.perf_counter(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(job, items, writer)
    os.close(writer)
    outcome = outcome_of(child, job.limit)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as pipe:
        killer = pipe.read()
    return outcome, time.perf_counter() - began, killer


def _child(job: Job, items: Sequence[pytest.Item], writer: int) -> None:
    """Runs the tests until one fails and leaves with 1 then, else with 0; never returns."""
    code = 70
    try:
        restrain(job.limit)
        np.seterr(over="ignore")
        put(_module(job.mutant.path), job.changed)
        for item in items:
            if any(report.failed for report in runtestprotocol(item, nextitem=None, log=False)):
                os.write(writer, item.nodeid.encode()[:2000])
                code = 1
                break
        else:
            code = 0
    finally:
        os._exit(code)


def _module(path: str) -> str:
    return Path(path).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
