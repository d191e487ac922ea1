"""`moesim check`, and what every answer says of memory: fits, tight or infeasible, by which part, relaxed by what."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import moesim
from moesim.costs.memory import coefficients
from moesim.errors import ScenarioError, UserError
from moesim.results.memory_verdict import judge, refused
from moesim.results.relief import reliefs

ROOT = Path(__file__).parents[1]
MIXTRAL = ROOT / "scenarios" / "mixtral-8x7b-64-h100.yaml"
DEEPSEEK = ROOT / "scenarios" / "deepseek-v3-2048-h800.yaml"
TIGHT = ("recompute=[mla_up_proj]",)
BEYOND = ("parallelism.pipeline=1", "parallelism.tensor=1", "workload.sequence_length=8192")


def check(path: Path, *overrides: str, as_json: bool = False) -> subprocess.CompletedProcess[str]:
    settings = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "moesim", "check", str(path), *settings, *["--json"] * as_json]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def memory(path: Path, *overrides: str) -> tuple[moesim.Scenario, dict[str, float]]:
    loaded = moesim.load(path, overrides)
    return loaded, moesim.estimate(loaded, even_if_infeasible=True).memory


@pytest.mark.parametrize(
    ("path", "overrides", "code", "verdict"),
    [(MIXTRAL, (), 0, "fits"), (DEEPSEEK, TIGHT, 0, "tight"), (MIXTRAL, BEYOND, 3, "infeasible")],
    ids=["fits", "tight", "infeasible"],
)
def test_check_tells_the_verdict(path: Path, overrides: tuple[str, ...], code: int, verdict: str) -> None:
    told = check(path, *overrides)
    assert told.returncode == code
    words = {"fits": "no problems; fits in memory", "tight": "no problems; tight in memory",
             "infeasible": "does not fit in memory"}  # fmt: skip
    assert words[verdict] in told.stdout + told.stderr
    if verdict != "fits":
        assert "binding: activations" in told.stdout + told.stderr
        assert "it would relax with" in told.stdout + told.stderr
    answer = check(path, *overrides, as_json=True)
    assert answer.returncode == code
    found = json.loads(answer.stdout)
    assert found["problems"] == []
    assert (found["infeasible"] is None) == (verdict != "infeasible")
    plain: dict[str, Any] = found["memory"]
    assert plain["verdict"] == verdict
    loaded, parts = memory(path, *overrides)
    assert plain["need"] == pytest.approx(sum(parts.values()))
    assert plain["have"] == loaded.cluster.gpu.memory
    assert plain["binding_bytes"] == pytest.approx(parts[plain["binding"]]) == max(parts.values())
    assert bool(plain["reliefs"]) == (verdict != "fits")


def test_what_comes_to_no_verdict_says_why_as_data() -> None:
    with pytest.raises(ScenarioError) as caught:
        moesim.load(MIXTRAL, ["parallelism.tensor=3", "parallelism.pipeline=3"])
    found = refused("x.yaml", caught.value)["problems"]
    assert {problem["where"] for problem in found} >= {"cluster.gpus", "parallelism.tensor"}
    assert refused("x.yaml", UserError("no such thing")) == {"problems": [{"where": "x.yaml", "what": "no such thing"}]}
    assert refused("x.yaml", moesim.InfeasibleError("too much")) == {"infeasible": "too much"}


def test_reliefs_fit_and_are_what_an_estimate_finds() -> None:
    """Not tight: below the share of memory under which a step fits."""
    for path, overrides in ((MIXTRAL, BEYOND), (DEEPSEEK, TIGHT)):
        loaded, parts = memory(path, *overrides)
        found = reliefs(loaded, parts)
        assert len(found.fits) == 3
        assert found.tight == ()
        for relief in found.fits:
            assert relief.need <= coefficients()["fits"] * loaded.cluster.gpu.memory
            key, value = relief.change.split(": ", 1)
            again = sum(memory(path, *overrides, f"{key}={value}")[1].values())
            assert again == pytest.approx(relief.need, rel=0.02)
            assert again <= 1.02 * coefficients()["fits"] * loaded.cluster.gpu.memory


def test_tight_reliefs_are_named_only_where_nothing_fits_and_called_so() -> None:
    """An imagined GPU on which the best single change is just too much to fit."""
    loaded, parts = memory(MIXTRAL, *BEYOND)
    best = min(relief.need for relief in reliefs(loaded, parts, most=100).fits)
    small = best / (1.02 * coefficients()["fits"])
    lacking, parts = memory(MIXTRAL, *BEYOND, f"cluster.gpu.memory={small:.0f} B")
    found = reliefs(lacking, parts)
    assert found.fits == ()
    assert 1 <= len(found.tight) <= 3
    assert min(relief.need for relief in found.tight) == pytest.approx(best)
    said = judge(lacking, parts).sentence()
    assert "no single change makes it fit; it would be tight with" in said
    assert "it would relax" not in said


@pytest.mark.parametrize("road", ["estimate", "simulate"])
def test_an_answer_says_that_memory_is_tight(road: str) -> None:
    lean = ["simulation.microbatch_samples=1", "workload.global_batch=32"]
    need = sum(memory(MIXTRAL, *lean)[1].values())
    scenario = moesim.load(MIXTRAL, [*lean, f"cluster.gpu.memory={need:.0f} B"])
    answer = moesim.estimate(scenario) if road == "estimate" else moesim.simulate(scenario)
    notes = [note for note in answer.notes if note.startswith("tight in memory")]
    assert len(notes) == 1
    largest = max(answer.memory, key=lambda part: answer.memory[part])
    assert f"binding: {largest}" in notes[0]
    assert "moesim check" in notes[0]
    assert not any("tight" in note for note in moesim.estimate(moesim.load(MIXTRAL)).notes)
