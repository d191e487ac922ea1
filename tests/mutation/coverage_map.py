"""Which test runs which lines of the mutated files, and its processor time; known again until a file changes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path
from typing import Any

import coverage
import numpy as np
import pytest
from mutants import Mutant, users
from runner import PLAIN

OVERHEAD = 0.01
"""Seconds that pytest adds to a test."""
ONLOOKERS = 100


class Watch:
    """A pytest plugin: each test has a coverage context of its own and its processor time; failures are left out."""

    def __init__(self, sources: list[str], root: Path) -> None:
        self.root = root
        self.coverage = coverage.Coverage(data_file=None, include=[str(root / source) for source in sources])
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Everything until the test's end is its own."""
        self.coverage.switch_context(item.nodeid)
        began = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - began
        self.coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remembers who cannot judge."""
        if report.failed or report.skipped:
            self.failed.add(report.nodeid)

    def found(self) -> dict[str, Any]:
        """Seconds of each test, and for each file the tests of each line."""
        data = self.coverage.get_data()
        lines: dict[str, dict[str, list[str]]] = {}
        for name in data.measured_files():
            by_line = data.contexts_by_lineno(name)
            lines[Path(name).relative_to(self.root).as_posix()] = {
                str(line): sorted(test for test in tests if test and test not in self.failed)
                for line, tests in sorted(by_line.items())
            }
        judges = {test: took for test, took in self.seconds.items() if test not in self.failed}
        return {"seconds": judges, "lines": lines}


@dataclass(frozen=True)
class Reach:
    """Which tests run which lines of the files below `root`, and their processor seconds."""

    root: Path
    by_line: dict[str, dict[str, list[str]]]
    took: dict[str, float]

    def seconds(self, tests: list[str]) -> float:
        """Of these tests together."""
        return sum(self.took[test] for test in tests)

    def is_direct(self, mutant: Mutant) -> bool:
        """Whether tests run its line, not the import of its file."""
        return bool(self.by_line.get(mutant.path, {}).get(str(mutant.line)))

    def onlookers(self) -> set[str]:
        """Tests that run no line of the files, the quickest of them: they may judge what the import made, such as the
        kind of a class."""
        busy = {test for lines in self.by_line.values() for tests in lines.values() for test in tests}
        return set(nsmallest(ONLOOKERS, self.took.keys() - busy, key=lambda test: (self.took[test], test)))

    def tests(self, mutant: Mutant, most: float) -> list[str]:
        """The tests that run the mutant's line, or, of a line that runs at import, the lines that use what it defines.

        Those that look at what an import made go first; else the quickest case of each test function, then each one's
        second, within `most` seconds.
        """
        lines = self.by_line.get(mutant.path, {})
        found = set(lines.get(str(mutant.line), ()))
        for line in () if found else users(self.root / mutant.path, mutant.line):
            found |= set(lines.get(str(line), ()))
        if not found:
            found = {test for tests in lines.values() for test in tests}
        first = set() if self.is_direct(mutant) else self.onlookers()
        turns: Counter[str] = Counter()
        queue = []
        for took, test in sorted((self.took[test], test) for test in found | first):
            function = test.partition("[")[0]
            turns[function] += 1
            queue.append((0 if test in first else turns[function], took, test))
        total, kept = 0.0, []
        for _, took, test in sorted(queue):
            total += took + OVERHEAD
            if total <= most:
                kept.append(test)
        return kept


def coverage_of(sources: list[str], tests: list[str], root: Path, path: Path) -> Reach:
    """What tests reach, known at `path` or measured in a process of its own: this one must not import the room."""
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new, part = stale(known, tests, sources, root), path.with_suffix(".part")
    if new:
        print(f"looks which lines {len(new)} test files run", flush=True)
        child = os.fork()
        if child == 0:
            try:
                np.seterr(over="ignore")  # as the compiled kernels, whose 64-bit words wrap around
                measure(sources, new, root, part)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        known = merged(known, json.loads(part.read_text(encoding="utf-8")), new, sources, root)
        path.write_text(json.dumps(known), encoding="utf-8")
    return Reach(root, known["lines"], known["seconds"])


def measure(sources: list[str], tests: list[str], root: Path, out: Path) -> None:
    """Runs the test files once and writes the map to `out`."""
    watch = Watch(sources, root)
    watch.coverage.start()
    pytest.main([*PLAIN, *tests], plugins=[watch])
    watch.coverage.stop()
    out.write_text(json.dumps(watch.found()), encoding="utf-8")


def stale(known: dict[str, Any], tests: list[str], sources: list[str], root: Path) -> list[str]:
    """Test files that the map does not know as they are; all of them where a mutated file has changed."""
    now = {path: _digest(root / path) for path in (*sources, *tests)}
    told: dict[str, str] = known.get("digests", {})
    if any(told.get(path) != now[path] for path in sources):
        return tests
    return [path for path in tests if told.get(path) != now[path]]


def merged(known: dict[str, Any], fresh: dict[str, Any], tests: list[str], sources: list[str], root: Path) -> Any:
    """What is known of other test files, and what was measured of `tests`."""

    def other(test: str) -> bool:
        return test.partition("::")[0] not in tests

    seconds = {test: took for test, took in known.get("seconds", {}).items() if other(test)}
    lines: dict[str, dict[str, list[str]]] = {}
    for old in (known.get("lines", {}), fresh["lines"]):
        for path, by_line in old.items():
            for line, found in by_line.items():
                kept = found if old is fresh["lines"] else [test for test in found if other(test)]
                lines.setdefault(path, {}).setdefault(line, []).extend(kept)
    digests = known.get("digests", {}) | {path: _digest(root / path) for path in (*sources, *tests)}
    return {"digests": digests, "seconds": {**seconds, **fresh["seconds"]}, "lines": lines}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
