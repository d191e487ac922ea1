"""What is done is kept: whole or not at all, once, and told when it was damaged."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupts import hears, interrupt
from sweep_fixture import SMALL, Watch, alive, command, run, wait_until

import moesim
from moesim import roads
from moesim.errors import FileError, UserError
from moesim.sweeps.header import Header, read_header
from moesim.sweeps.store import FolderStore, folder_store

SEEDS = 24
HEADER = Header("", "small", "estimate", (), "a", "b")


@pytest.fixture
def statement(tmp_path: Path) -> Path:
    """A sweep file of `SEEDS` points."""
    path = tmp_path / "seeds.yaml"
    path.write_text(json.dumps({"scenario": SMALL, "seeds": SEEDS}))
    return path


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(tmp_path, monkeypatch)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "points").glob("*/*.json"))


def table(folder: Path) -> bytes:
    return (folder / "sweep.parquet").read_bytes()


def computed() -> tuple[list[int], Callable[[Any], Any]]:
    """Seeds that are estimated, and the estimate that notes them."""
    asked: list[int] = []
    estimate = roads.estimate

    def counted(scenario: moesim.Scenario) -> moesim.Result:
        asked.append(scenario.simulation.seed)
        return estimate(scenario)

    return asked, counted


def test_a_killed_sweep_goes_on_where_it_was(
    statement: Path, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of the whole run: no point is lost, what was stored is not computed again, the bytes are the same."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    watch.set(pause=0.1)
    process = subprocess.Popen(command(statement, "--out", out, "--workers", 2), stderr=subprocess.DEVNULL)
    wait_until(lambda: len(files(out)) >= 6)
    process.kill()
    process.wait()
    workers = {number for number, _, _ in watch.lines()} - {process.pid}
    stored = len(files(out))
    assert 6 <= stored < SEEDS
    assert len(workers) == 2
    wait_until(lambda: not any(map(alive, workers)), 10)
    ended = set(watch.seeds("end"))
    assert not (out / "sweep.parquet").exists()

    again, counted = computed()
    with monkeypatch.context() as patch:
        patch.setattr("moesim.roads.estimate", counted)
        found = moesim.sweep(statement, out=out, resume=True, workers=0)
    assert (found.computed, found.reused, found.notes) == (SEEDS - stored, stored, ())
    assert len(again) == len(set(again)) == SEEDS - stored
    assert set(again) | ended == set(range(SEEDS))
    # What had ended but not arrived: at most what was on its way at that moment.
    assert len(set(again) & ended) <= 2
    moesim.sweep(statement, out=whole, workers=0)
    assert table(out) == table(whole)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "points", "sweep.json", "sweep.parquet"]


def test_interrupted_it_ends_cleanly_and_goes_on(statement: Path, watch: Watch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    watch.set(pause=0.1)
    process = subprocess.Popen(
        command(statement, "--out", out, "--workers", 2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears,
    )
    wait_until(lambda: len(files(out)) >= 4)
    said, noted = interrupt(process)
    assert process.returncode == 130
    assert said == ""
    assert "Traceback" not in noted
    assert noted.splitlines()[-1] == f"moesim: interrupted: what is done is kept in {out}/; go on with --resume"
    assert not any(alive(number) for number, _, _ in watch.lines())
    stored = len(files(out))
    found = moesim.sweep(statement, out=out, resume=True, workers=0)
    assert (found.computed, found.reused) == (SEEDS - stored, stored)
    assert not found.notes


def test_a_finished_sweep_is_not_computed_again(
    statement: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moesim.sweep(statement, out=tmp_path / "out")
    before = table(tmp_path / "out")
    with pytest.raises(UserError, match="holds the results of a sweep; go on with --resume"):
        moesim.sweep(statement, out=tmp_path / "out")
    asked, counted = computed()
    monkeypatch.setattr("moesim.roads.estimate", counted)
    moesim.sweep(statement, out=tmp_path / "out", resume=True)
    assert asked == []
    assert table(tmp_path / "out") == before


def test_a_larger_sweep_takes_over_what_is_there(tmp_path: Path) -> None:
    moesim.sweep(SMALL, seeds=3, out=tmp_path)
    found = moesim.sweep(SMALL, seeds=5, over={"workload.micro_batch": [1, 2]}, out=tmp_path, resume=True)
    assert (found.computed, found.reused) == (5 + 2, 3)


def test_another_release_computes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moesim.sweep(SMALL, seeds=2, out=tmp_path)
    monkeypatch.setattr("moesim.sweeps.run.__version__", "0.0.9")
    assert moesim.sweep(SMALL, seeds=2, out=tmp_path, resume=True).computed == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def exchanged(path: Path) -> None:
    path.write_bytes(next(other for other in files(path.parents[2]) if other != path).read_bytes())


@pytest.mark.parametrize("damage", [cut, flip, longer, empty, exchanged], ids=lambda damage: damage.__name__)
def test_a_damaged_answer_is_computed_again_and_told(damage: Callable[[Path], None], tmp_path: Path) -> None:
    moesim.sweep(SMALL, seeds=4, out=tmp_path)
    before = table(tmp_path)
    victim = files(tmp_path)[2]
    damage(victim)
    found = moesim.sweep(SMALL, seeds=4, out=tmp_path, resume=True)
    assert (found.computed, found.reused) == (1, 3)
    assert found.notes == (f"cut or changed, computed again: {victim.relative_to(tmp_path).as_posix()}",)
    assert table(tmp_path) == before
    assert not moesim.sweep(SMALL, seeds=4, out=tmp_path, resume=True).notes


def test_an_answer_that_vanishes_while_the_sweep_runs_is_told(tmp_path: Path) -> None:
    def take_away(what: str, share: float, left: float | None) -> None:
        if what == "writing the table":
            files(tmp_path)[0].unlink()

    with pytest.raises(FileError, match="taken away or changed while the sweep ran"):
        moesim.sweep(SMALL, seeds=3, out=tmp_path, progress=take_away)
    assert moesim.sweep(SMALL, seeds=3, out=tmp_path, resume=True).computed == 1


def test_a_full_disk_ends_with_one_message_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, written = os.replace, []

    def full(source: Path, target: Path) -> None:
        if len(written) == 4:  # the header, and three answers
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("moesim.sweeps.store.os.replace", full)
        with pytest.raises(FileError) as caught:
            moesim.sweep(SMALL, seeds=6, out=tmp_path)
    message = str(caught.value)
    assert "No space left on device" in message
    assert "3 points of this run are kept: go on with --resume" in message
    assert files(tmp_path) == sorted(written[1:])
    assert not (tmp_path / ".part").exists()
    found = moesim.sweep(SMALL, seeds=6, out=tmp_path, resume=True)
    assert (found.computed, found.reused, found.notes) == (3, 3, ())


@pytest.mark.parametrize(("limit", "stored"), [(500, 0), (20_000, SEEDS)], ids=["answers", "table"])
def test_the_system_refuses_a_write(limit: int, stored: int, statement: Path, tmp_path: Path) -> None:
    """A limit on the size of files breaks a write midway, as a full disk does: of an answer, or of the table."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out"
    told = run(statement, "--out", out, "--workers", 0, preexec_fn=small_files)
    assert told.returncode == 2
    assert "cannot write" in told.stderr
    assert "File too large" in told.stderr
    assert "Traceback" not in told.stderr
    assert len(files(out)) == stored
    assert not (out / "sweep.parquet").exists()
    assert {path.name for path in out.iterdir()} == {".lock", "points", "sweep.json"}
    found = moesim.sweep(statement, out=out, resume=True)
    assert (found.reused, found.notes) == (stored, ())


