"""Two roads to the same numbers: closed form against simulation, on shipped scenarios and layouts of all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import moesim

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.yaml"))
BALANCED = ["routing.load=uniform", "simulation.microbatch_samples=2"]

TINY: dict[str, Any] = {
    "model": {
        "layers": 8,
        "moe_layers": 8,
        "d_model": 1024,
        "n_heads": 16,
        "n_experts": 32,
        "top_k": 4,
        "d_ff_expert": 512,
        "vocab": 32000,
    },
    "cluster": {"gpu": "h100-sxm", "gpus": 64},
    "workload": {"sequence_length": 2048, "global_batch": 512},
    "routing": {"load": "uniform"},
    "simulation": {"microbatch_samples": 2},
}
LAYOUTS = [
    {"parallelism": {"pipeline": 1, "expert": 8}},
    {"parallelism": {"pipeline": 4, "expert": 16}},
    {"parallelism": {"pipeline": 4, "expert": 8}, "schedule": {"kind": "gpipe"}},
    {"parallelism": {"pipeline": 4, "expert": 8}, "overlap": {"expert_communication": True}},
    {"parallelism": {"pipeline": 2, "virtual_pipeline": 4, "expert": 8}},
    {"parallelism": {"pipeline": 4, "virtual_pipeline": 2, "expert": 8}, "overlap": {"expert_communication": True}},
    {"parallelism": {"pipeline": 4, "expert": 8}, "schedule": {"kind": "dualpipe"}},
    {"parallelism": {"pipeline": 4, "expert": 16}, "schedule": "dualpipe", "overlap": {"expert_communication": True}},
    {"parallelism": {"tensor": 2, "pipeline": 2, "expert": 8}},
    {"parallelism": {"tensor": 4, "context": 2, "pipeline": 2, "expert": 4, "expert_tensor": 2}},
    {"parallelism": {"pipeline": 2, "expert": 8}, "recompute": "full"},
    {"parallelism": {"pipeline": 2, "expert": 8}, "recompute": ["moe"]},
    {"parallelism": {"pipeline": 1, "expert": 8, "data_sharding": "full"}},
    {
        "parallelism": {"pipeline": 2, "expert": 32},
        "routing": {"load": "uniform", "capacity": {"factor": 1.25, "pad": True}},
    },
    {"parallelism": {"pipeline": 2, "expert": 8, "data_sharding": "gradients"}},
    {"parallelism": {"pipeline": 2, "virtual_pipeline": 4, "expert": 8}, "overlap": {"pipeline": False}},
    {"parallelism": {"pipeline": 4, "expert": 16}, "schedule": "zero-bubble-v", "overlap": {"pipeline": False}},
    {"parallelism": {"pipeline": 3, "expert": 4}, "cluster": {"gpu": "h100-sxm", "gpus": 48}},
    {"parallelism": {"pipeline": 1, "expert": 1}},
    {"parallelism": {"pipeline": 8, "expert": 8, "data_sharding": "full"}, "overlap": {"data_parallel": False}},
    {"parallelism": {"pipeline": 4, "expert": 8, "data_sharding": "full"}, "schedule": "dualpipe"},
    {"parallelism": {"pipeline": 2, "expert": 16}, "routing": {"capacity": {"factor": 0.5, "dialect": "megablocks"}}},
    {"parallelism": {"pipeline": 2, "expert": 16}, "routing": {"capacity": {"factor": 0.5, "dialect": "megatron"}}},
    {"parallelism": {"pipeline": 2, "expert": 32}, "workload": {"sequence_length": 32, "global_batch": 512}},
    {"parallelism": {"pipeline": 1, "expert": 16}, "overlap": {"two_batch": True}},
    {"parallelism": {"pipeline": 4, "expert": 16}, "schedule": "gpipe", "overlap": {"two_batch": True}},
    {"parallelism": {"pipeline": 4, "expert": 16}, "overlap": {"two_batch": True, "weight_gradients": "delayed"}},
    {"parallelism": {"pipeline": 4, "expert": 16}, "schedule": "zero-bubble-v", "overlap": {"two_batch": True}},
    {"parallelism": {"pipeline": 4, "expert": 16}, "overlap": {"weight_gradients": "delayed"}},
    {
        "parallelism": {"pipeline": 4, "virtual_pipeline": 2, "expert": 16},
        "overlap": {"expert_communication": True, "weight_gradients": "delayed", "interference": "reserved"},
    },
    {
        "parallelism": {"pipeline": 2, "expert": 16},
        "model": {**TINY["model"], "n_shared_experts": 1, "shared_expert_width": 1024},
        "overlap": {"two_batch": True, "shared_experts": True, "weight_gradients": "delayed"},
        "recompute": "full",
    },
    {
        "parallelism": {"pipeline": 4, "expert": 16},
        "model": {**TINY["model"], "n_shared_experts": 1, "shared_expert_width": 1024},
        "overlap": {"expert_communication": True, "shared_experts": True, "interference": "none"},
        "schedule": "dualpipe",
    },
]


def ratio(scenario: moesim.Scenario) -> float:
    """Simulated over estimated step time."""
    simulated = moesim.simulate(scenario, even_if_infeasible=True)
    estimated = moesim.estimate(scenario, even_if_infeasible=True)
    # A part may be next to nothing on one road and nothing on the other.
    for part in simulated.breakdown.keys() ^ estimated.breakdown.keys():
        seconds = simulated.breakdown.get(part, 0.0) + estimated.breakdown.get(part, 0.0)
        assert seconds < 0.01 * simulated.summary["step_time"].value, part
    return simulated.summary["step_time"].value / estimated.summary["step_time"].value


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_shipped_scenarios_agree_at_balanced_routing(path: Path) -> None:
    scenario = moesim.load(path, [*BALANCED, "simulation.microbatch_samples=1"])
    assert ratio(scenario) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_agree_at_balanced_routing(layout: dict[str, Any]) -> None:
    assert ratio(moesim.load({**TINY, **layout})) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("load", ["deepseek-v3-like", "gpt-oss-like", {"zipf": 0.6}, {"log_normal": 0.8}], ids=str)
def test_skewed_routing_agrees_within_a_wider_band(load: object) -> None:
    scenario = moesim.load({**TINY, "parallelism": {"pipeline": 2, "expert": 16}, "routing": {"load": load}})
    assert ratio(scenario) == pytest.approx(1.0, abs=0.08)


def test_dense_models_agree_exactly() -> None:
    model = {"layers": 16, "d_model": 2048, "n_heads": 16, "d_ff_dense": 8192, "vocab": 32000}
    plain = {**TINY, "model": model, "parallelism": {"tensor": 2, "pipeline": 4, "virtual_pipeline": 2}}
    assert ratio(moesim.load(plain)) == pytest.approx(1.0, abs=1e-9)


def test_breakdowns_agree_and_add_up() -> None:
    scenario = moesim.load({**TINY, "parallelism": {"pipeline": 4, "expert": 16}})
    simulated, estimated = moesim.simulate(scenario), moesim.estimate(scenario)
    for result in (simulated, estimated):
        assert sum(result.breakdown.values()) == pytest.approx(result.summary["step_time"].value, rel=1e-6)
    for part, seconds in simulated.breakdown.items():
        assert estimated.breakdown[part] == pytest.approx(
            seconds, rel=0.1, abs=0.01 * sum(simulated.breakdown.values())
        )


@pytest.mark.parametrize("dialect", ["megatron", "megablocks", "v-moe"])
@pytest.mark.parametrize("load", ["uniform", "aux-loss-balanced"])
def test_dropped_tokens_agree(dialect: str, load: str) -> None:
    routing = {"load": load, "capacity": {"factor": 1.1, "dialect": dialect}}
    several = {"simulation": {"microbatch_samples": 32}}
    scenario = moesim.load({**TINY, **several, "parallelism": {"pipeline": 2, "expert": 8}, "routing": routing})
    simulated, estimated = moesim.simulate(scenario).summary, moesim.estimate(scenario).summary
    dropped = simulated["dropped_token_fraction"].value
    assert estimated["dropped_token_fraction"].value == pytest.approx(dropped, rel=0.1, abs=0.003)


def test_padding_with_an_all_gather_is_conserved() -> None:
    """Every token moves once, however large the padded buffers are."""
    routing = {"load": "uniform", "capacity": {"factor": 1.0, "pad": True}}
    chosen = {"routing": routing, "dispatcher": "all-gather-reduce-scatter", "parallelism": {"expert": 4}}
    assert ratio(moesim.load({**TINY, **chosen})) == pytest.approx(1.0, abs=0.02)
