"""The same question gives the same bytes: in another process, with other threads, hash seeds, workers and clocks.

Each variant is one process that answers all questions. In the second everything is otherwise: there is no home and no
network, and the clock leaps by years, so that a time of day in any file would show.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from faults.hooks import CLOCK, NETWORK, hook
from faults.reading import Content, content, shown
from faults.several import several
from faults.subjects import TRACE, make_inputs

from moesim.traces import store
from moesim.traces.trace import RouterTrace

SEQUENCES = 24
THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")
WRITTEN = ("simulated", "again", "served", "sweep", "swept", "plan", "rebalanced", "compared")
FILES = ("fitted.safetensors", "placed.json", "calibrated.yaml", "seen.html")


def few(path: Path) -> Path:
    """The shipped trace's first sequences: enough to fit, and quick."""
    whole = store.load(TRACE)
    tokens = int(np.searchsorted(whole.sequence, SEQUENCES))
    of_tokens = {name: getattr(whole, name) for name in ("experts", "sequence", "position", "weights", "token_id")}
    cut = {name: None if array is None else array[:tokens] for name, array in of_tokens.items()}
    store.save(RouterTrace(**cut, domain=whole.domain[:SEQUENCES], step=whole.step[:SEQUENCES], meta=whole.meta), path)
    return path


def questions(inputs: Path, out: Path, workers: int) -> list[list[object]]:
    """Every verb whose answer is no clock's, small."""
    olmoe, trace = inputs / "olmoe.yaml", inputs / "few.safetensors"
    served = ["simulate", inputs / "serving.yaml", "--set", "workload.requests=20", "--out", out / "served"]
    drifting = ["--steps", 10, "--intervals", "1,2", "--seeds", 1]
    return [
        ["estimate", olmoe, "--json"],
        ["simulate", olmoe, "--out", out / "simulated"],
        ["simulate", olmoe, "--out", out / "again"],
        served,
        ["sweep", inputs / "sweep.yaml", "--workers", 0, "--out", out / "sweep"],
        ["sweep", inputs / "simulated.yaml", "--workers", workers, "--out", out / "swept"],
        ["plan", inputs / "plan-1.yaml", "--candidates", 20, "--workers", max(1, workers), "--out", out / "plan"],
        ["trace", "fit", trace, "--out", out / "fitted.safetensors"],
        ["trace", "inspect", trace, "--out", out / "seen.html"],
        ["place", trace, "--ranks", 4, "--strategy", "co-activation", "--out", out / "placed.json"],
        ["rebalance", olmoe, *drifting, "--out", out / "rebalanced"],
        ["compare", olmoe, inputs / "other-1.yaml", "--out", out / "compared"],
        ["calibrate", inputs / "rows-0.csv", "--out", out / "calibrated.yaml"],
    ]


class Answers(NamedTuple):
    """What `estimate` said, and every file that is shown, of the plain process and of the other one."""

    said: tuple[str, str]
    plain: Content
    other: Content
    folder: Path


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("determinism")
    inputs = make_inputs(folder / "inputs")
    few(inputs / "few.safetensors")
    points = (inputs / "sweep.yaml").read_text().replace("seeds: 4", "seeds: 1") + "road: simulate\n"
    (inputs / "simulated.yaml").write_text(points)
    plain = several(questions(inputs, folder / "plain", 0), PYTHONHASHSEED="0", **dict.fromkeys(THREADS, "1"), TZ="UTC")
    otherwise = {
        "PYTHONHASHSEED": "77",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C",
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": "",
        "FAULTS_REACHED": str(folder / "reached.log"),
        **dict.fromkeys(THREADS, "2"),
    }
    first = hook(folder / "hook", CLOCK + NETWORK)
    other = several(questions(inputs, folder / "other", 2), first=first, **otherwise)
    for told in (plain, other):
        assert [one.code for one in told] == [0] * len(told), told
    found = [shown(content(folder / name)) for name in ("plain", "other")]
    return Answers((plain[0].said, other[0].said), *found, folder)


def of(found: Content, name: str) -> Content:
    return {path: data for path, data in found.items() if path == name or path.startswith(f"{name}/")}


@pytest.mark.parametrize("name", [*WRITTEN, *FILES])
def test_the_same_bytes(name: str, answers: Answers) -> None:
    one, other = of(answers.plain, name), of(answers.other, name)
    assert one
    assert [path for path in one.keys() | other.keys() if one.get(path) != other.get(path)] == []


def test_no_file_is_left_out(answers: Answers) -> None:
    assert {path.split("/")[0] for path in answers.plain} == {*WRITTEN, *FILES}


def test_the_closed_form_says_the_same(answers: Answers) -> None:
    one, other = answers.said
    assert one == other
    assert '"step_time"' in one


def test_one_process_says_the_same_twice(answers: Answers) -> None:
    once, again = (
        {path.split("/")[1]: data for path, data in of(answers.plain, name).items()} for name in ("simulated", "again")
    )
    assert once == again


def test_nothing_is_reached_and_nothing_written_but_results(answers: Answers) -> None:
    """The home that was named and not there got the drawing library's script for the next page, and nothing else."""
    reached, home = answers.folder / "reached.log", answers.folder / "home"
    assert not reached.exists(), reached.read_text()
    assert {path.name for path in answers.folder.iterdir()} <= {"inputs", "plain", "other", "hook", "home"}
    assert [path.parent for path in home.rglob("*") if path.is_file()] == [home / ".cache" / "moesim"]


def test_a_sweep_on_dask_gives_the_same_bytes(answers: Answers, tmp_path: Path) -> None:
    words = ["sweep", answers.folder / "inputs" / "simulated.yaml", "--executor", "dask", "--workers", 1]
    assert several([[*words, "--out", tmp_path / "out"]])[0].code == 0
    assert (tmp_path / "out" / "sweep.parquet").read_bytes() == answers.plain["swept/sweep.parquet"]
