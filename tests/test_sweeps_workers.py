"""Worker processes: the same bytes whoever computes, and a worker that dies costs nothing but its own point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_fixture import SMALL, Watch, alive

import moesim
from moesim.errors import InternalError

SEEDS = 16


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(tmp_path, monkeypatch)


def reference(folder: Path) -> bytes:
    """The table of the same sweep, computed in this process."""
    moesim.sweep(SMALL, seeds=SEEDS, out=folder, workers=0)
    return (folder / "sweep.parquet").read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_bytes_for_every_number_of_workers(workers: int, tmp_path: Path) -> None:
    found = moesim.sweep(SMALL, seeds=SEEDS, out=tmp_path / "pool", workers=workers)
    assert found.counts == {"done": SEEDS}
    assert (tmp_path / "pool" / "sweep.parquet").read_bytes() == reference(tmp_path / "alone")


def test_simulated_points_give_the_same_bytes(tmp_path: Path) -> None:
    for workers in (0, 2):
        moesim.sweep(SMALL, seeds=3, road="simulate", out=tmp_path / str(workers), workers=workers)
    alone, pool = ((tmp_path / name / "sweep.parquet").read_bytes() for name in ("0", "2"))
    assert alone == pool


def test_a_worker_that_is_killed_loses_no_point(watch: Watch, tmp_path: Path) -> None:
    """From outside, mid-sweep: the point it was at is computed again by another, and no other."""
    watch.set(pause=0.05)
    killed: list[int] = []

    def kill(what: str, share: float, left: float | None) -> None:
        busy = watch.at_work()
        if not killed and share > 0.3 and busy:
            killed.append(busy[0])
            os.kill(killed[0], signal.SIGKILL)

    found = moesim.sweep(SMALL, seeds=SEEDS, out=tmp_path / "out", workers=2, progress=kill)
    assert killed
    assert found.counts == {"done": SEEDS}
    assert (found.computed, found.notes) == (SEEDS, ())
    assert set(watch.seeds("end")) == set(range(SEEDS))
    assert sum(watch.seeds("begin").values()) <= SEEDS + 1
    assert not any(alive(process) for process, _, _ in watch.lines())
    assert (tmp_path / "out" / "sweep.parquet").read_bytes() == reference(tmp_path / "whole")


def test_a_point_that_kills_its_worker_once_is_done(watch: Watch) -> None:
    watch.set(deadly=5, once=True)
    found = moesim.sweep(SMALL, seeds=SEEDS, workers=2)
    assert found.counts == {"done": SEEDS}
    begun = watch.seeds("begin")
    assert begun.pop(5) == 2
    assert set(begun.values()) == {1}


def test_a_point_that_kills_every_worker_fails_alone(watch: Watch, tmp_path: Path) -> None:
    watch.set(deadly=5)
    found = moesim.sweep(SMALL, seeds=SEEDS, workers=2, out=tmp_path / "out")
    assert found.counts == {"done": SEEDS - 1, "failed": 1}
    assert found.failed["seed"].tolist() == [5]
    assert found.failed["reason"].tolist() == ["its worker died 2 times (exit code -9)"]
    begun = watch.seeds("begin")
    assert begun.pop(5) == 2
    assert set(begun.values()) == {1}
    # A failure is no answer: the next run tries again, and only that.
    again = moesim.sweep(SMALL, seeds=SEEDS, out=tmp_path / "out", resume=True, workers=0)
    assert (again.computed, again.reused) == (1, SEEDS - 1)
    assert (tmp_path / "out" / "sweep.parquet").read_bytes() == reference(tmp_path / "whole")


def test_workers_that_cannot_start_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InternalError, match="end before they begin"):
        moesim.sweep(SMALL, seeds=2, workers=1)


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """Workers never import the user's script, which would start a sweep of its own in each."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import moesim\nfound = moesim.sweep({SMALL!r}, seeds=3, workers=2)\nprint('rows', len(found.table))\n"
    )
    told = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert told.stdout == "rows 3\n"
    assert told.stderr == ""
