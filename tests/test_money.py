"""Money and energy of a run: what they contain is stated, counted once, and said."""

from __future__ import annotations

from typing import Any

import pytest

import moesim
from moesim.costs import money
from moesim.specs.workload import PricesSpec
from moesim.units import parse

GPUS, RATING = 16, 700.0
BASE: dict[str, Any] = {
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": GPUS},
    "parallelism": {"expert": 16},
    "workload": {"global_batch": 256, "total_tokens": "1T"},
    "routing": {"load": "uniform"},
}
WAITING = {"mean_time_between_failures": "400 h", "spares": {"hosts": 0, "repair": "2 days"}}


def estimate(prices: dict[str, Any] | None = None, failures: Any = None, **changes: Any) -> moesim.Result:
    return moesim.estimate(
        moesim.load({**BASE, **changes, "prices": prices or {}, "simulation": {"failures": failures}})
    )


def test_energy_is_the_rating_for_the_time_where_nothing_waits() -> None:
    found = estimate().summary
    assert found["energy"].value == pytest.approx(GPUS * RATING * found["training_time"].value)
    assert "rating of 700 W" in found["energy"].note
    assert "no hosts" in found["energy"].note
    assert "no cooling" in found["energy"].note
    assert found["energy"].basis == "assumed"
    assert "cost" not in found


def test_waiting_draws_little() -> None:
    """Most of this run waits for a repaired host: the GPUs' rating all the time would be several times too much."""
    found = estimate({"idle_power_share": 0.1}, WAITING).summary
    time, still = (
        found["training_time"].value,
        sum(found[name].value for name in ("spare_wait_time", "restart_time", "checkpoint_time")),
    )
    assert still > 0.5 * time
    assert found["energy"].value == pytest.approx(GPUS * RATING * (time - 0.9 * still))
    assert "10 % of it (assumed)" in found["energy"].note
    less, more = (estimate({"idle_power_share": share}, WAITING).summary["energy"].value for share in (0.0, 1.0))
    assert less < found["energy"].value < more == pytest.approx(GPUS * RATING * time)


def test_hosts_and_cooling_are_counted_where_stated() -> None:
    plain = estimate({"electricity": "$80/MWh"}).summary
    stated = {"electricity": "8 cents/kWh", "host_power": "300 W", "power_usage_effectiveness": 1.25}
    full = estimate(stated).summary
    assert full["energy"].value == pytest.approx(plain["energy"].value * 1.25 * (RATING + 300) / RATING)
    assert full["cost"].value == pytest.approx(full["energy"].value / 3.6e6 * 0.08)
    assert plain["cost"].value == pytest.approx(plain["energy"].value / 3.6e6 * 0.08)
    for words in ("300 W of host", "effectiveness of 1.25", "0.08 $/kWh"):
        assert words in full["cost"].note
    assert "no cooling (prices.power_usage_effectiveness)" in plain["cost"].note


def test_the_cost_says_what_it_contains() -> None:
    rent, both = estimate({"gpu_hour": "$48/day"}).summary, estimate({"gpu_hour": 2, "electricity": 0.1}).summary
    assert rent["cost"].value == pytest.approx(2.0 * rent["gpu_hours"].value)
    assert "GPU-hours at 2 $" in rent["cost"].note
    assert "electricity not priced" in rent["cost"].note
    assert both["cost"].value == pytest.approx(rent["cost"].value + both["energy"].value / 3.6e6 * 0.1)
    gpu = {"base": "h100-sxm", "power": None}
    silent = estimate({"gpu_hour": 2, "electricity": 0.1}, cluster={"gpu": gpu, "gpus": GPUS}).summary
    assert "energy" not in silent
    assert "states no power" in silent["cost"].note


def test_prices_without_tokens_say_why_there_is_no_cost() -> None:
    work = {"global_batch": 256}
    for failures in (None, {**WAITING, "horizon": "300 days"}):
        whole = estimate({"gpu_hour": 2}, failures).summary
        result = estimate({"gpu_hour": 2}, failures, workload=work)
        assert "cost" not in result.summary
        (note,) = (note for note in result.notes if "no workload.total_tokens" in note)
        told = parse(note.split("and cost ")[1].split(" (")[0], "$")
        assert told == pytest.approx(whole["cost"].value, rel=0.05)
    assert not any("total_tokens" in note for note in estimate(workload=work).notes)
    assert not any("total_tokens" in note for note in estimate({"gpu_hour": 2}).notes)


def test_a_single_token_is_a_step() -> None:
    for failures in (None, {"mean_time_between_failures": "1e9 h"}):
        found = estimate(None, failures, workload={"global_batch": 256, "total_tokens": 1}).summary
        assert found["training_time"].value >= found["step_time"].value
    plain = estimate(workload={"global_batch": 256, "total_tokens": 1}).summary
    assert plain["training_time"].note == "1 step without failures"
    assert plain["training_time"].value == plain["step_time"].value


def test_what_is_drawn_is_arithmetic() -> None:
    prices = PricesSpec(idle_power_share=0.2, host_power=100.0, power_usage_effectiveness=1.5)
    drawn = money.draw(500.0, prices, stands_still=True)
    assert (drawn.running, drawn.idle) == (900.0, 300.0)
    assert money.energy_joules(drawn, 10.0, 2.0) == 9600.0
    assert money.dollars(10.0, None, None, 0.1) is None


@pytest.mark.parametrize(
    ("prices", "where", "words"),
    [
        ({"power_usage_effectiveness": 0.9}, "power_usage_effectiveness", "at least 1"),
        ({"idle_power_share": 15}, "idle_power_share", "at most 1"),
        ({"host_power": "300 $"}, "host_power", "unit of"),
        ({"electricity": "$2/h"}, "electricity", "0.08 $/kWh"),
        ({"gpu_hours": 2}, "gpu_hours", "nearest: gpu_hour"),
    ],
)
def test_mistakes_are_named(prices: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(moesim.ScenarioError) as caught:
        estimate(prices)
    found = {problem.where: problem.what for problem in caught.value.problems}
    assert words in found[f"prices.{where}"]
