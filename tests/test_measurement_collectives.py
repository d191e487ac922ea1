"""`measure collectives` between two processes by gloo."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moesim.errors import UnknownNameError, UserError
from moesim.measurement.columns import COLUMNS

torch = pytest.importorskip("torch", reason="torch is not installed (extra `trace`)")

from moesim.measurement.torch_collectives import collective_cases, measure_collectives  # noqa: E402

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo here")

BEGIN = """
import os, sys
from moesim.measurement import torch_collectives as collectives
from moesim.measurement.plan import Case
every = collectives.collective_cases
"""
PLAN = """
def chosen(preset, ranks):
    return [case for case in every(preset, ranks) if case.op["bytes"] in (1 << 12, 1 << 18)]
collectives.collective_cases = chosen
"""
RUN = """
from moesim.measurement.__main__ import main
sys.exit(main(["collectives", *sys.argv[1:]]))
"""
UNABLE = """
prepare, count = collectives.prepare_exchange, [0]
def unable(case, group):
    count[0] += 1
    if group.rank == 1 and count[0] == 2:
        raise RuntimeError("can't allocate memory")
    if group.rank == 1 and count[0] == 4:
        os._exit(0)
    return prepare(case, group)
collectives.prepare_exchange = unable
"""


def two_processes(program: str, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """Runs the program as rank 0 and 1, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # Gloo asks for the machine's own name otherwise, which need not be known.
    shared |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    done = []
    try:
        for process in processes:
            out, error = process.communicate(timeout=60)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return done


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@needs_gloo
def test_two_processes_time_every_exchange_and_the_first_writes(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    ranks = two_processes(BEGIN + PLAN + RUN, str(path), "--preset", "small", "--seconds", "30")
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    assert "rows on 2 x cpu" in ranks[0].stdout
    assert ranks[1].stdout == ""
    rows = rows_of(path)
    assert {row["collective"] for row in rows} == {
        *("all-to-all", "all-to-all-unequal", "all-gather", "reduce-scatter", "all-reduce", "point-to-point")
    }
    for row in rows:
        assert row["kind"] == ("all_to_all" if row["collective"].startswith("all-to-all") else "collective")
        assert {name for name in COLUMNS[row["kind"]] if row.get(name)} >= {"collective", "ranks", "bytes", "library"}
        assert (row["ranks"], row["ranks_per_domain"], row["library"]) == ("2", "2", "gloo")
        assert 1e-7 < float(row["time"]) < 5
        assert int(row["repeats"]) >= 5
        unequal = row["collective"] == "all-to-all-unequal"
        assert (float(row["imbalance"] or 1) > 1) == unequal
        if not unequal:
            assert int(row["bytes"]) in (1 << 12, 1 << 18)
        assert unequal == bool(row["load"])
    by_load = {row["load"]: float(row["imbalance"]) for row in rows if row["load"] and int(row["bytes"]) > 1 << 17}
    assert by_load["hot-rank 2"] == pytest.approx(2)


@needs_gloo
def test_a_rank_that_cannot_or_is_gone_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    first, _ = two_processes(BEGIN + UNABLE + RUN, str(path), "--preset", "small", "--seconds", "30")
    assert "skipped: another rank could not prepare it" in first.stderr
    assert first.returncode == 2
    assert "Error: the ranks lost each other: " in first.stderr
    assert "2 rows were kept" in first.stderr
    assert len(rows_of(path)) == 2


def test_one_process_is_told_how_to_start_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="this is one process; start several"):
        measure_collectives()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"preset": "large"}, "unknown preset 'large'"),
        ({"seconds": -1.0}, "seconds is -1.0"),
        ({"nic": 0.0}, "nic is 0.0"),
        ({"ranks_per_domain": 0}, "ranks_per_domain is 0"),
        ({"output": "file.json"}, "ends in .csv or .parquet"),
    ],
)
def test_a_bad_argument_is_one_clear_message(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, float | str], told: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=told) as error:
        measure_collectives(**given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_cases_begin_with_every_equal_exchange_of_the_largest_size() -> None:
    found = collective_cases("full", 8)
    assert {case.op["collective"] for case in found[:5]} == {
        *("all-to-all", "all-gather", "reduce-scatter", "all-reduce", "point-to-point")
    }
    assert {case.op["bytes"] for case in found[:5]} == {1 << 30}
    assert min(case.op["bytes"] for case in found) == 1 << 10
    assert len({case.label for case in found}) == len(found)
    assert not any(case.op.get("load") == "hot-rank 4" for case in collective_cases("small", 2))
    with pytest.raises(UnknownNameError):
        collective_cases("middle", 8)
