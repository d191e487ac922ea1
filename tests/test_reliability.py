"""Failures, checkpoints and restarts: theory against simulation, intervals at their optimum, no second unaccounted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moesim
from moesim.closed_form.reliability import Failures, expected_goodput, expected_run, segment_time
from moesim.closed_form.spares import MOST_STATES, blocked_share, spare_waits
from moesim.costs.reliability import RunPlan, daly_interval, plan_run, young_interval
from moesim.engine.reliability import simulate_run, simulate_runs
from moesim.errors import InfeasibleError, InternalError, ScenarioError, UserError
from moesim.randomness import Streams
from moesim.results.reliability import RunTime, check_parts
from moesim.specs.workload import FailuresSpec
from moesim.step.groups import expert_place, groups

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
PARTS = ("useful", "checkpoint", "lost", "restart", "waiting")
METRICS = ("useful_time", "checkpoint_time", "lost_time", "restart_time", "spare_wait_time")

# Failures between rare and one in three segments, short and long recoveries, a last segment that is shorter.
PLANS = {
    "rare": RunPlan(4_000, 10.0, 100, 1 / (20 * HOUR), 60.0, 600.0, 120.0),
    "often": RunPlan(3_010, 10.0, 120, 1 / HOUR, 60.0, 600.0, 120.0),
    "a slow checkpoint": RunPlan(2_000, 15.0, 80, 1 / HOUR, 10 * MINUTE, 30.0, 15 * MINUTE),
    "one segment": RunPlan(300, 10.0, 1_000, 1 / HOUR, 60.0, 5.0, 60.0),
    "a step is a segment": RunPlan(600, 300.0, 1, 1 / (2 * HOUR), 20.0, 600.0, 600.0),
}
RUNS = 300
STANDARD_ERRORS = 4.0


@cache
def simulated(plan: RunPlan, steps: tuple[float, ...] | None = None) -> list[RunTime]:
    step_seconds = np.array([plan.step_seconds] if steps is None else steps)
    return [simulate_run(plan, step_seconds, Streams(0), number) for number in range(RUNS)]


def close(values: list[float], expected: float, slack: float = 0.0) -> bool:
    """Whether the mean of simulated values lies within k standard errors of what theory says."""
    error = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return abs(float(np.mean(values)) - expected) <= STANDARD_ERRORS * error + (1e-9 + slack) * abs(expected)


@pytest.mark.parametrize("name", PLANS)
def test_simulated_runs_agree_with_the_closed_form(name: str) -> None:
    runs, theory = simulated(PLANS[name]), expected_run(PLANS[name])
    assert close([run.seconds for run in runs], theory.seconds)
    for part in (*PARTS, "failures"):
        assert close([getattr(run, part) for run in runs], getattr(theory, part)), part
    assert close([run.seconds * theory.goodput for run in runs], theory.useful)
    assert theory.lost + theory.restart > 0.005 * theory.seconds  # the failures are not beside the point


@pytest.mark.parametrize("name", PLANS)
def test_the_spread_of_runs_agrees_with_the_closed_form(name: str) -> None:
    seconds, theory = np.array([run.seconds for run in simulated(PLANS[name])]), expected_run(PLANS[name])
    plan = PLANS[name]
    counts = np.array([plan.segments - 1, 1])
    busy = plan.step_seconds * np.array([plan.segment_steps, plan.last_steps])
    variance = float(counts @ segment_time(busy + plan.write, Failures(plan.rate, plan.restart, plan.load)).variance)
    # The variance's own standard error, from the sample's fourth moment.
    squares = (seconds - seconds.mean()) ** 2
    assert close(squares.tolist(), variance, slack=1 / RUNS)
    if name != "one segment":  # many segments: nearly normal
        inside = ((seconds >= theory.low) & (seconds <= theory.high)).mean()
        assert inside == pytest.approx(0.9, abs=0.07)


def test_unequal_steps_are_drawn_and_kept() -> None:
    plan = PLANS["often"]
    steps = (8.0, 9.0, 13.0)  # mean 10
    runs, theory = simulated(plan, steps), expected_run(plan)
    assert len({run.useful for run in runs}) > RUNS / 2
    assert close([run.useful for run in runs], theory.useful)
    assert close([run.seconds for run in runs], theory.seconds, slack=1e-3)


@pytest.mark.parametrize(("spares", "repair_days"), [(0, 1), (1, 1), (3, 1), (3, 4), (8, 4), (8, 30)])
def test_waiting_for_repairs_begins_with_all_hosts_healthy(spares: int, repair_days: float) -> None:
    """Runs of a week: a steady state from the first day would wait up to several times as long."""
    plan = RunPlan(20_000, 30.0, 60, 1 / (12 * HOUR), 60.0, 600.0, 120.0, spares=spares, repair=repair_days * DAY)
    runs, theory = simulated(plan), expected_run(plan)
    assert theory.waiting > 0.02 * theory.seconds
    assert close([run.waiting for run in runs], theory.waiting, slack=0.01)
    assert close([run.seconds for run in runs], theory.seconds, slack=0.01 * theory.waiting / theory.seconds)
    waiting = np.array([run.waiting for run in runs])
    variance = spare_waits(spares, theory.failures / (theory.seconds - theory.waiting), plan.repair,
                           theory.seconds - theory.waiting)[1]  # fmt: skip
    assert close(((waiting - waiting.mean()) ** 2).tolist(), variance, slack=0.02)
    seconds = np.array([run.seconds for run in runs])
    assert ((seconds >= theory.low) & (seconds <= theory.high)).mean() == pytest.approx(0.9, abs=0.06)
    low, high = np.quantile(seconds, [0.05, 0.95])
    assert theory.high - theory.low == pytest.approx(high - low, rel=0.25)


def test_waits_settle_at_erlangs_formula() -> None:
    """B(2, 1) = (1/2) / (1 + 1 + 1/2). Long after the start waits come at the failure rate times Erlang's share."""
    assert blocked_share(2, 1.0) == pytest.approx(0.2)
    assert blocked_share(1, 3.0) == pytest.approx(0.75)
    assert blocked_share(50, 1.0) < 1e-12
    for spares, offered in ((0, 0.5), (3, 2.0), (8, 12.0), (30, 25.0)):
        rate, many = offered / DAY, 1e4 * DAY
        late = spare_waits(spares, rate, DAY, 2 * many)[0] - spare_waits(spares, rate, DAY, many)[0]
        assert late == pytest.approx(many * rate * float(blocked_share(spares, offered)) * DAY / (spares + 1), rel=1e-3)