def test_two_sweeps_into_one_folder_are_refused(statement: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder_store(out, False, HEADER):
        told = run(statement, "--out", out, "--resume")
        assert told.returncode == 2
        assert f"another sweep (process {os.getpid()}) is writing into {out}" in told.stderr
        with pytest.raises(UserError, match="another sweep"):
            moesim.sweep(statement, out=out, resume=True)
    assert moesim.sweep(statement, out=out).computed == SEEDS


def test_a_killed_sweep_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from moesim.sweeps.store import folder_store\n"
        "from moesim.sweeps.header import Header\n"
        f"with folder_store(Path({str(tmp_path / 'out')!r}), False, {HEADER!r}):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {process.pid}"), folder_store(tmp_path / "out", False, HEADER):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with folder_store(tmp_path / "out", False, HEADER):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(FileError, match="cannot write results"):
            moesim.sweep(SMALL, seeds=1, out=folder)


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    key, text = "0" * 32, '{"status":"done","reason":"é","summary":{}}'
    assert store.get(key) is None
    store.put(key, text)
    assert store.get(key) == {"status": "done", "reason": "é", "summary": {}}
    assert not store.damaged


def test_another_sweep_does_not_replace_a_table(tmp_path: Path) -> None:
    """Another scenario, road, question, or other fields: refused with both named, and nothing is touched."""
    one = {"question": "Which micro-batch?", "scenario": SMALL, "grid": {"workload.micro_batch": [1, 2]}}
    moesim.sweep(one, out=tmp_path)
    before = table(tmp_path)
    header = (tmp_path / "sweep.json").read_bytes()
    larger = {**SMALL, "cluster": {"gpu": "h100-sxm", "gpus": 16}}
    for other, which in (
        ({**one, "question": "How many seeds?"}, "question"),
        ({**one, "road": "simulate"}, "road"),
        ({**one, "scenario": larger}, "scenario"),
        ({**one, "grid": {"parallelism.expert": [4, 8]}}, "fields that vary"),
        ({**one, "question": "", "scenario": larger}, "question and scenario"),
    ):
        for resume in (True, False):
            with pytest.raises(UserError) as caught:
                moesim.sweep(other, out=tmp_path, resume=resume)
            message = str(caught.value)
            assert (
                'holds another sweep: "Which micro-batch?" (estimate of scenario over workload.micro_batch)' in message
            )
            assert f"They differ in {which}: name another --out" in message
            assert "--resume" not in message
    assert (table(tmp_path), (tmp_path / "sweep.json").read_bytes()) == (before, header)


