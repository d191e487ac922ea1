"""A hot rank in one layer delays its pipeline rank and, through the schedule, the whole step: how much, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim
from moesim.closed_form.run import estimate_model, even_step, observe
from moesim.engine.run import observe as observe_steps
from moesim.engine.run import simulate_model
from moesim.engine.simulation import simulate_step
from moesim.randomness import Streams
from moesim.results.observed import Observed
from moesim.results.summary import Summary
from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork, even_work

DEEPSEEK = Path(__file__).parents[1] / "scenarios" / "deepseek-v3-2048-h800.yaml"
BASE: dict[str, Any] = {
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
    "simulation": {"microbatch_samples": 8},
}


def model(pipeline: int, load: str = "uniform", **changes: Any) -> StepModel:
    layout = {"pipeline": pipeline, "expert": 8}
    return StepModel(moesim.load({**BASE, "parallelism": layout, "routing": {"load": load}, **changes}))


def hot(of: StepModel, delays: Mapping[int, float]) -> RoutedWork:
    """Even work but for rank 0, whose experts of some layers take so many times as long."""
    even = even_work(of)
    assert even is not None
    factor = np.ones((len(of.moe_index), 1, of.scenario.parallelism.expert))
    for layer, times in delays.items():
        factor[layer, :, 0] = times
    slowed = {name: getattr(even, name) * factor for name in ("forward", "backward", "weight")}
    return replace(even, **slowed, layers_alike=False)


def both_roads(of: StepModel, work: RoutedWork) -> tuple[Observed, Observed]:
    even = even_step(of)
    simulated = observe_steps(of, [simulate_step(of, work, 0, Streams(0))], even)
    return replace(observe(of, work), even=even), simulated


def value(of: StepModel, work: RoutedWork, observed: Observed, name: str = "bubble_amplification") -> float:
    return Summary(of, work, observed, {"weights": 1.0}).metrics()[name].value


def roads_summaries(of: StepModel) -> tuple[dict[str, moesim.Quantity], dict[str, moesim.Quantity]]:
    return estimate_model(of).summary, simulate_model(of, None, even_step(of)).summary


@pytest.mark.parametrize("pipeline", [2, 4, 8])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_equal_delays_are_amplified_as_the_textbook_says(pipeline: int, schedule: str) -> None:
    """Every slot is delayed alike: the step by M + P - 1 of them, a pipeline rank's own work by M."""
    of = model(pipeline, schedule={"kind": schedule})
    work, batches = hot(of, dict.fromkeys(range(8), 3.0)), of.scenario.microbatches
    for observed in both_roads(of, work):
        assert value(of, work, observed) == pytest.approx((batches + pipeline - 1) / batches, rel=1e-6)


@pytest.mark.parametrize("pipeline", [2, 4, 8])
def test_one_hot_layer_in_the_last_stage_costs_every_rank(pipeline: int) -> None:
    """The last stage works without a pause from its first microbatch to its last, so each of the M delays is the whole
    step's; the mean pipeline rank works only a P-th of them."""
    of = model(pipeline)
    work = hot(of, {7: 4.0})
    for observed in both_roads(of, work):
        assert value(of, work, observed) == pytest.approx(pipeline, rel=1e-6)


def test_of_two_hot_stages_the_slower_one_counts() -> None:
    """Two stages, delays d0 < d1 a microbatch: the step waits for M d1, and for the first stage's own d0 once, in fill
    and drain; the ranks work M (d0 + d1) / 2 longer."""
    of = model(2)
    work, batches = hot(of, {0: 2.0, 7: 4.0}), of.scenario.microbatches
    d0, d1 = 1.0, 3.0
    for observed in both_roads(of, work):
        expected = (d0 + batches * d1) / (batches * (d0 + d1) / 2)
        assert value(of, work, observed) == pytest.approx(expected, rel=1e-6)


def test_the_more_stages_the_more_one_hot_layer_costs() -> None:
    for road in zip(*map(hot_values, (1, 2, 4, 8)), strict=True):
        assert list(road) == sorted(road)
        assert road[0] == pytest.approx(1.0)
        assert road[-1] > 4.0


