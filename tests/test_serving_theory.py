"""The simulation of serving against queueing theory and conservation laws, on engines with exact service times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving_fixture import LinearLaw, pool, requests

from moesim.errors import InfeasibleError
from moesim.serving.imbalance import ImbalanceLaw, Imbalances
from moesim.serving.simulation import Run, simulate_requests

Floats = NDArray[np.float64]
ALONE: dict[str, Any] = {"phase": "prefill", "max_requests": 1, "token_budget": 1 << 24}
"""One request at a time: an engine is then the one server of a queue."""
DECODER = LinearLaw(constant=0.02, prefill_token=2e-5, decode_request=1e-4, context_token=1e-8)


def poisson(rate: float, count: int, seed: int = 0) -> Floats:
    return np.cumsum(np.random.default_rng(seed).standard_exponential(count)) / rate


def sojourn(run: Run) -> Floats:
    return run.times.end - run.times.arrival


def within_errors(values: Floats, theory: float, errors: float = 4.0, groups: int = 25) -> None:
    """The mean of correlated values is within so many standard errors, found from means of groups, of the theory's."""
    means = np.array([group.mean() for group in np.array_split(values, groups)])
    error = means.std(ddof=1) / np.sqrt(groups)
    assert abs(means.mean() - theory) < errors * error, (means.mean(), theory, error)
    assert error < 0.12 * theory  # the test can fail


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_m_d_1(load: float) -> None:
    """Fixed service of 1 s: W = 1 + load / (2 (1 - load))."""
    law = LinearLaw(prefill_token=1e-3)
    run = simulate_requests([pool(law, **ALONE)], requests(poisson(load, 12_000, 1), 1000, 1))
    within_errors(sojourn(run)[500:], 1 + load / (2 * (1 - load)))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_m_m_1(load: float) -> None:
    """Exponential service of mean 1 s: W = 1 / (1 - load)."""
    prompts = np.ceil(np.random.default_rng(5).standard_exponential(12_000) * 1e5)
    law = LinearLaw(prefill_token=1e-5)
    run = simulate_requests([pool(law, **ALONE)], requests(poisson(load, 12_000, 1), prompts, 1))
    within_errors(sojourn(run)[500:], 1 / (1 - load))


def test_m_d_1_by_decoding() -> None:
    """The same queue where the service is 50 decode iterations of 20 ms: jumps end where a request comes."""
    law = LinearLaw(constant=0.02)
    run = simulate_requests(
        [pool(law, phase="decode", max_requests=1)], requests(poisson(0.6, 6_000), 10, 50, cached=10)
    )
    within_errors(sojourn(run)[300:], 1 + 0.6 / (2 * 0.4))


def test_two_servers_share_a_queue_worse_than_one_twice_as_fast() -> None:
    """In turn each of two sees Erlang-2 gaps, so a request waits less than in M/M/1; with least work outstanding less
    again, and still longer than at one server of twice the speed."""
    prompts = np.ceil(np.random.default_rng(5).standard_exponential(10_000) * 1e5)
    law = LinearLaw(prefill_token=1e-5)
    arrivals = requests(poisson(1.2, 10_000), prompts, 1)
    waits = [
        sojourn(simulate_requests([pool(law, count=2, **ALONE)], arrivals, router)).mean() - 1.0
        for router in ("round-robin", "least-loaded")
    ]
    fast = simulate_requests([pool(LinearLaw(prefill_token=5e-6), **ALONE)], arrivals)
    stays = [wait + 1.0 for wait in waits]
    assert 1 / 0.4 > stays[0] > stays[1] > sojourn(fast).mean()


def test_littles_law() -> None:
    """Requests inside, on average over time, are the rate times the mean stay: counted apart from the stays."""
    run = simulate_requests([pool(DECODER, count=2, max_requests=16)], requests(poisson(4.0, 800), 800, 100))
    times = run.times
    moments = np.sort(np.concatenate([times.arrival, times.end]))
    inside = np.searchsorted(np.sort(times.arrival), moments, "right") - np.searchsorted(
        np.sort(times.end), moments, "right"
    )
    area = float((inside[:-1] * np.diff(moments)).sum())
    assert area == pytest.approx(float(sojourn(run).sum()), rel=1e-9)


