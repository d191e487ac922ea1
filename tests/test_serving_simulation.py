"""Serving as it is simulated: requests drawn, imbalance, the real law, progress, and every shipped scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_fixture import SERVED, scenario

import moesim
from moesim.errors import InfeasibleError, UserError
from moesim.iteration.batch import Batch
from moesim.randomness import Streams
from moesim.scenario.loading import load_serving
from moesim.serving.deployment import engine_pools, pool_laws
from moesim.serving.requests import draw_requests
from moesim.serving.routed_samples import sampled_imbalances
from moesim.serving.run import simulate_serving
from moesim.serving.simulation import simulate_requests
from moesim.specs.serving import ServingWorkload

ROOT = Path(__file__).parents[1]
SCENARIOS = sorted((ROOT / "scenarios" / "serving").glob("*.yaml"))


def workload(**changes: Any) -> ServingWorkload:
    return scenario(**{f"workload__{key}": value for key, value in changes.items()}).workload


# Requests


def test_arrivals_have_the_stated_rate_and_burstiness() -> None:
    for kind, spread in (("poisson", 1.0), ("bursty", 6.0)):
        arrivals = {"kind": kind, "rate": 25.0, **({"burstiness": spread} if kind == "bursty" else {})}
        drawn = draw_requests(workload(arrivals=arrivals, requests=40_000), Streams(3))
        gaps = np.diff(drawn.arrival)
        assert gaps.mean() == pytest.approx(1 / 25, rel=5 * np.sqrt(spread / 40_000))
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(spread, rel=0.1)


def test_lengths_have_the_stated_law() -> None:
    drawn = draw_requests(workload(requests=40_000), Streams(0))
    assert drawn.input_tokens.mean() == pytest.approx(500, rel=0.02)
    assert drawn.input_tokens.std() == pytest.approx(300, rel=0.05)
    assert (drawn.output_tokens.min(), drawn.output_tokens.max()) == (20, 120)
    counts = np.bincount(drawn.output_tokens)[20:]
    assert counts.std() / counts.mean() < 0.08  # the ends are as likely as the middle


def test_runs_at_other_rates_see_the_same_requests() -> None:
    slow, fast = (draw_requests(workload(arrivals={"kind": "poisson", "rate": rate}), Streams(1)) for rate in (5, 10))
    assert (slow.input_tokens == fast.input_tokens).all()
    assert slow.arrival == pytest.approx(2 * fast.arrival)


def test_kinds_of_work() -> None:
    prompts = draw_requests(scenario(workload__kind="prefill", workload__output_tokens=None,
                                     workload__limits={}).workload, Streams(0))  # fmt: skip
    assert (prompts.output_tokens == 1).all()
    outputs = draw_requests(scenario(workload__kind="decode").workload, Streams(0))
    assert (outputs.cached == outputs.input_tokens).all()
    shared = draw_requests(workload(prefix_cache_share=0.5), Streams(0))
    assert (shared.cached == shared.input_tokens // 2).all()


# Imbalance


def test_sampled_imbalance_agrees_with_the_laws_expectation() -> None:
    """Tokens drawn one by one against the moments of the same load, where batches are large enough to tell."""
    served = scenario()
    law = pool_laws(served)[0]
    found = sampled_imbalances(served, law).decode
    large = found.tokens >= 128
    expected = law.peaks(found.tokens[large])
    assert found.rank_mean[large] == pytest.approx(expected.rank, rel=0.12)
    assert found.expert_mean[large] == pytest.approx(expected.expert, rel=0.2)
    assert (np.diff(found.expert_mean) < 0.1).all()  # larger batches are more even


def test_even_routing_leaves_chance_alone() -> None:
    served = scenario(routing__load="uniform")
    found = sampled_imbalances(served, pool_laws(served)[0]).decode
    assert found.rank_mean[-1] < 1.1 < found.rank_mean[0]


def test_redundant_experts_even_out_the_ranks() -> None:
    plain, copies = (
        sampled_imbalances(served, pool_laws(served)[0]).decode.rank_mean[-1]
        for served in (scenario(), scenario(placement={"strategy": "global", "redundant_experts": 16}))
    )
    assert copies - 1 < 0.5 * (plain - 1)


# The real law


def test_jumps_and_single_steps_agree_under_the_real_law() -> None:
    served = scenario(workload__requests=60)
    pools = engine_pools(served, pool_laws(served))
    drawn = draw_requests(served.workload, Streams(0))
    jumps, steps = (simulate_requests(pools, drawn, longest_jump=longest) for longest in (64, 1))
    assert jumps.times.end == pytest.approx(steps.times.end, rel=1e-9)


def test_busiest_replica_is_waited_for() -> None:
    """All prompt tokens on one of four replicas: its attention takes four times the work, the experts' is the same."""
    law = pool_laws(scenario())[0]
    whole = [np.array([value]) for value in (16384.0, 16384.0 * 8192, 0.0, 0.0)]
    even = law.parts(Batch(*whole))
    one = law.parts(Batch(*whole, Batch(*whole)))
    alike = law.seconds(Batch(*whole, Batch(*(value / 4 for value in whole))))
    assert alike == pytest.approx(law.seconds(Batch(*whole)))
    for name in ("attention", "scores", "dispatch"):
        assert 2.5 * even[name] < one[name] < 4.5 * even[name], name
    assert one["experts"] == pytest.approx(even["experts"])


