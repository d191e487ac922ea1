"""Faults on purpose: kill -9, a folder that cannot be written, a full disk, missing packages, two at once.

The kills here are a few; `python -m tests.faults kills` makes hundreds. No home, no network and a clock that leaps:
`test_determinism.py`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from faults.hooks import HIDE, NETWORK, hook
from faults.kills import kill_many
from faults.reading import content, mixed, shown, torn
from faults.several import Told, powerless, several
from faults.subjects import TRACE, environment, make_inputs

OPTIONAL = "torch,streamlit,dask,distributed,polars"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def writers(inputs: Path, out: Path) -> dict[str, list[object]]:
    """Commands that write, one each, by name."""
    rows, olmoe, other = inputs / "rows-0.csv", inputs / "olmoe.yaml", inputs / "other-1.yaml"
    return {
        "simulate": ["simulate", olmoe, "--out", out / "simulated"],
        "plan": ["plan", inputs / "plan-0.yaml", "--workers", 1, "--candidates", 20, "--out", out / "plan"],
        "sweep": ["sweep", inputs / "sweep.yaml", "--workers", 0, "--out", out / "sweep"],
        "compare": ["compare", olmoe, other, "--out", out / "comparison"],
        "calibrate": ["calibrate", rows, "--out", out / "mine.yaml"],
        "place": ["place", TRACE, "--ranks", 4, "--strategy", "greedy", "--out", out / "placed.json"],
        "trace inspect": ["trace", "inspect", TRACE, "--out", out / "seen.html"],
    }


def test_kills_leave_nothing_half_written(tmp_path: Path) -> None:
    *_, found = kill_many(tmp_path, 10, seed=4, names=["sweep", "place"], chain=2)
    assert found.wrong == []
    assert found.kills == 10
    assert found.ends >= 5


def test_a_cut_file_and_files_of_two_runs_are_seen(tmp_path: Path) -> None:
    """What judges the kills: it must be able to say no."""
    found = {
        "a.json": b'{"a": [1, 2]}\n',
        "b.csv": b"x,y\n1,2\n",
        "c.yaml": b"a:\n  b: 1\n  c: 2\n",
        "d.html": b"<html></html>\n",
    }
    assert torn(found) == []
    assert torn({name: data[:-2] for name, data in found.items()}) == list(found)
    old, new = {"table": b"1", "mark.json": b"old"}, {"table": b"2", "mark.json": b"new"}
    assert mixed(old, [old, new], "mark.json") == []
    assert mixed({"table": b"2"}, [old, new], "mark.json") == []
    assert mixed({**old, "table": b"2"}, [old, new], "mark.json") == ["mark.json", "table"]
    assert mixed({"table": b"3"}, [old, new], "mark.json") == ["table"]
    assert shown({".moesim-x/draft": b"", "a": b""}) == {"a": b""}


def refused(told: list[Told], why: str) -> None:
    for one in told:
        assert one.code == 2, one
        assert "moesim: cannot " in one.said
        assert why in one.said


def test_a_read_only_folder_is_told(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    refused(several([*writers(inputs, out).values()], before=powerless), "Permission denied")
    assert content(tmp_path) == {}


def test_a_full_disk_is_told_and_leaves_what_was_there(inputs: Path, tmp_path: Path) -> None:
    """A limit on the size of files breaks off every write, as a disk does that fills up."""
    (tmp_path / "placed.json").write_text("old")
    commands = writers(inputs, tmp_path)
    asked = [commands[name] for name in ("plan", "compare", "calibrate", "place", "trace inspect")]
    refused(several(asked, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))), "File too large")
    assert content(tmp_path) == {"placed.json": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["placed.json"]


def test_the_network_guard_sees_an_attempt(tmp_path: Path) -> None:
    reached = tmp_path / "reached.log"
    code = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)"
    told = environment(first=hook(tmp_path / "hook", NETWORK), FAULTS_REACHED=str(reached))
    ended = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=False)
    assert "Network is unreachable" in ended.stderr
    assert "192.0.2.1" in reached.read_text()


def test_a_missing_package_gives_the_line_that_installs_it(inputs: Path, tmp_path: Path) -> None:
    recording = tmp_path / "recording.pt"
    with zipfile.ZipFile(recording, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    trace, gpu = "pip install 'moesim[trace]'", [tmp_path / "own.csv", "--seconds", 1]
    asked = {
        ("dashboard",): "pip install 'moesim[app]'",
        ("trace", "train", "--preset", "tiny", "--out", tmp_path / "traces"): trace,
        ("trace", "inspect", recording): trace,
        ("measure", "gpu", *gpu): trace,
        ("measure", "collectives", *gpu): trace,
        (
            "sweep",
            inputs / "sweep.yaml",
            "--executor",
            "dask",
            "--out",
            tmp_path / "sweep",
        ): "pip install 'moesim[dask]'",
        ("estimate", inputs / "olmoe.yaml"): "",
    }
    told = several([*asked], first=hook(tmp_path / "hook", HIDE), FAULTS_HIDDEN=OPTIONAL)
    for words, one in zip(asked, told, strict=True):
        line = asked[words]
        assert one.code == (2 if line else 0), (words, one)
        assert line in one.said, (words, one)
        assert not line or one.said.count("\n") <= 2, (words, one)


@pytest.mark.parametrize("package", ["altair", "simpy"])
def test_a_package_that_moesim_cannot_do_without_is_named(package: str, inputs: Path, tmp_path: Path) -> None:
    words = ["simulate", inputs / "olmoe.yaml", "--out", tmp_path / "out"]
    (told,) = several([words], first=hook(tmp_path / "hook", HIDE), FAULTS_HIDDEN=package)
    assert told.code == 2
    assert f"the package {package}, which moesim needs, is not installed: pip install moesim" in told.said


WRITER = """
import sys
from results_fixture import Shape, simulated
from moesim.results.store import save
result = simulated(Shape(seed=int(sys.argv[2])))
print("ready", flush=True)
for _ in range(6):
    save(result, sys.argv[1])
"""


def test_two_processes_write_one_folder(tmp_path: Path) -> None:
    """Both end; a reader in between finds one of both results, or that there is none; at the end it is one of them."""
    from moesim.errors import FileError
    from moesim.results.store import load

    out = tmp_path / "out"
    words = [[sys.executable, "-c", WRITER, str(out), str(seed)] for seed in (7, 8)]
    told = environment()
    writers = [subprocess.Popen(one, stdout=subprocess.PIPE, text=True, env=told) for one in words]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    found, absent = set(), 0
    while any(writer.poll() is None for writer in writers):
        try:
            found.add(json.dumps(load(out).as_dict()))
        except FileError:
            absent += 1
        time.sleep(0.02)
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    found.add(json.dumps(load(out).as_dict()))
    assert 1 <= len(found) <= 2
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert os.listdir(tmp_path) == ["out"]
