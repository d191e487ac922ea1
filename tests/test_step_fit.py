"""Fitting the training step: what the rows tell is found, what they do not stays, and one own step helps the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import moesim
from moesim.calibration import calibrate
from moesim.calibration.step_entries import fit_steps
from moesim.calibration.step_fit import COMPUTE, STACKS, fit, predict, read_steps
from moesim.errors import UserError
from moesim.validation.cases import SHIPPED, Case, read
from moesim.validation.run import validate

RATE = "tokens_per_second_per_gpu"


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return read([SHIPPED / "train-step.yaml"])


def of(cases: list[Case], *numbers: str) -> list[Case]:
    return [case for case in cases if case.id.endswith(numbers)]


def test_prediction_is_the_estimate(cases: list[Case]) -> None:
    steps = read_steps(of(cases, "/00028", "/00400", "/00488"))
    for step, seconds in zip(steps, predict(steps, {}), strict=True):
        whole = moesim.estimate(step.scenario, even_if_infeasible=True).summary["step_time"].value
        assert seconds == pytest.approx(whole, rel=1e-9)


def test_trial_is_what_a_calibration_file_says(cases: list[Case], tmp_path: Path) -> None:
    step, *_ = read_steps(of(cases, "/00488"))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({COMPUTE: {"gemm_efficiency": {"hopper": {"bf16": 0.5}}}}), encoding="utf-8")
    cluster = step.scenario.cluster.model_copy(update={"calibration": str(file)})
    mine = replace(step, scenario=step.scenario.model_copy(update={"cluster": cluster}))
    trial = predict([step], {(COMPUTE, "gemm_efficiency", "hopper", "bf16"): 0.5})
    assert trial == pytest.approx(predict([mine], {}), rel=1e-12)
    assert trial[0] > 1.1 * predict([step], {})[0]


def test_a_coefficient_that_made_the_steps_is_found(cases: list[Case]) -> None:
    """Steps as they would be on a stack 12 % slower, another one left alone."""
    names = ("moe-parallel-folding", "megatron-bridge-26.02/")
    steps = read_steps([case for case in cases if any(name in case.id for name in names)][::3])
    slow = (STACKS, "time_factor", "moe-parallel-folding")
    exact = predict(steps, {})
    factor = np.array([1.12 if step.scenario.stack == slow[2] else 1.0 for step in steps])
    made = fit([replace(step, seconds=float(time)) for step, time in zip(steps, exact * factor, strict=True)])
    assert made.values[slow] / made.start[slow] == pytest.approx(1.12, rel=0.03)
    assert np.abs(made.predicted / (exact * factor) - 1).max() < 0.03
    host = (COMPUTE, "host", "dense_layer")
    assert made.values[host] == pytest.approx(made.start[host])
    assert host not in made.told


def test_one_own_step_helps_its_neighbours(cases: list[Case]) -> None:
    """A cluster that is 20 % slower than thought: one step measured there takes 40 % off the others' error."""
    steps = read_steps(of(cases, "/00378", "/00374", "/00382", "/00396"))
    slower = [replace(step, seconds=1.2 * float(time)) for step, time in zip(steps, predict(steps, {}), strict=True)]
    made = fit(slower[:1])
    truth = np.array([step.seconds for step in slower])
    assert np.abs(predict(slower, made.values) / truth - 1).mean() < 0.6 * (1 - 1 / 1.2)


def slower(case: Case, factor: float, **changes: object) -> Case:
    """The case as it would be where steps take `factor` times as long."""
    document = {**(case.scenario or {}), **changes}
    return replace(case, scenario=document, measured={RATE: case.measured[RATE] / factor})


def saved(cases: list[Case], path: Path) -> Path:
    items = [{"id": case.id, "kind": case.kind, "scenario": case.scenario, "measured": case.measured} for case in cases]
    path.write_text(yaml.safe_dump(items), encoding="utf-8")
    return path


