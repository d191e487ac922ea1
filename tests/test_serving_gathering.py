"""Requests that gather while iterations run: the closed form against queueing theory and against the simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving_fixture import LinearLaw, pool, requests

import moesim
from moesim.randomness import Streams
from moesim.scenario.loading import load_serving
from moesim.serving.closed_form import steady_state
from moesim.serving.demand import Demand, demand_of
from moesim.serving.gathering import gathered, near, queue
from moesim.serving.requests import draw_requests
from moesim.serving.simulation import simulate_requests

LENGTHS = {"mean": 2000, "deviation": 1000}
OUTPUTS = {"mean": 200, "deviation": 100}


def served(**changes: Any) -> dict[str, Any]:
    """gpt-oss-120b on eight GPUs, attention data parallel, with what `changes` says of the workload."""
    work = {"kind": "serving", "requests": 1200, "input_tokens": LENGTHS, "output_tokens": OUTPUTS}
    return {
        "model": "gpt-oss-120b",
        "cluster": {"gpu": "h100-sxm", "gpus": 8},
        "instance": {"gpus": 8, "expert": 8},
        "workload": {**work, "arrivals": {"kind": "poisson", "rate": 20}, **changes},
    }


def first_tokens(document: dict[str, Any], *settings: str) -> tuple[float, float]:
    """Mean time to first token by both roads; of the simulation without the first and last tenth."""
    scenario = load_serving(document, settings)
    table = moesim.simulate(scenario).requests
    count = len(table["request"])
    middle = np.asarray(table["time_to_first_token"])[count // 10 : -count // 10]
    return steady_state(scenario).time_to_first_token, float(middle.mean())


@pytest.mark.parametrize("rate", [2.0, 6.0, 9.0])
def test_a_linear_law_gathers_as_its_simulation_does(rate: float) -> None:
    """Iterations of 50 ms and 60 ms a prompt, of any number of prompts."""
    arrival = np.cumsum(np.random.default_rng(7).exponential(1 / rate, 15_000))
    law = LinearLaw(constant=0.05, prefill_token=6e-4)
    alone = [pool(law, "prefill", token_budget=1 << 30, max_requests=1 << 30)]
    run = simulate_requests(alone, requests(arrival, 100, 1))
    found = gathered(lambda prompts: 0.05 + 0.06 * prompts, rate, 1.0, 1e9)
    own = found.busy * (0.11 + 0.06 * found.beside) + (1 - found.busy) * 0.11
    seen = run.times.first - run.times.arrival
    assert found.busy * found.falls / 2 + own == pytest.approx(seen[1000:].mean(), rel=0.05)
    columns = run.logs[0].columns()
    assert found.seconds == pytest.approx(float((columns["end"] - columns["begin"]).mean()), rel=0.04)


def test_one_server_waits_as_kingman_says_and_many_wait_less() -> None:
    for use in (0.1, 0.5, 0.9):
        assert queue(use, 1.0, 0.5) == pytest.approx(0.5 * use / (1 - use))  # M/D/1
        assert queue(use, 1.0, 1.0) > queue(use, 4.0, 1.0) > queue(use, 64.0, 1.0) > 0.0
    # In heavy traffic the number of servers no longer matters: all are busy.
    assert queue(0.999, 16.0, 1.0) == pytest.approx(queue(0.999, 1.0, 1.0), rel=0.01)


def test_arrivals_near_an_arrival_are_those_of_the_renewal_law() -> None:
    assert near(5.0, 1.0, 0.4) == pytest.approx(2.0)
    assert near(0.0, 8.0, 1.0) == 0.0
    assert near(5.0, 0.0, 0.9) == pytest.approx(4.0, abs=0.2)  # even gaps of 0.2 s
    generator = np.random.default_rng(3)
    for burstiness, seconds in ((8.0, 0.05), (4.0, 1.0), (0.25, 0.3)):
        shape = 1.0 / burstiness
        gaps = generator.standard_gamma(shape, (20_000, 400)) / shape / 5.0
        seen = (np.cumsum(gaps, axis=1) <= seconds).sum(axis=1)
        error = 4 * seen.std() / np.sqrt(len(seen))
        assert near(5.0, burstiness, seconds) == pytest.approx(float(seen.mean()), abs=error), burstiness


@pytest.mark.parametrize("spec", [{"mean": 2000, "deviation": 1500}, {"low": 10, "high": 4000}, 700])
def test_the_largest_of_several_prompts(spec: Any) -> None:
    demand: Demand = demand_of(load_serving(served(input_tokens=spec)))
    assert demand.largest(1.0) == pytest.approx(demand.new)
    scenario = load_serving(served(input_tokens=spec, requests=300_000))
    drawn = draw_requests(scenario.workload, Streams(1)).input_tokens
    for prompts in (4, 32):
        seen = drawn[: len(drawn) // prompts * prompts].reshape(-1, prompts).max(axis=1).mean()
        assert demand.largest(float(prompts)) == pytest.approx(float(seen), rel=0.03)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"kind": "prefill", "arrivals": {"kind": "poisson", "rate": 10}}, 0.10),
        ({"kind": "prefill", "arrivals": {"kind": "poisson", "rate": 60}}, 0.12),
        ({"arrivals": {"kind": "poisson", "rate": 5}}, 0.08),
        ({"arrivals": {"kind": "poisson", "rate": 20}}, 0.08),
        ({"kind": "decode", "arrivals": {"kind": "poisson", "rate": 10}}, 0.08),
    ],
    ids=["prefill 10/s", "prefill 60/s", "serving 5/s", "serving 20/s", "decode 10/s"],
)
def test_both_roads_wait_as_long_for_a_first_token(changes: dict[str, Any], tolerance: float) -> None:
    document = served(**changes)
    if changes.get("kind") == "prefill":
        del document["workload"]["output_tokens"]
    estimated, simulated = first_tokens(document)
    assert estimated == pytest.approx(simulated, rel=tolerance)


def test_both_roads_wait_as_long_where_prompts_are_apart() -> None:
    """Prompts on 16 attention replicas that wait for each other: the busiest has several times the mean."""
    document = {
        **served(requests=1500, arrivals={"kind": "poisson", "rate": 20}),
        "model": "deepseek-v3",
        "cluster": {"gpu": "h800-sxm", "gpus": 48, "fabric": "rail-optimized-400g"},
        "disaggregated": {"prefill": {"gpus": 16, "expert": 16}, "decode": {"gpus": 32, "expert": 32}},
        "precision": {"compute": "fp8-block", "dispatch": "fp8-block"},
    }
    del document["instance"]
    estimated, simulated = first_tokens(document)
    assert estimated == pytest.approx(simulated, rel=0.15)


def test_a_trace_of_one_moment_is_a_loop_that_it_fills(tmp_path: Any) -> None:
    rows = "".join(f"0,{500 + 10 * number},{60 + number}\n" for number in range(40))
    path = tmp_path / "burst.csv"
    path.write_text("timestamp,input_tokens,output_tokens\n" + rows, encoding="utf-8")
    document = served(arrivals={"kind": "trace", "path": str(path)})
    del document["workload"]["input_tokens"], document["workload"]["output_tokens"]
    scenario = load_serving(document)
    assert demand_of(scenario).concurrency == 40
    assert steady_state(scenario).feasible
    assert moesim.simulate(scenario).summary["requests_per_second"].value > 0


@pytest.mark.parametrize(
    ("lengths", "tolerance"),
    [(1000, 0.15), ({"mean": 2000, "deviation": 1000}, 0.15), ({"mean": 500, "deviation": 1000}, 0.3)],
)
@pytest.mark.parametrize("use", [0.3, 0.6, 0.85])
def test_prompts_alone_wait_alike_by_both_roads(lengths: Any, tolerance: float, use: float) -> None:
    """One engine that prefills, at a share of what it could do; prompts far longer than the token budget among them."""
    document: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "cluster": {"gpu": "h100-sxm", "gpus": 1},
        "instance": {"gpus": 1},
        "workload": {
            "kind": "prefill",
            "requests": 3000,
            "input_tokens": lengths,
            "arrivals": {"kind": "poisson", "rate": 1e6},
        },
    }
    most = steady_state(load_serving(document)).requests_per_second
    document["workload"]["arrivals"] = {"kind": "poisson", "rate": use * most}
    estimated, simulated = first_tokens(document)
    assert estimated == pytest.approx(simulated, rel=tolerance)


def test_whole_prompts_longer_than_the_token_budget_are_taken_alike() -> None:
    """Without chunked prefill an iteration takes at least one prompt a replica, however small the budget."""
    document = {**served(requests=400, arrivals={"kind": "closed", "concurrency": 32})}
    scenario = load_serving(document, ["engine.chunked_prefill=false", "engine.token_budget=100"])
    estimated, simulated = (road(scenario).summary for road in (moesim.estimate, moesim.simulate))
    for name in ("time_per_output_token_mean", "output_tokens_per_second"):
        assert estimated[name].value == pytest.approx(simulated[name].value, rel=0.1), name
