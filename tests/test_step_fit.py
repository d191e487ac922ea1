"""Fitting the training step: what the rows tell is found, what they do not stays, and one own step helps the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import moesim
from moesim.calibration.step_fit import COMPUTE, STACKS, fit, fit_steps, predict, read_steps
from moesim.errors import UserError
from moesim.validation.cases import SHIPPED, Case, read

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


def test_entries_go_before_the_catalog(cases: list[Case], tmp_path: Path) -> None:
    chosen = of(cases, "/00414", "/00488", "/00616")
    slower = [replace(case, measured={RATE: 0.8 * case.measured[RATE]}) for case in chosen]
    entries = fit_steps(slower, "2026-11-22")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(entries), encoding="utf-8")
    assert entries[COMPUTE]["source"]["where"].startswith("fit of 3 training steps (")
    assert entries[COMPUTE]["rows"] == {"used": 3}
    assert set(entries[COMPUTE]["fitted_gpus"]) >= {"h100-sxm", "gb200-nvl72"}
    for case in slower:
        document = dict(case.scenario or {})
        shipped = moesim.estimate(moesim.load(document), even_if_infeasible=True).summary[RATE].value
        document["cluster"] = {**document["cluster"], "calibration": str(file)}
        own = moesim.estimate(moesim.load(document), even_if_infeasible=True).summary[RATE].value
        assert abs(own / case.measured[RATE] - 1) < abs(shipped / case.measured[RATE] - 1)


def test_known_failures_and_other_kinds_are_left_out(cases: list[Case]) -> None:
    known = [case for case in cases if case.known]
    assert known
    assert read_steps(known) == []
    with pytest.raises(UserError, match="no measured training step"):
        fit_steps(known)