def test_entries_go_before_the_catalog(cases: list[Case], tmp_path: Path) -> None:
    chosen = [slower(case, 1.25) for case in of(cases, "/00414", "/00488", "/00616")]
    made = fit_steps(chosen, "2026-11-22")
    entries, file = made.entries, tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(entries), encoding="utf-8")
    assert entries[COMPUTE]["source"]["where"].startswith("fit of 3 training steps (")
    assert entries[COMPUTE]["rows"] == {"used": 3}
    assert made.used == 3
    assert set(entries[COMPUTE]["own"]) == {"h100-sxm", "gb200-nvl72"}
    for case in chosen:
        document = dict(case.scenario or {})
        shipped = moesim.estimate(moesim.load(document), even_if_infeasible=True).summary[RATE].value
        document["cluster"] = {**document["cluster"], "calibration": str(file)}
        own = moesim.estimate(moesim.load(document), even_if_infeasible=True).summary[RATE].value
        assert abs(own / case.measured[RATE] - 1) < abs(shipped / case.measured[RATE] - 1)


@pytest.mark.parametrize(("numbers", "stack"), [(("/00488",), "torchtitan"), (("/00374", "/00028", "/00414"), None)])
def test_the_file_reproduces_the_residual_it_states(
    cases: list[Case], tmp_path: Path, numbers: tuple[str, ...], stack: str | None
) -> None:
    """Steps half as long again as thought, on a stack of their own and on those that the catalog holds."""
    changes = {} if stack is None else {"stack": stack}
    path = saved([slower(case, 1.5, **changes) for case in of(cases, *numbers)], tmp_path / "own-cases.yaml")
    stated = calibrate(path, tmp_path / "own.yaml").entries
    found = validate([path], calibration=tmp_path / "own.yaml")
    errors = [row.error for row in found.cases]
    assert len(errors) >= len(numbers)
    for name in (COMPUTE, STACKS):
        told = stated[name]["residual"]
        assert told["median"] == pytest.approx(np.median(np.abs(errors)), abs=6e-4)
        assert told["p90"] == pytest.approx(np.quantile(np.abs(errors), 0.9), abs=6e-4)
        assert told["bias"] == pytest.approx(np.median(errors), abs=6e-4)
    assert stated[COMPUTE]["residual_of_shipped"]["median"] == pytest.approx(0.5, abs=0.15)


def test_a_lone_step_of_an_unlisted_stack_moves_the_stack(cases: list[Case]) -> None:
    """However far it is off: it is no outlier, and not the kernels' fault."""
    made = fit_steps([slower(case, 1.6, stack="our own") for case in of(cases, "/00488")])
    moved = {name: new / old for name, (old, new) in made.moved.items()}
    assert moved["stacks.time_factor.our own"] > 1.4
    assert all(0.85 < ratio < 1.15 for name, ratio in moved.items() if "time_factor" not in name)
    assert made.entries[COMPUTE]["residual"]["p90"] < 0.05
    assert not any("still miss" in note for note in made.notes)


def test_a_step_that_still_misses_is_told(cases: list[Case]) -> None:
    """On a stack that a hundred rows tell, a step twice as long as thought is more likely described wrongly."""
    made = fit_steps([slower(case, 2.0) for case in of(cases, "/00488")])
    assert made.entries[COMPUTE]["residual"]["p90"] > 0.05
    assert any("1 of 1 training steps still miss by more than 5 %" in note and "/00488" in note for note in made.notes)


def test_a_bad_case_is_left_out_and_told(cases: list[Case], tmp_path: Path) -> None:
    good = of(cases, "/00488")
    bad = replace(good[0], id="typo", scenario={**(good[0].scenario or {}), "model": "nosuch"})
    path = saved([*good, bad], tmp_path / "own-cases.yaml")
    found = calibrate(path)
    assert found.as_dict()["rows"] == 1
    ((which, why),) = found.left_out.items()
    assert which == "1 case: own-cases.yaml, item 2 (typo)"
    assert "nosuch" in why
    assert "\n" not in why
    assert any("1 of 2 cases used as training steps" in note for note in found.notes)
    negative = replace(good[0], id="sign", measured={RATE: -1.0})
    (why,) = calibrate(saved([*good, negative], path)).left_out.values()
    assert f"measured.{RATE}: must be above 0" in why
    with pytest.raises(UserError, match=r"no row can be used.*own-cases.yaml, item 1 \(typo\).*nosuch"):
        calibrate(saved([bad], tmp_path / "own-cases.yaml"))


def test_known_failures_and_other_kinds_are_left_out(cases: list[Case]) -> None:
    known = [case for case in cases if case.known]
    assert known
    assert read_steps(known) == []
    made = fit_steps(known)
    assert made.entries == {}
    assert all("known to fail" in why for why in made.left_out.values())