def hot_values(pipeline: int) -> tuple[float, ...]:
    """One layer in the middle, off the stage that holds the head."""
    of = model(pipeline)
    work = hot(of, {3: 5.0})
    return tuple(value(of, work, observed) for observed in both_roads(of, work))


def test_without_a_pipeline_nothing_is_amplified() -> None:
    for summary in roads_summaries(model(1, "deepseek-v3-like")):
        assert summary["skew_fraction"].value > 0.05
        found = summary["bubble_amplification"]
        assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_skew_that_idle_stages_absorb_is_not_amplified() -> None:
    """A hot layer in a stage that has time to spare, for the last one holds a large head, costs the step but its share
    of fill and drain."""
    of = model(4, model={**BASE["model"], "vocab": 512_000})
    work = hot(of, {0: 2.0})
    for observed in both_roads(of, work):
        assert value(of, work, observed) < 0.5


def test_what_routing_does_not_cost_is_not_divided_by() -> None:
    """Even routing, and a dense model, have no amplification; a tiny skew has a share and no ratio."""
    for summary in roads_summaries(model(4)):
        assert abs(summary["skew_fraction"].value) < 0.02
        assert "bubble_amplification" not in summary
    dense = {**{name: BASE["model"][name] for name in ("layers", "d_model", "n_heads", "vocab")}, "d_ff_dense": 4096}
    layout = {"pipeline": 4, "expert": 1}
    of = StepModel(moesim.load({**BASE, "model": dense, "parallelism": layout}))
    for summary in (estimate_model(of).summary, simulate_model(of).summary):
        assert not {"skew_time", "skew_fraction", "bubble_amplification"} & set(summary)


LAYOUTS: list[dict[str, Any]] = [
    {"parallelism": {"pipeline": 4, "expert": 16}},
    {"parallelism": {"pipeline": 4, "expert": 8}, "schedule": {"kind": "gpipe"}},
    {"parallelism": {"pipeline": 2, "virtual_pipeline": 4, "expert": 8}},
    {"parallelism": {"pipeline": 4, "expert": 8}, "overlap": {"expert_communication": True}},
    {"parallelism": {"pipeline": 4, "expert": 16}, "schedule": "dualpipe", "overlap": {"expert_communication": True}},
    {"parallelism": {"pipeline": 4, "expert": 16}, "schedule": "zero-bubble-v", "overlap": {"two_batch": True}},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_both_roads_tell_the_same(layout: dict[str, Any]) -> None:
    """Within 15 % at a skew that costs a fifth of the step and more: the closed form draws no microbatches, and lays
    the same unevenness out over its layers in another order."""
    changes = {"routing": {"load": "deepseek-v3-like"}, **layout}
    estimated, simulated = roads_summaries(StepModel(moesim.load({**BASE, **changes})))
    for summary in (estimated, simulated):
        step, lost = summary["step_time"].value, summary["skew_time"].value
        assert summary["skew_fraction"].value == pytest.approx(lost / step)
        assert lost / step > 0.2
    found = simulated["bubble_amplification"]
    assert estimated["bubble_amplification"].value == pytest.approx(found.value, rel=0.15)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipe"])
def test_a_late_input_is_the_pipelines_however_exchanges_hide(schedule: str) -> None:
    """Balanced and overlapped on unequal stages, both roads tell the same waiting for pipeline ranks and for exchanges;
    in the simulation exchanges whose input is late hide less."""
    settings = [f"schedule.kind={schedule}", "workload.global_batch=4096", "simulation.sampled_tokens=64"]
    of = StepModel(moesim.load(DEEPSEEK, settings))
    work = even_work(of)
    assert work is not None
    closed, simulated = observe(of, work), simulate_step(of, work, 0, Streams(0))
    assert simulated.seconds == pytest.approx(closed.seconds[0], rel=1e-9)
    for reason in ("bubble", "dispatch", "combine"):
        assert simulated.waited[reason] == pytest.approx(closed.waited[reason], abs=5e-4 * simulated.seconds), reason