def test_the_same_sweep_may_grow(tmp_path: Path) -> None:
    """More values, seeds and fields; the same scenario as a mapping, in a file, and loaded."""
    moesim.sweep(SMALL, {"workload.micro_batch": [1]}, out=tmp_path / "out")
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SMALL))
    grown: list[tuple[Any, dict[str, list[Any]], int | None]] = [
        (SMALL, {"workload.micro_batch": [1, 2]}, None),
        (path, {"workload.micro_batch": [1, 2]}, 2),
        (moesim.load(path), {"parallelism.expert": [8], "workload.micro_batch": [1, 2]}, 2),
    ]
    for scenario, over, seeds in grown:
        found = moesim.sweep(scenario, over, seeds, out=tmp_path / "out", resume=True, workers=0)
        assert found.reused > 0
        assert not found.notes
    assert read_header((tmp_path / "out" / "sweep.json").read_text()).fields == (  # type: ignore[union-attr]
        "parallelism.expert",
        "workload.micro_batch",
    )
    with pytest.raises(UserError, match="differ in fields that vary"):
        moesim.sweep(SMALL, seeds=2, out=tmp_path / "out", resume=True)


def test_points_that_leave_the_table_are_told(tmp_path: Path) -> None:
    moesim.sweep(SMALL, {"workload.micro_batch": [1, 2, 4]}, out=tmp_path)
    found = moesim.sweep(SMALL, {"workload.micro_batch": [2, 8]}, out=tmp_path, resume=True)
    assert (found.computed, found.reused, len(files(tmp_path))) == (1, 1, 4)
    assert "the table that lay there had 2 points that this sweep has not" in found.notes[0]
    again = moesim.sweep(SMALL, {"workload.micro_batch": [1, 2, 4, 8]}, out=tmp_path, resume=True)
    assert (again.computed, again.notes) == (0, ())


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"question": ""}', None])
def test_a_damaged_header_is_told_and_written_anew(text: str | None, tmp_path: Path) -> None:
    moesim.sweep(SMALL, seeds=2, out=tmp_path)
    place = tmp_path / "sweep.json"
    whole = place.read_text()
    if text is None:
        place.unlink()
    else:
        place.write_text(text)
    with pytest.raises(UserError, match="go on with --resume"):
        moesim.sweep(SMALL, seeds=2, out=tmp_path)
    found = moesim.sweep(SMALL, seeds=2, out=tmp_path, resume=True)
    assert found.reused == 2
    assert "the folder did not say whose answers it holds" in found.notes[0]
    assert place.read_text() == whole


def test_a_header_without_answers_binds_nobody(tmp_path: Path) -> None:
    """Killed before the first answer: there is nothing to lose."""
    (tmp_path / "sweep.json").write_text(HEADER.text())
    assert moesim.sweep(SMALL, seeds=2, out=tmp_path).computed == 2
