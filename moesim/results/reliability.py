"""A whole training run under failures: what a road found out about it, and the metrics a planner reads."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, hypot, isclose

from moesim.costs.reliability import RunPlan, plan_run
from moesim.errors import InternalError
from moesim.provenance import Quantity
from moesim.scenario.scenario import Scenario
from moesim.units import show

HARDLY = 0.1
"""Goodput below which the answer says what is in the way."""


@dataclass(frozen=True)
class RunTime:
    """Where the seconds of a whole run go: steps that count, checkpoints, steps and writes undone by failures,
    restarting (checkpoints read included), waiting for a repaired host. `low` to `high` holds nine in ten runs, by
    the chance of failures alone; `runs` were simulated, none by the closed form."""

    plan: RunPlan
    useful: float
    checkpoint: float
    lost: float
    restart: float
    waiting: float
    failures: float
    low: float
    high: float
    runs: int = 0

    @property
    def seconds(self) -> float:
        """Length of the run: the sum of its parts."""
        return self.useful + self.checkpoint + self.lost + self.restart + self.waiting

    @property
    def goodput(self) -> float:
        """Share of the run spent on steps that count."""
        return self.useful / self.seconds


def run_plan(scenario: Scenario, step_seconds: float) -> RunPlan | None:
    """The plan of the scenario's run; None where it says nothing of failures."""
    failures, tokens = scenario.simulation.failures, scenario.workload.total_tokens
    if failures is None:
        return None
    steps = failures.horizon / step_seconds if tokens is None else tokens / scenario.tokens_per_step
    return plan_run(failures, scenario.cluster.gpus, whole_steps(steps), step_seconds)


def whole_steps(steps: float) -> int:
    """Steps that a run takes: the last one is whole."""
    return max(1, ceil(steps))


def check_parts(seconds: float, run: RunTime) -> None:
    """Raises `InternalError` where the parts of a run do not add up to the clock's seconds."""
    if not isclose(seconds, run.seconds, rel_tol=1e-9):
        raise InternalError(f"a run of {seconds} s has parts of {run.seconds} s: {run}")


def held_gpus(scenario: Scenario) -> int:
    """GPUs that a run holds: the cluster's, and those of the hosts standing by."""
    failures, cluster = scenario.simulation.failures, scenario.cluster
    if failures is None or failures.spares is None:
        return cluster.gpus
    return cluster.gpus + failures.spares.hosts * (failures.spares.gpus_per_host or cluster.gpus_per_domain)


def training_time(run: RunTime, step: Quantity) -> Quantity:
    """Length of the run; its range joins that of the step time with the chance of failures."""
    up = hypot(step.high / step.value - 1, run.high / run.seconds - 1)
    down = hypot(step.value / step.low - 1, run.seconds / run.low - 1)
    note = (
        f"{run.plan.steps:,} steps with checkpoints and {run.failures:.3g} failures; range: step time, and 5-95 %"
        f" {_of_runs(run)}"
    )
    return Quantity(run.seconds, "s", run.seconds / (1 + down), run.seconds * (1 + up), "assumed", note)


def metrics(run: RunTime, scenario: Scenario) -> dict[str, Quantity]:
    """What failures make of the run."""
    plan = run.plan
    chosen = scenario.simulation.failures is not None and scenario.simulation.failures.checkpoint.interval == "auto"
    why = f"{plan.segment_steps:,} steps; " + ("Daly's optimum" if chosen else "as stated")
    span = f"of {show(run.seconds, 's')}"
    if scenario.workload.total_tokens is None:
        span += ", the horizon's training (no workload.total_tokens)"
    low, high = run.useful / run.high, min(1.0, run.useful / run.low)

    def part(seconds: float, note: str) -> Quantity:
        return Quantity.exact(seconds, "s", f"{note}; {span}", "assumed")

    found = {
        "goodput_fraction": Quantity(run.goodput, "fraction", low, high, "assumed", f"5-95 % {_of_runs(run)}; {span}"),
        "time_between_failures": Quantity.exact(
            1 / plan.rate, "s", f"mean_time_between_failures over {scenario.cluster.gpus:,} GPUs", "assumed"
        ),
        "failures": Quantity.exact(run.failures, "", f"mean {_of_runs(run)}; {span}", "assumed"),
        "checkpoint_interval": Quantity.exact(plan.interval, "s", why, "assumed"),
        "useful_time": part(run.useful, "every step once"),
        "checkpoint_time": part(run.checkpoint, f"{plan.segments:,} checkpoints"),
        "lost_time": part(run.lost, "steps and writes since the last checkpoint"),
        "restart_time": part(run.restart, "restarting and reading checkpoints"),
    }
    if plan.spares is not None:
        found["spare_wait_time"] = part(run.waiting, f"spare hosts: {plan.spares:,}")
    return found


def notes(run: RunTime | None) -> list[str]:
    """What keeps a run from its steps, where it hardly comes to any."""
    if run is None or run.goodput >= HARDLY:
        return []
    parts = {
        "steps undone by failures": (run.lost, "fewer failures, or a shorter checkpoint.interval"),
        "restarting": (run.restart, "fewer failures, or a shorter restart and checkpoint.load"),
        "waiting for spare hosts": (run.waiting, "more spares.hosts, or a shorter spares.repair"),
        "writing checkpoints": (run.checkpoint, "a longer checkpoint.interval, or a shorter checkpoint.write"),
    }
    limiter = max(parts, key=lambda name: parts[name][0])
    seconds, relief = parts[limiter]
    return [
        f"failures: only {show(run.goodput, 'fraction')} of the run is spent on steps that count;"
        f" {show(seconds / run.seconds, 'fraction')} goes to {limiter} (a failure every {show(1 / run.plan.rate, 's')}"
        f" of work); {relief} would relax it"
    ]


def _of_runs(run: RunTime) -> str:
    return f"of {run.runs} simulated runs" if run.runs else "by the closed form"