def test_batch_of_decoding_requests_follows_littles_law() -> None:
    """Requests in the batch over time, as the engine's log has them, are the rate times the time from first to last."""
    run = simulate_requests([pool(DECODER)], requests(poisson(4.0, 800), 800, 100))
    columns = run.logs[0].columns()
    area = float((columns["decoders"] * (columns["end"] - columns["begin"])).sum())
    assert area == pytest.approx(float((run.times.end - run.times.first).sum()), rel=1e-6)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("speculative", [1.0, 1.7])
def test_one_jump_is_as_many_single_steps(chunked: bool, speculative: float) -> None:
    """Imbalance drawn, several replicas, a full KV cache: times are equal to rounding."""
    law_of_peaks = _uneven()
    arrivals = requests(
        poisson(6.0, 400, 3),
        np.random.default_rng(1).integers(10, 3000, 400),
        np.random.default_rng(2).integers(1, 200, 400),
    )

    def run(longest: int) -> Run:
        engines = pool(
            DECODER, count=2, replicas=4, kv_tokens=9000, token_budget=1024, chunked_prefill=chunked,
            tokens_per_step=speculative, positions=2, law_of_peaks=law_of_peaks,
        )  # fmt: skip
        return simulate_requests([engines], arrivals, longest_jump=longest)

    jumps, steps = run(64), run(1)
    for name in ("begin", "first", "end"):
        assert np.allclose(getattr(jumps.times, name), getattr(steps.times, name), rtol=1e-9, atol=1e-9)
    assert sum(len(log.rows) for log in jumps.logs) < 0.7 * sum(len(log.rows) for log in steps.logs)


def _uneven() -> Imbalances:
    grid = np.array([1.0, 10_000.0])
    law = ImbalanceLaw(grid, np.array([3.0, 1.5]), np.array([0.4, 0.1]), np.array([6.0, 2.0]), np.array([1.0, 0.1]))
    return Imbalances(law, law)


def test_same_input_same_numbers() -> None:
    runs = [
        simulate_requests([pool(DECODER, count=3, law_of_peaks=_uneven())], requests(poisson(10.0, 500), 500, 50))
        for _ in range(2)
    ]
    assert (runs[0].times.end == runs[1].times.end).all()
    assert runs[0].logs[0].rows == runs[1].logs[0].rows


def test_another_seed_draws_another_imbalance() -> None:
    ends = [
        simulate_requests(
            [pool(DECODER, seed=seed, law_of_peaks=_uneven())], requests(poisson(10.0, 100), 500, 50)
        ).times.end
        for seed in (0, 1)
    ]
    assert not np.allclose(ends[0], ends[1])


def test_more_rate_never_less_latency() -> None:
    """The same requests closer together, mean latency over them all."""
    unit = np.random.default_rng(9).standard_exponential(500)
    means = [
        sojourn(
            simulate_requests([pool(DECODER, count=2, max_requests=32)], requests(np.cumsum(unit) / rate, 600, 80))
        ).mean()
        for rate in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    ]
    assert (np.diff(means) > 0).all()


@pytest.mark.parametrize("concurrency", [1, 7, 40])
def test_a_closed_loop_keeps_its_concurrency(concurrency: int) -> None:
    """Never more inside, and always as many until requests run out."""
    run = simulate_requests([pool(DECODER, count=2)], requests(np.zeros(300), 400, 60, concurrency=concurrency))
    times = run.times
    moments = np.unique(np.concatenate([times.arrival, times.end]))
    inside = np.searchsorted(np.sort(times.arrival), moments, "right") - np.searchsorted(
        np.sort(times.end), moments, "right"
    )
    assert inside.max() <= concurrency
    assert (inside[moments < times.arrival.max()] == concurrency).all()


def test_a_closed_loop_of_one_is_the_sum_of_its_parts() -> None:
    """One request at a time: prompt in one iteration, then 59 decode iterations whose context grows."""
    run = simulate_requests([pool(DECODER)], requests(np.zeros(5), 400, 60, concurrency=1))
    context = 400 + np.arange(59)
    decode = (0.02 + 1e-4 + 1e-8 * context).sum()
    assert sojourn(run) == pytest.approx(np.full(5, 0.02 + 2e-5 * 400 + decode), rel=1e-12)
    assert (run.times.first - run.times.arrival) == pytest.approx(np.full(5, 0.02 + 2e-5 * 400), rel=1e-12)


