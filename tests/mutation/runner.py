"""One mutant against its tests, in a forked process: the file on disk stays as it is."""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType

import numpy as np
import pytest
from mutants import Mutant

MEMORY = 6 << 30
WAITING = 50  # a busy machine gives a niced process little time
KILLING = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)  # the latter where a test file does not import
PLAIN = ("-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "-o", "addopts=")
KILLED, SURVIVED, TIMEOUT, INVALID = "killed", "survived", "timeout", "invalid"


class _Loader(SourceFileLoader):
    """Loads a module from a text in place of its file's."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str) -> CodeType:
        """The text, compiled; no byte code is read or kept."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `is` beside a number is a mutant as good as any
            return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Finds one module as its mutant."""

    def __init__(self, name: str, path: str, text: str) -> None:
        self.name, self.path, self.text = name, path, text

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The mutant, where it is asked for; a package's own file keeps its folder."""
        if fullname != self.name:
            return None
        folder = [str(Path(self.path).parent)] if self.path.endswith("__init__.py") else None
        loader = _Loader(fullname, self.path, self.text)
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=loader, submodule_search_locations=folder
        )


class _Chosen:
    """A pytest plugin that runs the named tests in the given order and stops at the first that fails."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.place = {test: index for index, test in enumerate(tests)}
        self.killer = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keeps the chosen ones."""
        items[:] = sorted((item for item in items if item.nodeid in self.place), key=lambda one: self.place[one.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remembers who failed."""
        if report.failed:
            self.killer = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test file that cannot be imported kills as well."""
        if report.failed:
            self.killer = report.nodeid


def judge(root: Path, mutant: Mutant, tests: Sequence[str], limit: float) -> tuple[str, float, str]:
    """What became of the mutant, after how many seconds, which test killed it; `limit`: processor seconds at most."""
    text = mutant.source((root / mutant.path).read_text(encoding="utf-8"))
    began = time.perf_counter()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(root, mutant, text, tests, (writer, limit))
    os.close(writer)
    outcome = outcome_of(child, limit)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as pipe:
        killer = pipe.read()
    return outcome, time.perf_counter() - began, killer


def outcome_of(child: int, limit: float) -> str:
    """What a child's end says of its mutant: a failed test or a crash kills, a run without any test does not."""
    status = _wait(child, WAITING * limit)
    code = -signal.SIGKILL if status is None else os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return TIMEOUT
    return KILLED if code in KILLING or code < 0 else SURVIVED


def restrain(limit: float) -> None:
    """A child's own group, silence, and bounds of time and memory."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)


def _child(root: Path, mutant: Mutant, text: str, tests: Sequence[str], to: tuple[int, float]) -> None:
    """Runs the tests and leaves with pytest's exit code; never returns."""
    code = 70
    try:
        writer, limit = to
        restrain(limit)
        module = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        sys.meta_path.insert(0, _Finder(module, str(root / mutant.path), text))
        np.seterr(over="ignore")  # as the compiled kernels, whose 64-bit words wrap around
        chosen = _Chosen(tests)
        files = sorted({test.partition("::")[0] for test in tests})
        code = int(pytest.main(["-x", *PLAIN, *files], plugins=[chosen]))
        os.write(writer, chosen.killer.encode()[:2000])
    finally:
        os._exit(code)


def _wait(child: int, limit: float) -> int | None:
    """The child's exit status, or None where it had to be killed."""
    end, pause = time.monotonic() + limit, 0.02
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(pause)
        pause = min(0.2, pause * 1.3)
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.waitpid(child, 0)
    return None
