"""What is asked for in numbers too large is refused at once, with the place and the limit; nothing is tried first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import moesim
from moesim import shipped
from moesim.errors import FileError, ScenarioError, UserError
from moesim.placement.rebalancing import Memory
from moesim.placement.strategies import Target, place
from moesim.planner.pool import Pool
from moesim.rebalancing.loads import Settings
from moesim.rebalancing.run import MOST_LOADS, rebalance
from moesim.results.store import load, save
from moesim.sweeps.executors import cores
from moesim.validation import cases

OLMOE = "olmoe-8-h100"


@pytest.mark.parametrize(
    ("batch", "steps", "where"), [(170_000, 1, "workload.global_batch"), (1280, 1000, "simulation.steps")]
)
def test_more_operations_than_are_walked_through_are_not_simulated(batch: int, steps: int, where: str) -> None:
    scenario = moesim.load(OLMOE, [f"workload.global_batch={batch}", f"simulation.steps={steps}"])
    with pytest.raises(ScenarioError, match=r"too many .*allowed: at most") as told:
        moesim.simulate(scenario)
    assert told.value.problems[0].where == where
    assert moesim.estimate(scenario).summary["step_time"].value > 0


@pytest.mark.parametrize(
    ("settings", "memory"),
    [
        (Settings(steps=300_000, seeds=1), Memory()),
        (Settings(steps=10, seeds=1_000_000_000), Memory()),
        (Settings(steps=10, seeds=1, samples=1_000_000), Memory()),
        (Settings(steps=10, seeds=1), Memory(window=300_000)),
        (Settings(steps=10, seeds=1), Memory(half_life=1e9)),
    ],
)
def test_a_study_of_more_loads_than_are_held_is_refused(settings: Settings, memory: Memory) -> None:
    with pytest.raises(UserError, match=f"at most {MOST_LOADS:,} loads are"):
        rebalance(moesim.load(OLMOE), settings=settings, memory=memory)


def test_no_rank_is_given_an_expert_twice() -> None:
    most = 7 * 16
    whole = place("global", Target(8, redundant=most), [[1.0] * 16])
    assert whole.slots == 16
    with pytest.raises(UserError, match=f"at most {most}"):
        place("global", Target(8, redundant=most + 8), [[1.0] * 16])


def test_no_more_workers_than_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(Pool, "_start", lambda self, count: started.append(count))
    pool = Pool(100_000)
    pool.start_ahead()
    with pytest.raises(ValueError, match="max_workers"):  # none was started
        pool.answers("estimate", [moesim.load(OLMOE)] * 5)
    assert started[0] == cores()
    assert started[1] == 5


# --- what is not what it should be


@pytest.mark.parametrize("seconds", [1e308, -1.0])
def test_a_result_whose_parts_cannot_be_seconds_is_not_read(seconds: float, tmp_path: Path) -> None:
    save(moesim.simulate(moesim.load(OLMOE)), tmp_path)
    path = tmp_path / "result.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["breakdown"]["attention"] = seconds
    path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(FileError, match=r"breakdown\.attention"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["olmo-8-h100", "olmoe-8-h10.yaml"])
def test_a_name_nearly_that_of_a_shipped_file_is_told_the_nearest(name: str) -> None:
    with pytest.raises(FileError, match="no such file; nearest of those that ship: olmoe-8-h100"):
        moesim.load(name)


@pytest.mark.parametrize("kind", ["sweep", "plan"])
def test_a_file_of_another_kind_is_named(kind: str) -> None:
    files = [path for name, path in shipped.files().items() if name.startswith(f"{kind}s/")]
    assert files
    for path in files:
        with pytest.raises(FileError, match=f"is a {kind}, not a scenario; moesim {kind} takes it"):
            moesim.load(path)


def test_mistakes_in_a_catalog_of_ones_own_stand_one_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"mine": {"base": "h100-sxm", "memory": "abc", "memory_bandwidth": "3 foo"}}
    (tmp_path / "gpus.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    monkeypatch.setenv("MOESIM_CATALOG", str(tmp_path))
    with pytest.raises(ScenarioError) as told:
        moesim.load(OLMOE, ["cluster.gpu=mine"])
    assert [problem.where for problem in told.value.problems] == ["cluster.gpu"] * 2
    assert "mine.memory: expected a quantity" in str(told.value).splitlines()[1]


@pytest.mark.parametrize("name", ["gpu.yaml", "gpus.yml", "GPUs.yaml"])
def test_a_file_that_a_catalog_would_not_read_is_told_of(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("mine: {base: h100-sxm}\n", encoding="utf-8")
    for other in ("notes.yaml", "calibration.yaml", "models_v2.yaml", ".gpus.yaml"):
        (tmp_path / other).write_text("others may stand beside\n", encoding="utf-8")
    monkeypatch.setenv("MOESIM_CATALOG", str(tmp_path))
    with pytest.raises(FileError, match=r"name it gpus\.yaml"):
        moesim.load(OLMOE)


def test_entries_that_start_from_each_other_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = {f"g{number}": {"base": f"g{number + 1}"} for number in range(2000)} | {"g2000": {"base": "h100-sxm"}}
    (tmp_path / "gpus.yaml").write_text(yaml.safe_dump(chain), encoding="utf-8")
    monkeypatch.setenv("MOESIM_CATALOG", str(tmp_path))
    with pytest.raises(ScenarioError, match="more than 20 entries"):
        moesim.load(OLMOE, ["cluster.gpu=g0"])
    assert moesim.load(OLMOE, ["cluster.gpu=g1990"]).cluster.gpu.name == "g1990"


def test_files_without_one_case_of_use_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "MOST_WRONG", 300)
    path = tmp_path / "cases.yaml"
    unread, unpredicted = (
        {"kind": "gemm", "op": {"m": "x"}},
        {"kind": "gemm", "op": {"gpu": "h1", "m": 8, "n": 8, "k": 8}},
    )
    good = {**unpredicted, "op": {**unpredicted["op"], "gpu": "h100-sxm"}}
    for wrong, told in ((unread, "can be used; the first, cases.yaml, item 1"), (unpredicted, "predicted; the first")):
        for count in (299, 300):
            items = [{**item, "measured": {"time": 1}} for item in [wrong] * count + [good]]
            path.write_text("".join(f"- {item}\n" for item in items), encoding="utf-8")
            if count < 300:
                assert moesim.validate([path]).cases[-1].predicted is not None
                continue
            with pytest.raises(UserError, match=rf"the first 300 cases .*{told}"):
                moesim.validate([path])