def test_the_cache_bounds_the_batch() -> None:
    """Room for three requests on each of two replicas: six decode at once, never more, and the rest waits."""
    run = simulate_requests(
        [pool(DECODER, replicas=2, kv_tokens=3 * (100 + 49))], requests(np.zeros(60), 100, 50, concurrency=60)
    )
    columns = run.logs[0].columns()
    assert columns["requests"].max() == 6
    assert columns["reserved_tokens"].max() == 6 * 149
    assert columns["waiting"].max() == 54


def test_a_request_that_fits_no_cache_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match="longest request holds 1,049 tokens"):
        simulate_requests([pool(DECODER, kv_tokens=1048)], requests([0.0], 1000, 50))


def test_prompts_in_chunks_and_alone() -> None:
    """A prompt of 1000 tokens under a budget of 256: four chunks, or one iteration of its own."""
    law = LinearLaw(constant=1.0, prefill_pair=1e-6)
    chunks = simulate_requests([pool(law, token_budget=256)], requests([0.0], 1000, 1))
    assert chunks.logs[0].columns()["prefill_tokens"].tolist() == [256, 256, 256, 232]
    whole = simulate_requests([pool(law, token_budget=256, chunked_prefill=False)], requests([0.0], 1000, 1))
    assert whole.logs[0].columns()["prefill_tokens"].tolist() == [1000]
    # Pairs are the same however a prompt is cut: 1000 x 1000 / 2.
    assert chunks.times.end[0] == pytest.approx(4 + 0.5)
    assert whole.times.end[0] == pytest.approx(1 + 0.5)


def test_without_chunks_prompts_stop_decoding() -> None:
    """The second request's prompt comes while the first decodes: that one waits for it, or is computed beside it."""
    law = LinearLaw(constant=1.0, prefill_token=0.01)
    ends = {
        chunked: simulate_requests([pool(law, chunked_prefill=chunked)], requests([0.0, 4.0], 100, [10, 1])).times
        for chunked in (True, False)
    }
    # Prompt: 2 s; nine further tokens of 1 s each; the other prompt adds its 1 s, alone another iteration of 1 s.
    assert ends[True].end[0] == pytest.approx(2 + 9 + 1)
    assert ends[False].end[0] == pytest.approx(2 + 9 + 2)
    assert ends[True].end[1] == ends[False].end[1] == pytest.approx(4 + 2)


def test_cached_prompt_tokens_are_not_computed() -> None:
    law = LinearLaw(prefill_token=1.0)
    run = simulate_requests([pool(law)], requests([0.0], 100, 1, cached=60))
    assert run.times.end[0] == pytest.approx(40)


def test_speculation_gives_several_tokens_an_iteration() -> None:
    """100 further tokens at 2.5 a step are 40 steps."""
    run = simulate_requests([pool(LinearLaw(constant=1.0), tokens_per_step=2.5, positions=3)], requests([0.0], 10, 101))
    assert run.times.end[0] == pytest.approx(1 + 40)


def test_transfers_queue_at_their_sender() -> None:
    """Three prompts of one iteration, 10 s for each cache: first tokens follow each other by 10 s."""
    first = pool(LinearLaw(constant=1.0, transfer_token=0.1), phase="prefill")
    then = pool(LinearLaw(constant=0.5), phase="decode")
    run = simulate_requests([first, then], requests(np.zeros(3), 100, 3))
    assert run.times.prefilled.tolist() == [1.0, 1.0, 1.0]
    assert run.times.first.tolist() == [11.0, 21.0, 31.0]
    assert run.times.transfer.tolist() == [10.0, 20.0, 30.0]
    assert run.times.end.tolist() == [12.0, 22.0, 32.0]