@pytest.mark.parametrize(("offered", "days"), [(0.8, 10), (0.95, 10), (2.0, 3), (2.0, 30), (0.9, 100)])
def test_many_spares_wait_as_few_do(offered: float, days: float) -> None:
    """On either side of the number of states that are solved: the other way is within its few percent."""
    few, many = MOST_STATES - 1, MOST_STATES
    solved, told = (spare_waits(n, offered * n / DAY, DAY, days * DAY) for n in (few, many))
    assert told[0] == pytest.approx(solved[0], rel=0.12)
    assert told[1] == pytest.approx(solved[1], rel=0.25)
    assert spare_waits(100_000, 1 / DAY, DAY, 1e4 * DAY) == (0.0, 0.0)
    assert spare_waits(3, 0.0, DAY, DAY) == (0.0, 0.0)


def test_more_spares_wait_less() -> None:
    plan = RunPlan(20_000, 30.0, 60, 1 / (12 * HOUR), 60.0, 600.0, 120.0, repair=DAY)
    waits = [expected_run(replace(plan, spares=spares)).waiting for spares in range(8)]
    assert waits == sorted(waits, reverse=True)
    assert expected_run(plan).waiting == 0.0


@pytest.mark.parametrize(("between", "minutes"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_dalys_intervals_are_those_he_published(between: float, minutes: float) -> None:
    """Daly 2006, figures 3 to 5: 5 minutes to write, and the optimum that the paper names."""
    assert float(daly_interval(5.0, between)) == pytest.approx(minutes, abs=0.5 if minutes > 10 else 0.05)


@pytest.mark.parametrize("write", [5.0, 60.0, 600.0])
@pytest.mark.parametrize("between", [0.5 * HOUR, 3 * HOUR, 24 * HOUR, 1000 * HOUR])
def test_the_interval_is_the_minimum_of_the_closed_form(write: float, between: float) -> None:
    """On a fine grid: Daly's interval is within a percent of the best where a write is short against M, and costs
    next to nothing anywhere; Young's is its first order."""
    failures = Failures(1 / between, 600.0, 120.0)
    daly, young = float(daly_interval(write, between)), float(young_interval(write, between))
    grid = daly * np.geomspace(0.1, 10, 20_001)
    goodput = expected_goodput(grid, write, failures)
    best = int(goodput.argmax())
    assert 0 < best < len(grid) - 1
    if write < 0.1 * between:
        assert daly == pytest.approx(grid[best], rel=0.01)
        assert young == pytest.approx(daly, rel=2 * np.sqrt(write / between))
    at_daly, at_young = (float(expected_goodput(tau, write, failures)) for tau in (daly, young))
    assert at_daly >= goodput[best] * (1 - 1e-3)
    assert goodput[best] >= at_daly >= at_young or at_daly == pytest.approx(at_young, rel=1e-3)


def test_the_closed_form_is_the_published_one() -> None:
    """Bougeret et al. 2011: exp(L R) (1/L + D) (exp(L (W + C)) - 1), arrays alike."""
    rate, busy = np.array([[1e-7], [1e-5], [1e-3]]), np.array([100.0, 1000.0, 5000.0])
    found = segment_time(busy, Failures(rate, 600.0, 120.0))
    assert found.seconds == pytest.approx(np.exp(rate * 120) * (1 / rate + 600) * np.expm1(rate * busy), rel=1e-9)
    # Failures come at their rate whenever something works.
    assert found.failures == pytest.approx(rate * (found.seconds - 600.0 * found.failures), rel=1e-9)


def test_rare_failures_lose_half_a_segment() -> None:
    """To first order a failure costs half a segment; the exact form and its series meet."""
    for rate in (1e-12, 0.99e-8, 1.01e-8, 1e-6):
        found = segment_time(1e4, Failures(rate, 0.0, 0.0))
        assert float(found.lost / found.failures) == pytest.approx(5e3, rel=2e-3)
        assert float(found.variance / found.failures) == pytest.approx(1e8 / 3, rel=0.02)


PLAN = st.builds(
    RunPlan,
    steps=st.integers(1, 3_000),
    step_seconds=st.floats(0.1, 100.0),
    segment_steps=st.integers(1, 50),
    rate=st.floats(1e-9, 5e-5),
    write=st.floats(0.1, 1_000.0),
    restart=st.floats(0.1, 5_000.0),
    load=st.floats(0.1, 5_000.0),
    spares=st.none() | st.integers(0, 3),
    repair=st.floats(1.0, 1e6),
)


@settings(max_examples=100, deadline=None)
@given(plan=PLAN, more=st.floats(1.0, 20.0), seed=st.integers(0, 2**31))
def test_properties_of_any_run(plan: RunPlan, more: float, seed: int) -> None:
    expected = expected_run(plan)
    for run in (expected, simulate_run(plan, np.array([plan.step_seconds]), Streams(seed), 0)):
        assert 0 < run.goodput <= 1
        assert min(getattr(run, part) for part in PARTS) >= 0
        assert run.checkpoint == pytest.approx(plan.segments * plan.write)
        assert run.useful == pytest.approx(plan.steps * plan.step_seconds)
        assert run.low <= run.seconds * (1 + 1e-12)
        assert run.high >= run.seconds * (1 - 1e-12)
    oftener = expected_run(replace(plan, rate=more * plan.rate))
    assert oftener.seconds >= expected.seconds * (1 - 1e-9)
    assert oftener.failures >= expected.failures * (1 - 1e-9)
    for worse in ({"write": more * plan.write}, {"restart": more * plan.restart}, {"load": more * plan.load}):
        assert expected_run(replace(plan, **worse)).seconds >= expected.seconds * (1 - 1e-9)


def test_more_failures_are_slower_in_the_simulation_too() -> None:
    means = []
    for hours in (100, 20, 5, 1):
        plan = replace(PLANS["often"], rate=1 / (hours * HOUR))
        means.append(simulate_runs(plan, np.array([plan.step_seconds]), Streams(0)).seconds)
    assert means == sorted(means)
    assert means[-1] > 1.3 * means[0]


def test_a_lost_second_is_our_bug() -> None:
    run = simulate_run(PLANS["often"], np.array([10.0]), Streams(0), 0)
    check_parts(run.seconds, run)
    with pytest.raises(InternalError, match="parts"):
        check_parts(run.seconds, replace(run, lost=run.lost + 1.0))


def test_a_month_is_as_many_events_as_failures() -> None:
    """A month of 20 s steps on 16,384 GPUs at Llama 3's rate: 419 failures in 54 days."""
    spec = FailuresSpec.model_validate({"mean_time_between_failures": "50676 h"})
    plan = plan_run(spec, 16_384, int(30 * DAY / 20), 20.0)
    found = simulate_runs(plan, np.linspace(19.5, 20.5, 10), Streams(0))
    assert found.runs >= 50
    assert found.failures * 54 * DAY / (found.seconds - found.restart) == pytest.approx(419, rel=0.03)
    assert found.goodput == pytest.approx(expected_run(plan).goodput, rel=0.01)
    assert plan.segment_steps == round(float(daly_interval(60.0, 50_676 * HOUR / 16_384)) / 20)


BASE: dict[str, Any] = {
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 16},
    "parallelism": {"expert": 16},
    "workload": {"global_batch": 256, "total_tokens": "1T"},
    "routing": {"load": "uniform"},
    "prices": {"gpu_hour": 2.0},
}
FAILURES: dict[str, Any] = {"mean_time_between_failures": "400 h"}


def scenario(failures: dict[str, Any] | None = None, **changes: Any) -> moesim.Scenario:
    simulation = {"microbatch_samples": 2, "sampled_tokens": 512, **changes.pop("simulation", {})}
    return moesim.load({**BASE, **changes, "simulation": {**simulation, "failures": failures}})


ROADS = pytest.mark.parametrize("road", [moesim.estimate, moesim.simulate], ids=["estimate", "simulate"])


@ROADS
def test_without_failures_nothing_changes(road: Any) -> None:
    plain, failing = road(scenario()), road(scenario(FAILURES))
    money = {"training_time", "gpu_hours", "cost", "energy"}
    added = failing.summary.keys() - plain.summary.keys()
    assert added == {"goodput_fraction", "time_between_failures", "failures", "checkpoint_interval", *METRICS[:-1]}
    for name, quantity in plain.summary.items():
        if name not in money:
            assert failing.summary[name] == quantity, name
    assert failing.breakdown == plain.breakdown
    step, tokens = plain.summary["step_time"], 256 * 4096
    steps = 953_675  # the last one is begun for a part of it
    assert steps - 1 < 1e12 / tokens < steps
    assert plain.summary["training_time"] == step.scaled(steps, "s", "953,675 steps without failures")
    assert failing.summary["useful_time"].value == pytest.approx(steps * step.value, rel=1e-3)
    assert plain.summary["gpu_hours"].value == pytest.approx(16 * step.value * steps / 3600)
    assert plain.summary["cost"].low == pytest.approx(2.0 * 16 * step.low * steps / 3600)


@ROADS
def test_failures_that_never_come_cost_one_checkpoint(road: Any) -> None:
    never = {"mean_time_between_failures": 1e13, "checkpoint": {"write": "1 s"}}
    plain, failing = road(scenario()).summary, road(scenario(never)).summary
    assert failing["failures"].value < 1e-3
    added = failing["training_time"].value - plain["training_time"].value
    assert 0 < added < failing["checkpoint_time"].value + plain["step_time"].value + 10
    assert failing["goodput_fraction"].value == pytest.approx(1.0, abs=1e-5)


@ROADS
def test_the_run_is_accounted_for(road: Any) -> None:
    spares = {"hosts": 1, "repair": "10 h"}
    summary = road(scenario({**FAILURES, "spares": spares})).summary
    time = summary["training_time"]
    assert sum(summary[name].value for name in METRICS) == pytest.approx(time.value, rel=1e-9)
    assert summary["useful_time"].value / time.value == pytest.approx(summary["goodput_fraction"].value, rel=1e-3)
    assert time.low < time.value < time.high
    assert time.high / time.value > summary["step_time"].high / summary["step_time"].value
    held = 16 + 8
    assert summary["gpu_hours"].value == pytest.approx(held * time.value / 3600)
    assert summary["cost"].value == pytest.approx(2.0 * summary["gpu_hours"].value)
    assert "8 GPUs standing by" in summary["gpu_hours"].note
    still = sum(summary[name].value for name in ("checkpoint_time", "restart_time", "spare_wait_time"))
    idle = 0.15 * 700.0 * (16 * still + 8 * time.value)
    assert summary["energy"].value == pytest.approx(16 * 700.0 * (time.value - still) + idle)
    goodput = summary["goodput_fraction"]
    assert 0 < goodput.low < goodput.value < goodput.high <= 1


def test_both_roads_tell_one_run() -> None:
    chosen = scenario(FAILURES, simulation={"steps": 3})
    simulated_summary, estimated = moesim.simulate(chosen).summary, moesim.estimate(chosen).summary
    for name in ("goodput_fraction", "failures", "training_time", "gpu_hours", "lost_time", "restart_time"):
        assert simulated_summary[name].value == pytest.approx(estimated[name].value, rel=0.05), name
    assert simulated_summary["goodput_fraction"].value == pytest.approx(estimated["goodput_fraction"].value, rel=5e-3)


def test_a_seed_is_a_run() -> None:
    first, again = (moesim.simulate(scenario(FAILURES)).summary for _ in range(2))
    other = moesim.simulate(scenario(FAILURES, simulation={"seed": 1})).summary
    assert first == again
    assert other["failures"].value != first["failures"].value


def test_a_stated_interval_is_kept_at_whole_steps() -> None:
    found = moesim.estimate(scenario({**FAILURES, "checkpoint": {"interval": "30 min"}})).summary
    step = found["step_time"].value
    assert found["checkpoint_interval"].value == pytest.approx(1800, abs=step / 2)
    assert "as stated" in found["checkpoint_interval"].note
    best = moesim.estimate(scenario(FAILURES)).summary
    assert "Daly" in best["checkpoint_interval"].note
    assert best["training_time"].value < found["training_time"].value
    each = moesim.estimate(scenario({**FAILURES, "checkpoint": {"interval": "1 ms", "write": "1 s"}})).summary
    assert each["checkpoint_interval"].value == pytest.approx(step)


@ROADS
def test_without_tokens_the_horizon_is_looked_at(road: Any) -> None:
    summary = road(scenario({**FAILURES, "horizon": "10 days"}, workload={"global_batch": 256})).summary
    assert "training_time" not in summary
    assert summary["useful_time"].value == pytest.approx(10 * DAY, rel=1e-3)
    assert "horizon" in summary["goodput_fraction"].note
    assert summary["goodput_fraction"].value < 1


@pytest.mark.parametrize(
    ("failures", "where", "words"),
    [
        ({}, "mean_time_between_failures", "required"),
        ({"mean_time_between_failures": "50000 GPUs"}, "mean_time_between_failures", "not a unit of s"),
        ({"mean_time_between_failures": 0}, "mean_time_between_failures", "at least 1"),
        ({"mean_time_between_failures": "1 h", "mtbf": 3}, "mtbf", "unknown key"),
        ({**FAILURES, "restart": "-1 s"}, "restart", "at least 0"),
        ({**FAILURES, "checkpoint": {"interval": "daily"}}, "checkpoint.interval", "auto"),
        ({**FAILURES, "checkpoint": {"intervall": "1 h"}}, "checkpoint.intervall", "nearest: interval"),
        ({**FAILURES, "checkpoint": {"write": "-1 s"}}, "checkpoint.write", "at least 0"),
        ({**FAILURES, "checkpoint": {"interval": 0}}, "checkpoint.interval", "above 0"),
        ({**FAILURES, "spares": {"hosts": 2}}, "spares.repair", "required"),
        ({**FAILURES, "spares": {"hosts": -1, "repair": "1 day"}}, "spares.hosts", "at least 0"),
        (3, "", "mapping"),
    ],
)
def test_mistakes_are_named(failures: Any, where: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(failures)
    found = {problem.where: problem.what for problem in caught.value.problems}
    place = f"simulation.failures.{where}".rstrip(".")
    assert place in found, found
    assert words in found[place]


@ROADS
def test_a_run_that_never_ends_is_refused_with_what_would_help(road: Any) -> None:
    with pytest.raises(InfeasibleError, match=r"hardly progresses.*mean_time_between_failures"):
        road(scenario({"mean_time_between_failures": "10 min"}))


@ROADS
def test_what_takes_no_time_may_be_zero(road: Any) -> None:
    """A checkpoint written beside training, read back at once, after a restart at once: only work is lost."""
    nothing = {**FAILURES, "restart": 0, "checkpoint": {"interval": "1 h", "write": 0, "load": "0 s"}}
    found = road(scenario(nothing, workload={"global_batch": 256})).summary
    assert found["checkpoint_time"].value == found["restart_time"].value == 0.0
    assert found["lost_time"].value == pytest.approx(found["failures"].value * 1800, rel=0.1)
    step = found["step_time"].value
    each = {**nothing, "checkpoint": {"write": 0, "load": 0}, "horizon": "2 days"}
    auto = road(scenario(each, workload={"global_batch": 256})).summary
    assert auto["checkpoint_interval"].value == pytest.approx(step)
    assert auto["goodput_fraction"].value > found["goodput_fraction"].value


@ROADS
def test_a_run_that_hardly_trains_says_what_is_in_the_way(road: Any) -> None:
    rare = {"mean_time_between_failures": "100 h"}
    ways = {
        "waiting for spare hosts": {**rare, "spares": {"hosts": 0, "repair": "30 days"}},
        "restarting": {**rare, "restart": "3 days"},
        "steps undone by failures": {**rare, "restart": 0, "checkpoint": {"interval": "1 day", "load": 0}},
        "writing checkpoints": {**FAILURES, "checkpoint": {"interval": "1 s", "write": "5 min"}},
    }
    for way, failures in ways.items():
        result = road(scenario({**failures, "horizon": "3 days"}, workload={"global_batch": 2048}))
        assert result.summary["goodput_fraction"].value < 0.1, way
        (note,) = (note for note in result.notes if note.startswith("failures: only"))
        assert f"goes to {way}" in note
        assert "would relax" in note
    assert not any("failures: only" in note for note in road(scenario(FAILURES)).notes)


def test_more_checkpoints_than_can_be_simulated_are_refused() -> None:
    chosen = scenario({**FAILURES, "checkpoint": {"interval": "1 s", "write": "1 s"}})
    assert moesim.estimate(chosen).summary["goodput_fraction"].value > 0.3
    with pytest.raises(UserError, match=r"at most 200,000.*estimate"):
        moesim.simulate(chosen)


def disturbed(**changes: Any) -> float:
    """Seconds of the simulated step of sixteen expert-parallel ranks on two nodes, mean of two steps."""
    simulation = {"steps": 2, **changes.pop("simulation", {})}
    chosen = scenario(simulation=simulation, workload={"global_batch": 64}, **changes)
    return moesim.simulate(chosen).summary["step_time"].value


def test_more_jitter_a_slower_gpu_and_a_slower_nic_never_speed_a_step_up() -> None:
    plain = disturbed()
    jitter = [disturbed(simulation={"jitter": level}) for level in (0.02, 0.1, 0.3)]
    slow_gpu = [disturbed(simulation={"stragglers": [{"rank": 5, "slowdown": by}]}) for by in (1.1, 1.5, 3.0)]
    slow_nic = [
        disturbed(cluster={"gpu": "h100-sxm", "gpus": 16, "degraded": [{"link": "nic", "gpu": 5, "share": share}]})
        for share in (0.8, 0.5, 0.1)
    ]
    for steps in (jitter, slow_gpu, slow_nic):
        assert [plain, *steps] == sorted([plain, *steps])
        assert len({plain, *steps}) == 4
        assert steps[-1] > 1.1 * plain


STAGES: dict[str, Any] = {
    "cluster": {"gpu": "h100-sxm", "gpus": 32},
    "parallelism": {"expert": 8, "pipeline": 2},
    "workload": {"global_batch": 64},
}


def slowed(*stragglers: dict[str, Any]) -> moesim.Result:
    """Two pipeline ranks of two expert-parallel groups of eight GPUs each."""
    return moesim.simulate(scenario(simulation={"stragglers": list(stragglers) or None}, **STAGES))


def test_a_slow_gpu_is_one_rank_of_one_pipeline_rank() -> None:
    """GPU 3 is the first pipeline rank's expert rank 3, GPU 19 the second's; GPUs 11 and 27 are the other group's."""
    plain, everywhere = (slowed(*who).summary["step_time"].value for who in ((), ({"rank": 3, "slowdown": 2.0},)))
    first, second = ({"gpu": 3, "slowdown": 2.0}, {"gpu": 19, "slowdown": 2.0})
    alone = [slowed(one).summary["step_time"].value for one in (first, second)]
    assert plain < min(alone)
    assert max(alone) < everywhere
    assert slowed(first, second).summary["step_time"].value == everywhere
    other = slowed({"gpu": 11, "slowdown": 2.0})
    assert other.summary["step_time"].value == alone[0]
    assert any("groups is simulated" in note and "that of GPU 11" in note for note in other.notes)
    busy = slowed(first).operations
    attention = busy[(busy.kind == "attention") & (busy.phase == "forward")].groupby("stage").busy_mean.mean()
    assert attention[0] == pytest.approx(attention[1] * 9 / 8, rel=1e-6)  # one of eight takes twice as long


def test_the_place_of_a_gpu_is_its_groups() -> None:
    chosen = scenario(**{**STAGES, "parallelism": {"expert": 4, "expert_tensor": 2, "tensor": 2, "pipeline": 2}})
    for index, members in enumerate(groups(chosen)["expert"]):
        places = [expert_place(chosen, int(gpu)) for gpu in members]
        assert [rank for _, rank in places] == list(range(4))
        assert {stage for stage, _ in places} == {index // 4}


@pytest.mark.parametrize(
    ("stragglers", "where", "words"),
    [
        ([{"rank": 8}], "0.rank", "not below expert parallel 8"),
        ([{"gpu": 32}], "0.gpu", "not below cluster.gpus 32"),
        ([{}], "0", "rank of the simulated group or a gpu"),
        ([{"rank": 1, "gpu": 1}], "0", "not both"),
        ([{"rank": 1}, {"rank": 2}, {"rank": 1}], "2.rank", "1 is given twice"),
        ([{"gpu": 4}, {"gpu": 4}], "1.gpu", "4 is given twice"),
        ([{"gpu": 3}, {"gpu": 19}, {"gpu": 27}], "", "GPUs 3 and 27 stand in different expert-parallel groups"),
    ],
)
def test_slow_gpus_that_cannot_be_are_named(stragglers: list[dict[str, int]], where: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        slowed(*({**one, "slowdown": 1.5} for one in stragglers))
    found = {problem.where: problem.what for problem in caught.value.problems}
    assert words in found[f"simulation.stragglers.{where}".rstrip(".")]


def test_all_disturbances_reach_the_run() -> None:
    """A slow GPU lengthens every step, and with them the run and what failures take of it."""
    straggler = {"stragglers": [{"rank": 5, "slowdown": 1.5}], "jitter": 0.05, "steps": 2}
    plain = moesim.simulate(scenario(FAILURES, simulation={"steps": 2})).summary
    slow = moesim.simulate(scenario(FAILURES, simulation=straggler)).summary
    assert slow["useful_time"].value > 1.1 * plain["useful_time"].value
    assert slow["failures"].value > 1.05 * plain["failures"].value
    assert slow["training_time"].value > 1.1 * plain["training_time"].value


def test_the_estimate_says_what_it_leaves_out() -> None:
    for simulation in ({"jitter": 0.1}, {"stragglers": [{"rank": 0, "slowdown": 2.0}]}):
        notes = moesim.estimate(scenario(simulation=simulation)).notes
        assert any("jitter and stragglers" in note and "simulate" in note for note in notes)
    assert not any("jitter" in note for note in moesim.estimate(scenario()).notes)


def test_the_shipped_scenario_answers_its_question() -> None:
    path = Path(__file__).parents[1] / "scenarios" / "failures-deepseek-v3-4096-h100.yaml"
    few, many = (moesim.estimate(moesim.load(path, [f"simulation.failures.spares.hosts={n}"])).summary for n in (8, 16))
    assert few["spare_wait_time"].value > DAY > HOUR > many["spare_wait_time"].value
    assert 0.8 < few["goodput_fraction"].value < many["goodput_fraction"].value < 0.98
