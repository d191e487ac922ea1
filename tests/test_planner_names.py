"""What a plan's scenario states stays; names that people give models, GPUs and files do not break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import moesim
from moesim.files import plain_name
from moesim.specs.sweep import Range

SMALL: dict[str, Any] = {
    "parallelism.tensor": 1,
    "parallelism.pipeline": 1,
    "parallelism.context": 1,
    "parallelism.expert_tensor": 1,
    "parallelism.expert": [1, 8],
    "workload.micro_batch": 1,
    "recompute": "none",
    "schedule.kind": "auto",
}


def question(model: Any, gpu: Any = "h100-sxm", **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "cluster": {"gpu": gpu, "gpus": 8},
        "workload": {"global_batch": 64, "total_tokens": 1e9},
        "routing": {"load": "uniform"},
        **more,
    }


@pytest.mark.parametrize(
    "text", ["Qwen/Mine", "../../evil", "Qwen3 (copy)", "-x", ".hidden", "", "ü" * 200, "plan (1)"]
)
def test_any_text_becomes_a_name(text: str) -> None:
    name = plain_name(text)
    scenario = moesim.load({**question("olmoe-1b-7b"), "name": name})
    assert scenario.name == name
    assert "/" not in name


def test_a_model_with_a_slash_is_planned_and_its_winner_loads(tmp_path: Path) -> None:
    model = {"base": "olmoe-1b-7b", "name": "Qwen/Mine"}
    gpu = {"base": "h100-sxm", "name": "my/gpu"}
    plan = moesim.plan(question(model, gpu), search=SMALL, prices={"my/gpu": "$2/h"}, simulate=2, workers=2)
    assert plan.feasible
    assert {row.road for row in plan.models[0].rows[:2]} == {"simulate"}
    files = plan.save(tmp_path / "out")
    winner = next(path for path in files if path.name.startswith("winner"))
    assert moesim.load(winner).model.name == "Qwen/Mine"
    assert all(path.parent == tmp_path / "out" for path in files)


def test_what_the_scenario_states_of_a_layout_stays(tmp_path: Path) -> None:
    stated = question("olmoe-1b-7b", parallelism={"tensor": 2}, recompute="full", schedule="1f1b")
    file = tmp_path / "plan (1).yaml"
    file.write_text(yaml.safe_dump({"scenario": stated, "simulate": 0}), encoding="utf-8")
    for plan in (moesim.plan(stated, simulate=0, workers=1), moesim.plan(file, workers=1)):
        layouts = [row.scenario for row in plan.models[0].rows]
        assert layouts
        assert {(one.parallelism.tensor, one.recompute, one.schedule.kind) for one in layouts} == {(2, "full", "1f1b")}
    searched = moesim.plan(stated, search={"parallelism.tensor": [1]}, simulate=0, workers=1)
    assert {row.scenario.parallelism.tensor for row in searched.models[0].rows} == {1}


def test_a_range_beyond_all_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="must lie within"):
        Range(low=1, high=10**400)
    with pytest.raises(ValueError, match="must lie within"):
        Range(low=-1e308, high=1e308)


@pytest.mark.parametrize("gpu", [5, None])
def test_a_gpu_that_is_no_name_is_the_users_mistake(gpu: Any) -> None:
    with pytest.raises(moesim.UserError):
        moesim.plan(question("olmoe-1b-7b"), search={"cluster.gpu": gpu}, simulate=0)