def test_replicas_send_side_by_side() -> None:
    """The same prompts on three replicas leave over the NICs of each."""
    first = pool(LinearLaw(constant=1.0, transfer_token=0.1), phase="prefill", replicas=3)
    then = pool(LinearLaw(constant=0.5), phase="decode")
    run = simulate_requests([first, then], requests(np.zeros(3), 100, 3))
    assert run.times.first.tolist() == [11.0, 11.0, 11.0]


def test_a_full_decode_cache_holds_the_prompt_back() -> None:
    """Room for one request to decode: the second's cache moves when the first has ended, and its sender keeps it."""
    first = pool(LinearLaw(constant=1.0, transfer_token=0.01), phase="prefill", kv_tokens=100)
    then = pool(LinearLaw(constant=1.0), phase="decode", kv_tokens=105)
    run = simulate_requests([first, then], requests([0.0, 0.0], 100, 6))
    # First: prompt 1 s, transfer 1 s, five steps; the second's prompt waits for the room of the first's on its sender.
    assert run.times.end[0] == pytest.approx(7)
    assert run.times.prefilled[1] == pytest.approx(3)
    assert run.times.first[1] == pytest.approx(8)
    assert run.times.end[1] == pytest.approx(13)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 60),
    replicas=st.integers(1, 5),
    engines=st.integers(1, 3),
    budget=st.integers(16, 600),
    seats=st.integers(1, 6),
    chunked=st.booleans(),
    apart=st.booleans(),
    closed=st.booleans(),
    speculative=st.sampled_from([1.0, 1.3, 3.0]),
)
def test_every_request_ends_once_and_no_token_is_lost(
    seed: int, count: int, replicas: int, engines: int, budget: int, seats: int, chunked: bool, apart: bool,
    closed: bool, speculative: float,
) -> None:  # fmt: skip
    """Any small deployment; `simulate_requests` checks conservation, order and room itself, and this counts again."""
    generator = np.random.default_rng(seed)
    prompts, outputs = generator.integers(1, 800, count), generator.integers(1, 40, count)
    cached = np.minimum(generator.integers(0, 800, count), prompts - 1)
    arrival = np.zeros(count) if closed else np.cumsum(generator.exponential(0.1, count))
    asked = requests(arrival, prompts, outputs, concurrency=seats if closed else None, cached=cached)
    options: dict[str, Any] = {
        "replicas": replicas, "token_budget": budget, "max_requests": seats, "kv_tokens": 1000,
        "chunked_prefill": chunked, "tokens_per_step": speculative, "positions": 3, "law_of_peaks": _uneven(),
    }  # fmt: skip
    law = LinearLaw(0.01, 1e-5, 1e-9, 1e-4, 1e-7, transfer_token=1e-5)
    phases = ("prefill", "decode") if apart else ("mixed",)
    run = simulate_requests([pool(law, phase, engines, **options) for phase in phases], asked)
    columns = [log.columns() for log in run.logs]
    assert (run.times.ended == 1).all()
    assert sum(column["output_tokens"].sum() for column in columns) == pytest.approx(outputs.sum())
    assert sum(column["prefill_tokens"].sum() for column in columns) == (prompts - cached).sum()
    for log, column in zip(run.logs, columns, strict=True):
        assert column["reserved_tokens"].max(initial=0) <= log.kv_tokens
        assert column["requests"].max(initial=0) <= seats * replicas
        assert (column["begin"][1:] >= column["end"][:-1]).all()
        per_iteration = column["prefill_tokens"] / column["iterations"]
        assert not chunked or per_iteration.max(initial=0) <= budget * replicas


def test_the_mean_imbalance_is_the_law_s() -> None:
    """Iterations of one size: their imbalance has the law's mean and deviation."""
    draws = pool(DECODER, law_of_peaks=_uneven()).draws(0)
    found = draws.peaks(np.full(20_000, 100.0), 0, False)
    assert found.rank.mean() == pytest.approx(2.25, abs=0.01)
    assert found.rank.std() == pytest.approx(0.25, rel=0.05)
    again = pool(DECODER, law_of_peaks=_uneven()).draws(0)
    parts = [
        again.peaks(np.full(size, 100.0), first, False).rank for first, size in ((0, 5), (5, 9_000), (9_005, 10_995))
    ]
    assert (np.concatenate(parts) == found.rank).all()
