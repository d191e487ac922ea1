"""A whole run's length, GPU-hours, energy and cost, and what the answer says where they cannot be told."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.costs import money
from moesim.costs.money import Draw
from moesim.provenance import Quantity
from moesim.results.reliability import RunTime, held_gpus, training_time, whole_steps
from moesim.scenario.scenario import Scenario
from moesim.units import show

_SOME_TOKENS = 1e12
"""Tokens that a cost is told for where the run's are not stated."""


@dataclass(frozen=True)
class _Bill:
    """What a run of some seconds takes; None where no rating, or no price, is stated."""

    hours: float
    drawn: Draw | None
    joules: float | None
    dollars: float | None


def metrics(scenario: Scenario, run: RunTime | None, step: Quantity) -> dict[str, Quantity]:
    """Training time, GPU-hours, energy and cost for `workload.total_tokens`; none without them."""
    total = scenario.workload.total_tokens
    if total is None:
        return {}
    if run is None:
        steps = whole_steps(total / scenario.tokens_per_step)
        time = step.scaled(steps, "s", f"{steps:,} step{'s' if steps > 1 else ''} without failures")
    else:
        time = training_time(run, step)
    bill = _bill(scenario, run, time.value)
    spare = _standing_by(scenario)
    found = {
        "training_time": time,
        "gpu_hours": time.scaled(bill.hours / time.value, "GPU-h", f"{total:.3g} tokens{spare and f'; {spare}'}"),
    }
    if bill.joules is not None and bill.drawn is not None:
        note = "; ".join(filter(None, [bill.drawn.contains, spare]))
        found["energy"] = replace(time.scaled(bill.joules / time.value, "J", note), basis="assumed")
    if bill.dollars is not None:
        found["cost"] = time.scaled(bill.dollars / time.value, "$", _priced(scenario, bill))
    return found


def notes(scenario: Scenario, run: RunTime | None, step: Quantity) -> list[str]:
    """Why there is no cost though there are prices, with that of a trillion tokens."""
    prices = scenario.prices
    if scenario.workload.total_tokens is not None or (prices.gpu_hour is None and prices.electricity is None):
        return []
    seconds = _SOME_TOKENS / scenario.tokens_per_step * step.value / (1.0 if run is None else run.goodput)
    bill = _bill(scenario, run, seconds)
    cost = "" if bill.dollars is None else f" and cost {show(bill.dollars, '$')} ({_priced(scenario, bill)})"
    return [
        "no workload.total_tokens, so no length and no cost of a whole run; a trillion tokens would take"
        f" {show(seconds, 's')}{cost}"
    ]


def _bill(scenario: Scenario, run: RunTime | None, seconds: float) -> _Bill:
    """What `seconds` of the run take, its parts in proportion."""
    gpus, held, prices = scenario.cluster.gpus, held_gpus(scenario), scenario.prices
    still = 0.0 if run is None else (run.checkpoint + run.restart + run.waiting) / run.seconds
    hours, rating = money.gpu_hours(held, seconds), scenario.cluster.gpu.power
    if rating is None:
        return _Bill(hours, None, None, money.dollars(hours, prices.gpu_hour, None, prices.electricity))
    drawn = money.draw(rating, prices, stands_still=run is not None)
    idle = gpus * seconds * still + (held - gpus) * seconds
    joules = money.energy_joules(drawn, gpus * seconds * (1 - still), idle)
    return _Bill(hours, drawn, joules, money.dollars(hours, prices.gpu_hour, joules, prices.electricity))


def _priced(scenario: Scenario, bill: _Bill) -> str:
    """What the cost contains."""
    prices, said = scenario.prices, []
    if prices.gpu_hour is not None:
        said.append(f"GPU-hours at {prices.gpu_hour:g} $")
    if prices.electricity is None:
        return "; ".join([*said, "electricity not priced"])
    if bill.drawn is None:
        return "; ".join([*said, f"no electricity: {scenario.cluster.gpu.name} states no power"])
    return "; ".join([*said, f"electricity at {prices.electricity:g} $/kWh: {bill.drawn.contains}"])


def _standing_by(scenario: Scenario) -> str:
    spare = held_gpus(scenario) - scenario.cluster.gpus
    return f"{spare:,} GPUs standing by included" if spare else ""
