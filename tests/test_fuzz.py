"""Whatever moesim is given to read, it answers or refuses in its own words, soon, in little memory, and writes nothing
elsewhere. Real files, changed a little or a lot; the same ones on every run, more of them by `python -m tests.fuzz`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from fuzz.guard import Guard
from fuzz.mutate import mutate
from fuzz.targets import TARGETS
from fuzz.trees import Words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.errors import InternalError, UserError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are held by Linux's own means")


@pytest.fixture
def guard() -> Iterator[Guard]:
    watch = Guard()
    with watch.open():
        yield watch


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_answered_or_refused(name: str, guard: Guard) -> None:
    if name == "url":
        pytest.importorskip("streamlit", reason="the dashboard is not installed: pip install 'moesim[app]'")
    target = TARGETS[name]
    words = Words(tuple(target.seeds()))
    for data in words.seeds:
        verdict = guard(target.run, data, free=True)
        assert verdict.failure is None, f"a real file fails: {verdict.failure.text}"
    guard.cap_memory()

    @settings(max_examples=target.in_ci, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(words.seeds), st.randoms(use_true_random=False))
    def one(data: bytes, random: Random) -> None:
        changed = mutate(data, random, words)
        failure = guard(target.run, changed).failure
        assert failure is None, f"{failure.name}\n{failure.text}\n{changed!r}"

    one()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_most_real_files_are_accepted(name: str, guard: Guard) -> None:
    if name == "url":
        pytest.importorskip("streamlit", reason="the dashboard is not installed: pip install 'moesim[app]'")
    seeds = TARGETS[name].seeds()[:8]
    accepted = [guard(TARGETS[name].run, data, free=True).accepted for data in seeds]
    assert sum(accepted) > len(seeds) / 2


class TestGuard:
    """The guard sees what it should: else no finding of the fuzzer would mean anything."""

    def test_errors_of_ours_are_answers_and_all_others_are_failures(self, guard: Guard) -> None:
        def raising(error: Exception) -> str | None:
            def run(data: bytes) -> None:
                raise error

            failure = guard(run, b"").failure
            return failure and failure.kind

        assert raising(UserError("no such thing")) is None
        assert raising(UserError("")) == "UserError"
        assert raising(InternalError("tokens were lost")) == "InternalError"
        assert raising(KeyError("x")) == "KeyError"

    def test_warnings_are_failures(self, guard: Guard) -> None:
        import numpy as np

        failure = guard(lambda data: np.float64(1.0) / np.float64(0.0) and None, b"").failure
        assert failure is not None
        assert failure.kind == "RuntimeWarning"

    def test_work_without_end_is_cut_off(self) -> None:
        def run(data: bytes) -> None:
            while True:
                pass

        short = Guard(seconds=0.2)
        with short.open():
            failure = short(run, b"").failure
        assert failure is not None
        assert failure.kind == "Hang"

    def test_memory_is_bounded(self, guard: Guard) -> None:
        guard.cap_memory()
        failure = guard(lambda data: bytearray(3 << 30) and None, b"").failure
        assert failure is not None
        assert failure.kind == "MemoryError"

    def test_writing_elsewhere_is_caught_and_does_not_happen(self, tmp_path: Path, guard: Guard) -> None:
        def runs(change: object) -> str | None:
            failure = guard(lambda data: change and change(), b"").failure  # type: ignore[operator]
            return failure and failure.kind

        there, here = tmp_path / "x", Path("x")
        for change in (lambda: there.write_text("x"), there.mkdir, lambda: there.symlink_to("y")):
            assert runs(change) == "Escape"
        assert not there.exists()
        assert runs(lambda: here.write_text("x")) is None
        assert runs(lambda: here.rename(there)) == "Escape"
        assert here.exists()


def test_changes_keep_files_readable_often_enough(guard: Guard) -> None:
    """A fuzzer whose inputs all fail at the door tests the door alone."""
    for name, least in (("scenario", 0.03), ("set", 0.1), ("case", 0.3), ("trace", 0.02), ("sweep", 0.1)):
        target, random = TARGETS[name], Random(0)
        words = Words(tuple(target.seeds()))
        accepted = sum(
            guard(target.run, mutate(random.choice(words.seeds), random, words)).accepted for _ in range(200)
        )
        assert accepted >= least * 200, f"{name}: {accepted} of 200"
