"""Dask: the same bytes, workers that are lost, and clear words where the cluster is not as it should be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sweep_fixture import SMALL, Watch, run, wait_until

import moesim
from moesim.errors import MissingPackageError, UserError
from moesim.sweeps.dask_executor import BATCH, DaskPool

psutil = pytest.importorskip("psutil", reason="comes with Dask")
distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'moesim[dask]'")
# Its event loop and sockets are closed in threads of their own, some after the test.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
SEEDS = 48


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(tmp_path, monkeypatch)


class Cluster(NamedTuple):
    """A scheduler of the user's."""

    address: str
    scheduler: int


@pytest.fixture
def cluster(watch: Watch, tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler with two loopback workers that nobody restarts; their points take 20 ms longer."""
    watch.set(pause=0.02)
    place = tmp_path / "scheduler.json"
    start = "import sys; sys.argv[1:] = {options!r}; from distributed.cli.{program} import main; main()"
    scheduler = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(place)]
    worker = ["--scheduler-file", str(place), "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    worker += ["--local-directory", str(tmp_path), "--memory-limit", "0"]
    commands = [("dask_scheduler", scheduler), ("dask_worker", worker), ("dask_worker", worker)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", start.format(program=program, options=options)], stderr=subprocess.DEVNULL
        )
        for program, options in commands
    ]
    wait_until(place.exists)
    with distributed.Client(scheduler_file=str(place), set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    yield Cluster(json.loads(place.read_text())["address"], processes[0].pid)
    for process in processes:
        process.kill()
        process.wait()


def reference(folder: Path) -> bytes:
    """The table of the same sweep, computed in this process."""
    moesim.sweep(SMALL, seeds=SEEDS, out=folder, workers=0)
    return (folder / "sweep.parquet").read_bytes()


def test_a_lost_worker_loses_no_point(cluster: Cluster, watch: Watch, tmp_path: Path) -> None:
    """One of two workers is killed at a point: the other one takes over, and the bytes are the same."""
    killed: list[int] = []

    def kill(what: str, share: float, left: float | None) -> None:
        busy = watch.at_work()
        if not killed and share > 0.2 and busy:
            killed.append(busy[0])
            os.kill(killed[0], signal.SIGKILL)

    found = moesim.sweep(
        SMALL, seeds=SEEDS, out=tmp_path / "out", executor="dask", address=cluster.address, progress=kill
    )
    assert killed
    assert found.counts == {"done": SEEDS}
    assert (found.computed, found.notes) == (SEEDS, ())
    assert len({process for process, _, _ in watch.lines()} - {os.getpid()}) == 2
    # Only the batch that the killed worker was at, and one that it had not delivered, may be begun twice.
    assert sum(watch.seeds("begin").values()) <= SEEDS + 2 * BATCH["estimate"]
    assert (tmp_path / "out" / "sweep.parquet").read_bytes() == reference(tmp_path / "whole")
    _the_command_line_takes_the_address(cluster, tmp_path)
    _a_scheduler_that_goes_away_is_told(cluster, tmp_path)


def _the_command_line_takes_the_address(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(json.dumps({"scenario": SMALL, "seeds": 9}))
    options = ["--executor", "dask", "--address", cluster.address, "--out", tmp_path / "verb", "--json"]
    told = run(tmp_path / "sweep.yaml", *options)
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert (answer["points_done"], answer["computed"]) == (9, 9)


def _a_scheduler_that_goes_away_is_told(cluster: Cluster, tmp_path: Path) -> None:
    """Kills the scheduler under a sweep: what is done is kept, and a later run goes on without Dask."""

    def kill(what: str, share: float, left: float | None) -> None:
        if share > 0.2:
            os.kill(cluster.scheduler, signal.SIGKILL)

    out = tmp_path / "gone"
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"scheduler is gone.*points of this run are kept: go on with --resume"):
        moesim.sweep(SMALL, seeds=SEEDS, out=out, executor="dask", address=cluster.address, progress=kill)
    assert time.monotonic() - begun < 60
    found = moesim.sweep(SMALL, seeds=SEEDS, out=out, resume=True, workers=0)
    assert found.reused >= SEEDS // 5
    assert (out / "sweep.parquet").read_bytes() == (tmp_path / "whole" / "sweep.parquet").read_bytes()


def test_a_point_that_kills_every_worker_fails_alone(watch: Watch, tmp_path: Path) -> None:
    """On loopback workers of our own, which are started again."""
    watch.set(deadly=20)
    heard: set[str] = set()

    def listen(what: str, share: float, left: float | None) -> None:
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                heard.update(socket.laddr.ip for socket in process.net_connections() if socket.status == "LISTEN")

    found = moesim.sweep(SMALL, seeds=SEEDS, executor="dask", workers=2, out=tmp_path / "out", progress=listen)
    assert heard == {"127.0.0.1"}
    assert found.counts == {"done": SEEDS - 1, "failed": 1}
    assert found.failed["seed"].tolist() == [20]
    assert found.failed["reason"].tolist() == ["its Dask workers died, each time it was tried"]
    again = moesim.sweep(SMALL, seeds=SEEDS, out=tmp_path / "out", resume=True, workers=0)
    assert (again.computed, again.reused) == (1, SEEDS - 1)
    assert (tmp_path / "out" / "sweep.parquet").read_bytes() == reference(tmp_path / "whole")


def test_a_worker_of_another_release_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.sweeps.dask_executor.__version__", "9.9.9")
    with pytest.raises(UserError, match=r"has moesim 0\.1\.0; install 9\.9\.9 there"):
        moesim.sweep(SMALL, seeds=4, executor="dask", address=cluster.address)


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.sweeps.dask_executor._REACH", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(UserError, match=f"no Dask scheduler answers at {address}"):
            next(DaskPool(address).run(iter(())))


def test_without_dask_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'moesim\[dask\]'"):
        moesim.sweep(SMALL, seeds=2, executor="dask")


def test_workers_are_counted_only_where_they_are_ours() -> None:
    with pytest.raises(UserError, match="those of a Dask scheduler are its own"):
        moesim.sweep(SMALL, seeds=2, executor="dask", address="tcp://127.0.0.1:9", workers=2)
