"""The commands under test, each small: how it is run, whether it goes on, and which of its files comes last."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).parents[2]
SCENARIOS, TRACES = ROOT / "scenarios", ROOT / "moesim" / "catalog" / "data" / "traces"
TRACE = TRACES / "cpu-small-switch-top-1.safetensors"
OLMOE = {
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "parallelism": {"expert": 8},
    "workload": {"sequence_length": 2048, "global_batch": 64},
    "routing": {"load": "olmoe-like"},
    "simulation": {"microbatch_samples": 1},
}
# Two tiny models in the manner of `trace train`; every step is told, so that a repeated one is seen.
TRAIN = """
import sys
from pathlib import Path
from moesim.traces import torch_train, training
from moesim.traces.torch_door import torch
torch.set_num_threads(1)
tiny = training.preset("tiny").runs
training.PRESETS["two"] = lambda: training.Preset((tiny[0], tiny[3]))
steps = open(sys.argv[3], "a", buffering=1)
tell = lambda at: steps.write(f"{at.name} {at.step}\\n")
torch_train.train_preset("two", sys.argv[1], sys.argv[2], tell, resume="--resume" in sys.argv)
"""


@dataclass(frozen=True)
class Subject:
    """One command. `mark` is the file that comes last; none where its files are on their own."""

    name: str
    words: Callable[[Path, Path, int], list[str]]
    """(inputs, output folder, which of two questions) -> what to run after the interpreter."""
    mark: str = ""
    resumes: bool = False
    timed: bool = False
    """Its answers are the clock's: no run repeats another's bytes."""
    torch: bool = False


def _moesim(*words: object) -> list[str]:
    return ["-m", "moesim", *map(str, words)]


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "simulate",
            lambda inputs, out, which: _moesim(
                "simulate", inputs / "olmoe.yaml", "--set", f"simulation.seed={which}", "--out", out
            ),
            "result.json",
        ),
        Subject(
            "serve",
            lambda inputs, out, which: _moesim(
                "simulate", inputs / "serving.yaml", "--set", f"simulation.seed={which}", "--out", out
            ),
            "result.json",
        ),
        Subject(
            "sweep",
            lambda inputs, out, which: _moesim("sweep", inputs / "sweep.yaml", "--workers", 0, "--out", out),
            resumes=True,
        ),
        Subject(
            "sweep of 2 workers",
            lambda inputs, out, which: _moesim("sweep", inputs / "sweep.yaml", "--workers", 2, "--out", out),
            resumes=True,
        ),
        Subject(
            "plan",
            lambda inputs, out, which: _moesim("plan", inputs / f"plan-{which}.yaml", "--workers", 1, "--out", out),
            "plan.json",
        ),
        Subject(
            "trace train",
            lambda inputs, out, which: [str(inputs / "train.py"), str(out), str(inputs / "text"), f"{out}.steps"],
            resumes=True,
            torch=True,
        ),
        Subject(
            "trace fit",
            lambda inputs, out, which: _moesim(
                "trace", "fit", TRACE, "--seed", which, "--out", out / "fitted.safetensors"
            ),
        ),
        Subject(
            "calibrate",
            lambda inputs, out, which: _moesim("calibrate", inputs / f"rows-{which}.csv", "--out", out / "mine.yaml"),
        ),
        Subject(
            "measure",
            lambda inputs, out, which: _moesim(
                "measure", "gpu", out / "own.csv", "--kinds", "launch,memory_bound", "--device", "cpu", "--seconds", 2
            ),
            timed=True,
            torch=True,
        ),
        Subject(
            "compare",
            lambda inputs, out, which: _moesim(
                "compare", inputs / "olmoe.yaml", inputs / f"other-{which}.yaml", "--out", out
            ),
            "comparison.json",
        ),
        Subject(
            "place",
            lambda inputs, out, which: _moesim(
                "place", TRACE, "--ranks", 4 - 2 * which, "--strategy", "greedy", "--out", out / "placed.json"
            ),
        ),
    )
}


def make_inputs(folder: Path) -> Path:
    """The files that the commands read."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(folder / "olmoe.yaml", OLMOE)
    for which in (0, 1):
        _save(folder / f"other-{which}.yaml", {**OLMOE, "routing": {"load": {"zipf": 0.3 + which / 2}}})
        limits = {"scenario": _planned(), "search": _SPACE, "objective": "time", "simulate": which, "candidates": 60}
        _save(folder / f"plan-{which}.yaml", limits)
        _rows(folder / f"rows-{which}.csv", 1.0 + which / 4)
    serving = yaml.safe_load((SCENARIOS / "serving" / "gpt-oss-120b-8-h100.yaml").read_text())
    serving["workload"]["requests"] = 60
    _save(folder / "serving.yaml", serving)
    _save(folder / "sweep.yaml", {"scenario": OLMOE, "grid": {"cluster.nic_bandwidth": _BANDWIDTHS}, "seeds": 4})
    (folder / "train.py").write_text(TRAIN)
    _text(folder / "text")
    return folder


_BANDWIDTHS = ["100 Gb/s", "200 Gb/s", "400 Gb/s"]
_SPACE = {
    "parallelism.tensor": [1, 2],
    "parallelism.pipeline": [1, 2],
    "parallelism.expert": [1, 4, 8],
    "workload.micro_batch": [1, 2],
    "schedule.kind": ["auto"],
}


def _planned() -> dict[str, object]:
    return {**OLMOE, "parallelism": {}, "workload": {"global_batch": 256, "total_tokens": "100B"}}


def _save(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(yaml.safe_dump(dict(document)))


def _rows(path: Path, factor: float) -> None:
    """Timings of collectives in one node: a latency and a rate, which the fit finds."""
    head = ["kind", "time", "gpu", "collective", "ranks", "bytes", "ranks_per_domain", "library", "software", "source"]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(head)
        for word in ("all-gather", "reduce-scatter", "all-reduce"):
            for ranks in (2, 4, 8):
                for power in range(10, 31, 4):
                    time = factor * (8e-6 * np.log2(ranks) + (1 << power) * (ranks - 1) / ranks / 350e9)
                    made = [ranks, 1 << power, 8, "nccl", "nccl 2.27", "made"]
                    table.writerow(["collective", f"{time:.6g}", "h100-sxm", word, *made])


def _text(folder: Path) -> None:
    """Three domains of words in a random order, enough for the training's least."""
    words = b"the quick brown fox jumps over the lazy dog and runs into the wood".split()
    for number, domain in enumerate(("one", "two", "three")):
        (folder / domain).mkdir(parents=True, exist_ok=True)
        chosen = np.random.default_rng(number).integers(len(words), size=20_000)
        (folder / domain / "a.txt").write_bytes(b" ".join(words[index] for index in chosen))


def environment(**changes: str) -> dict[str, str]:
    """That of a child: it finds this checkout and, before it, the folder `first`; one thread is enough."""
    path = [changes.pop("first", ""), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # The day that `calibrate` writes down; it would change at midnight.
    same = {**threads, "COLUMNS": "120", "SOURCE_DATE_EPOCH": "1750000000"}
    return {**os.environ, **same, **changes, "PYTHONPATH": os.pathsep.join(filter(None, path))}
