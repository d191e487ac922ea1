"""The time of a run in which rates are taken: steady, overloaded, too short, still filling; and what limits the run."""

from __future__ import annotations

import numpy as np
import pytest
from serving_fixture import LLAMA, PREFILL, RATES, LinearLaw, llama, pool, requests, scenario

import moesim
from moesim.scenario.loading import load_serving
from moesim.serving import metrics, words
from moesim.serving.closed_form import steady_state
from moesim.serving.result import ServingResult
from moesim.serving.simulation import simulate_requests
from moesim.serving.window import Worked, window

MANY = ("workload.arrivals={kind: closed, concurrency: 300}", "workload.requests=600")


def limit(result: ServingResult) -> str:
    """What limits it, by the notes."""
    (found,) = (note.removeprefix(f"{words.LIMIT}: ") for note in result.notes if note.startswith(words.LIMIT))
    return found


@pytest.mark.parametrize(
    ("settings", "binding"),
    [
        ((), "engine.max_requests"),
        (("workload.arrivals.rate=80", "workload.requests=1000"), "engine.max_requests"),
        (("engine.chunked_prefill=false",), "engine.max_requests"),
        (("engine.max_requests=4000",), "the KV cache"),
        (("workload.input_tokens=4000", "workload.output_tokens=10"), "engine.token_budget (prefill)"),
        (PREFILL, "engine.token_budget (prefill)"),
        (("workload.kind=decode",), "engine.max_requests"),
    ],
)
def test_an_overloaded_run_tells_what_the_deployment_sustains(settings: tuple[str, ...], binding: str) -> None:
    """The rates while the queue lasts are the closed form's capacity; metrics, notes and the limit say so."""
    told = llama(*settings)
    most = steady_state(load_serving(LLAMA, settings))
    assert not most.feasible
    for name in RATES:
        assert told.summary[name].value == pytest.approx(getattr(most, name), rel=0.08), name
        assert told.summary[name].note.startswith("sustained while the queue lasts")
    assert limit(told).startswith(f"rate: {binding} lets the deployment do")
    assert any("queue grows" in note for note in told.notes)
    assert "with more requests it is longer" in told.summary["time_to_first_token"].note


def test_engines_behind_others_are_named_where_they_hold_them_up() -> None:
    apart = {**{key: value for key, value in LLAMA.items() if key != "instance"}}
    apart |= {"disaggregated": {"prefill": {"gpus": 1}, "decode": {"gpus": 1}}, "engine": {"max_requests": 64}}
    for tokens, phase in (
        (10, "prefill instances: rate: engine.token_budget"),
        (600, "decode instances: rate: engine"),
    ):
        found = limit(
            moesim.simulate(load_serving(apart, ["workload.requests=400", f"workload.output_tokens={tokens}"]))
        )
        assert found.startswith(phase), found


@pytest.mark.parametrize(
    "settings",
    [
        ("workload.requests=50",),
        ("workload.requests=30", "workload.arrivals.rate=20"),
        ("workload.requests=3", "workload.arrivals.rate=0.001"),
        ("workload.requests=60", "workload.arrivals={kind: closed, concurrency: 64}"),
    ],
)
def test_a_run_too_short_for_a_rate_says_so(settings: tuple[str, ...]) -> None:
    told = llama(*settings)
    requests = told.requests
    whole = len(requests) / (requests["end"].max() - requests["arrival"].min())
    assert told.summary["requests_per_second"].value == pytest.approx(whole)
    for name in RATES:
        assert "too short for a steady rate" in told.summary[name].note
    assert any(note.startswith("rates: over the whole run") for note in told.notes)
    assert told.summary["batch_requests"].value > 0


def test_a_run_that_still_fills_says_so() -> None:
    """Just above what it can do the batch grows for long before anyone waits."""
    told = llama("workload.requests=1000", "workload.arrivals.rate=50")
    for name in RATES:
        assert "more requests are in the engines at the end" in told.summary[name].note
    assert any(note.startswith("rates: not steady") for note in told.notes)


@pytest.mark.parametrize(
    ("settings", "binding"),
    [
        (("workload.arrivals.rate=20", "workload.requests=600"), "arrivals"),
        ((*PREFILL, "workload.arrivals.rate=20", "workload.requests=600"), "arrivals"),
        ((*MANY, "workload.arrivals.concurrency=64"), "concurrency"),
        ((*MANY, "engine.max_requests=32"), "engine.max_requests"),
        ((*MANY, "engine.kv_cache_fraction=0.3"), "the KV cache"),
    ],
)
def test_a_steady_run_warns_of_nothing(settings: tuple[str, ...], binding: str) -> None:
    told = llama(*settings)
    assert limit(told) == binding
    assert not [note for note in told.notes if note.startswith("rates:")]
    assert told.summary["requests_per_second"].note.startswith("of the time when the deployment neither fills nor runs")


def test_requests_that_come_and_go_together_are_counted_over_whole_turns() -> None:
    """A loop of 100 requests of like length: each turn all end at once, and any other window counts a turn too many."""
    run = simulate_requests([pool(LinearLaw(constant=0.01))], requests(np.zeros(750), 100, 50, concurrency=100))
    found = window(run)
    assert found.stays == round(found.stays) >= 3
    turn = float(np.median(run.times.end - run.times.begin))
    assert found.holds(run.times.end).sum() / found.seconds == pytest.approx(100 / turn, rel=0.02)


def test_rates_leave_filling_and_draining_out() -> None:
    """A closed loop under a law of fixed iterations: its beginning and end slow the whole run, not the window."""
    served = scenario(workload__limits={})
    outputs = np.random.default_rng(0).integers(20, 120, 1000)
    run = simulate_requests([pool(LinearLaw(constant=0.02))], requests(np.zeros(1000), 100, outputs, concurrency=200))
    worked = Worked(run)
    found = worked.window
    assert found.note == "of the time when the deployment neither fills nor runs dry"
    assert found.steady
    told = metrics.rate_metrics(run, metrics.Latencies(run, served), served, lambda name: 0.1, worked)
    # 200 in the batch, a token each 20 ms: the first one in the iteration that computes the prompt.
    assert told["output_tokens_per_second"].value == pytest.approx(200 / 0.02, rel=0.001)
    assert told["output_tokens_per_second"].value > 1.05 * outputs.sum() / run.times.end.max()
    assert told["requests_per_second"].value == pytest.approx(200 / 0.02 / outputs.mean(), rel=0.05)


def test_answers_of_one_length_fall_into_step_on_both_roads() -> None:
    """A batch that ends as one is prefilled as one, and then decodes undisturbed; lengths that differ mix both."""
    found: dict[tuple[int, str], float] = {}
    for deviation in (0, 8):
        wanted = (
            "workload.arrivals={kind: closed, concurrency: 64}",
            "workload.input_tokens=2048",
            f"workload.output_tokens={{mean: 16, deviation: {deviation}}}",
            "engine={token_budget: 4096, chunked_prefill: false}",
        )
        served = load_serving(LLAMA, wanted)
        for road in (moesim.simulate, moesim.estimate):
            told = road(served)
            found[deviation, told.road] = told.summary["time_per_output_token_mean"].value
            assert any("equally many output tokens" in note for note in told.notes) is (deviation == 0)
        assert found[deviation, "estimate"] == pytest.approx(found[deviation, "simulate"], rel=0.1)
    for road in ("estimate", "simulate"):
        assert found[0, road] < 0.7 * found[8, road], road