def test_both_roads_agree_where_replicas_fill_evenly() -> None:
    """Tensor parallel alone, one replica: the steady state against the simulation. Outputs differ in length, or all
    requests of the loop would end together."""
    served = scenario(
        instance={"gpus": 4, "tensor": 4},
        workload__requests=3000,
        workload__limits={},
        workload__arrivals={"kind": "closed", "concurrency": 64},
        workload__output_tokens={"low": 50, "high": 350},
        workload__input_tokens=500,
    )
    simulated, estimated = moesim.simulate(served).summary, moesim.estimate(served).summary
    for name in ("output_tokens_per_second_per_gpu", "time_per_output_token", "batch_requests"):
        assert simulated[name].value == pytest.approx(estimated[name].value, rel=0.1), name


def test_more_rate_gives_more_throughput_from_larger_batches() -> None:
    arrivals = [{"kind": "poisson", "rate": rate} for rate in (10, 40, 160)]
    found = [moesim.simulate(scenario(workload__arrivals=each)).summary for each in arrivals]
    for name in ("output_tokens_per_second", "batch_requests", "kv_cache_use"):
        assert (np.diff([summary[name].value for summary in found]) > 0).all(), name


def test_bursts_cost_latency() -> None:
    """Two seats a replica: what comes in a burst waits for one."""
    kinds = ({"kind": "poisson", "rate": 20}, {"kind": "bursty", "rate": 20, "burstiness": 16})
    even, bursts = (
        moesim.simulate(scenario(workload__arrivals=each, workload__requests=1000, engine__max_requests=2)).summary
        for each in kinds
    )
    assert bursts["time_to_first_token_p99"].value > 2 * even["time_to_first_token_p99"].value


def test_a_queue_that_grows_is_told() -> None:
    told = moesim.simulate(scenario(workload__arrivals={"kind": "poisson", "rate": 100_000}, workload__requests=2000))
    assert any("queue grows" in note for note in told.notes)
    assert told.summary["requests_per_second"].basis == "fitted"  # then the law sets the pace
    with pytest.raises(InfeasibleError, match="requests/s"):
        moesim.estimate(scenario(workload__arrivals={"kind": "poisson", "rate": 100_000}))


def test_a_model_that_fills_the_gpu_is_infeasible() -> None:
    served = scenario(model="mixtral-8x7b", instance={"gpus": 1}, cluster__gpus=1, workload__kind="serving")
    with pytest.raises(InfeasibleError, match="no room for a KV cache"):
        moesim.simulate(served)


def test_pools_apart_move_every_cache() -> None:
    served = load_serving(
        {
            **{key: value for key, value in SERVED.items() if key != "instance"},
            "cluster": {"gpu": "h100-sxm", "gpus": 16},
            "disaggregated": {"prefill": {"gpus": 4, "expert": 4, "instances": 2}, "decode": {"gpus": 8, "expert": 8}},
        }
    )
    told = moesim.simulate(served)
    law = pool_laws(served)[0]
    alone = np.array([float(law.kv_transfer_seconds(tokens)) for tokens in told.requests["input_tokens"]])
    assert (told.requests["kv_transfer"] >= alone * (1 - 1e-9)).all()
    assert (told.requests["first_token"] == told.requests["prefill_end"] + told.requests["kv_transfer"]).sum() > 390
    assert set(told.requests["prefill_instance"]) == {0, 1}
    assert set(told.iterations["phase"]) == {"prefill", "decode"}
    assert {name.partition(":")[0] for name in told.breakdown} == {"prefill", "decode"}


# Progress, mistakes, shipped scenarios


def test_progress_is_told_to_its_end() -> None:
    heard: list[tuple[str, float]] = []
    simulate_serving(scenario(), lambda what, share: heard.append((what, share)))
    assert heard[-1] == ("simulating requests", 1.0)
    assert [share for what, share in heard if what == "simulating requests"] == sorted(
        share for what, share in heard if what == "simulating requests"
    )


def test_missing_lengths_are_told() -> None:
    with pytest.raises(UserError, match="output_tokens"):
        load_serving(SERVED, ["workload.output_tokens=null"])


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_shipped_scenario_runs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("question: ")
    assert text.splitlines()[0].endswith("?")
    served = load_serving(path, ["workload.requests=300"])
    told = moesim.simulate(served)
    assert (told.requests["end"] > told.requests["arrival"]).all()
    assert moesim.estimate(load_serving(path)).summary["output_tokens_per_second"].value > 0
