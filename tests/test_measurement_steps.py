"""Whole steps of small models, timed as validation cases: what they say of the model, and that they are judged."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_cli import refused, run

import moesim
from moesim.errors import MissingPackageError, UserError
from moesim.measurement import steps
from moesim.traces.training import TrainingConfig, preset

try:
    from moesim.measurement import torch_steps
    from moesim.traces import torch_model
    from moesim.traces.torch_door import torch

    TORCH = True
except MissingPackageError:
    TORCH = False
needs_torch = pytest.mark.skipif(not TORCH, reason="torch is not installed (extra `trace`)")


def odd() -> TrainingConfig:
    """Every second layer has experts, one of them shared; a padded capacity."""
    config = dict(preset("gpu").runs[2]) | {"moe_every": 2, "shared_experts": 1, "recorded_layers": None}
    return TrainingConfig(**{**config, "capacity": {"factor": 1.5, "pad": True}})


@pytest.mark.parametrize("config", [*preset("gpu").runs, odd()], ids=lambda config: config.name)
def test_every_model_of_the_preset_is_a_scenario_with_its_parameters(config: TrainingConfig) -> None:
    scenario = moesim.load(steps.scenario_of(config, "h200-sxm"))
    assert scenario.tokens_per_step == config.batch * config.sequence_length
    assert scenario.model.router == config.router
    if TORCH:
        held = sum(tensor.numel() for tensor in torch_model.initial(config, torch.device("cpu")).values())
        total = moesim.estimate(scenario).summary["total_parameters"].value
        assert total == pytest.approx(held, rel=0.002)


@needs_torch
def test_steps_are_timed_and_judged_by_the_laws(tmp_path: Path) -> None:
    out = tmp_path / "steps.yaml"
    wanted = ["--preset", "tiny", "--device", "cpu", "--models", "switch-top-1,top-4-of-8-bias", "--seconds", "0.2"]
    told = run("measure", "steps", out, *wanted)
    assert told.returncode == 0, told.stderr
    cases = yaml.safe_load(out.read_text(encoding="utf-8"))
    names = [f"{kind}/{model}" for model in ("switch-top-1", "top-4-of-8-bias") for kind in ("step", "layer")]
    assert [case["id"] for case in cases] == names
    step, layer = (case["measured"] for case in cases[:2])
    assert step["step_time"] > 2 * layer["time"] > 0, "two layers, forward and backward"
    assert all("one product an expert" in case["source"]["where"] for case in cases)
    # No law knows a processor; of a GPU both kinds are predicted.
    assert all(row.predicted is None and "cpu" in row.reason for row in moesim.validate([out]).cases)
    out.write_text(out.read_text(encoding="utf-8").replace(cases[1]["op"]["gpu"], "h200-sxm").replace("fp32", "bf16"))
    assert [row.predicted is not None for row in moesim.validate([out]).cases] == [True] * 4


@needs_torch
def test_mistakes_are_told_before_anything_is_timed(tmp_path: Path) -> None:
    refused(run("measure", "steps", tmp_path / "x.csv"), 2, ".yaml")
    good = tmp_path / "x.yaml"
    for asked, allowed in (
        ({"models": ["switch-top-2"]}, "switch-top-1"),
        ({"name": "tini"}, "tiny"),
        ({"output": tmp_path / "no" / "x.yaml"}, "No such file"),
        ({"seconds": float("nan")}, "positive"),
    ):
        with pytest.raises(UserError, match=allowed):
            torch_steps.measure_steps(**{"output": good, **asked})
    assert not list(tmp_path.iterdir())
