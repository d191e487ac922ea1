"""The steady state in closed form: conservation, queueing theory, limits that bind, and the published measurements."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim
from moesim.iteration.law import Batch, IterationLaw
from moesim.scenario.serving import ServingScenario
from moesim.serving.closed_form import SteadyState, steady_state
from moesim.serving.demand import demand_of

SHARED = Path(__file__).parents[1].parent / "shared" / "measurements"
LLAMA: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "cluster": {"gpu": "h100-sxm", "gpus": 2},
    "instance": {"gpus": 1},
    "workload": {
        "kind": "serving",
        "requests": 1000000,
        "input_tokens": 1000,
        "output_tokens": 200,
        "arrivals": {"kind": "closed", "concurrency": 32},
    },
}


def scenario(*settings: str, base: dict[str, Any] = LLAMA) -> ServingScenario:
    found = moesim.load(base, settings)
    assert isinstance(found, ServingScenario)
    return found


def state(*settings: str, base: dict[str, Any] = LLAMA) -> SteadyState:
    return steady_state(scenario(*settings, base=base))


def test_a_closed_loop_keeps_littles_law() -> None:
    for concurrency in (1, 8, 64, 500, 5000):
        found = state(f"workload.arrivals.concurrency={concurrency}")
        assert found.feasible
        assert found.requests_per_second * found.request_latency == pytest.approx(concurrency, rel=0.02)
        assert found.output_tokens_per_second == pytest.approx(200 * found.requests_per_second)
        assert found.input_tokens_per_second == pytest.approx(1000 * found.requests_per_second)


def test_more_at_once_serves_more_and_each_slower_until_a_limit_binds() -> None:
    found = [state(f"workload.arrivals.concurrency={count}") for count in (2, 16, 128, 4096)]
    rates = [one.output_tokens_per_second for one in found]
    assert sorted(rates) == rates
    assert found[0].time_per_output_token < found[1].time_per_output_token < found[2].time_per_output_token
    assert [one.binding for one in found] == ["concurrency"] * 3 + ["engine.max_requests"]
    assert state("workload.arrivals.concurrency=4096", "engine.max_requests=100000").binding == "the KV cache"
    assert found[3].time_to_first_token > 1.0 > found[2].time_to_first_token


def test_open_arrivals_are_served_as_they_come_or_pile_up() -> None:
    open_ = "workload.arrivals={kind: poisson, rate: %g}"
    most = state("workload.arrivals.concurrency=100000").requests_per_second
    calm = state(open_ % (most / 2))
    assert calm.feasible
    assert calm.requests_per_second == pytest.approx(most / 2, rel=1e-5)  # as written, to six digits
    assert calm.decoding * 2 == pytest.approx(most / 2 * 199 * calm.time_per_output_token, rel=1e-3)
    busy = state(open_ % (0.9 * most))
    assert busy.time_per_output_token > calm.time_per_output_token
    over = state(open_ % (1.2 * most))
    assert not over.feasible
    assert over.binding.startswith("rate:")
    assert math.isinf(over.time_to_first_token)
    assert over.requests_per_second < 1.2 * most


def test_prefill_alone_waits_as_a_queue_of_fixed_service_does() -> None:
    alone = ["workload.kind=prefill", "workload.output_tokens=null", "engine.token_budget=1000", "cluster.gpus=1"]
    one = scenario(*alone)
    demand = demand_of(one)
    law = IterationLaw(one, one.pools[0].instance, "prefill")
    batch = Batch(*(np.array([value]) for value in (1000.0, 500000.0, 0.0, 0.0)))
    service = float(law.seconds(batch)[0])
    assert (demand.prompt, demand.output, demand.new) == (1000, 1, 1000)
    for use in (0.2, 0.5, 0.8):
        found = state(*alone, f"workload.arrivals={{kind: poisson, rate: {use / service}}}")
        wait = use / (2 * (1 - use)) * service  # M/D/1
        assert found.time_to_first_token == pytest.approx(service + wait, rel=1e-6)
        bursty = state(*alone, f"workload.arrivals={{kind: bursty, rate: {use / service}, burstiness: 4}}")
        assert bursty.time_to_first_token == pytest.approx(service + 4 * wait, rel=1e-6)
    assert not state(*alone, f"workload.arrivals={{kind: poisson, rate: {1.1 / service}}}").feasible


def test_what_cannot_be_names_what_binds() -> None:
    large = state("model=llama-3.1-70b")
    assert not large.feasible
    assert "memory: weights and buffers need" in large.binding
    assert "weights_other" in large.binding or "weights_attention" in large.binding
    long = state("workload.input_tokens=2000000")
    assert not long.feasible
    assert "KV cache" in long.binding
    assert long.requests_per_second == 0.0
    assert math.isinf(long.request_latency)


def test_a_prompt_in_the_cache_costs_less_and_decode_none() -> None:
    plain, cached = state(), state("workload.prefix_cache_share=0.9")
    assert cached.time_to_first_token < 0.7 * plain.time_to_first_token
    assert cached.output_tokens_per_second > plain.output_tokens_per_second
    decode = state("workload.kind=decode")
    assert decode.time_to_first_token == pytest.approx(decode.time_per_output_token, rel=1e-6)  # an iteration
    assert decode.output_tokens_per_second > cached.output_tokens_per_second


def test_whole_prompts_in_their_own_iterations_hold_decoding_up() -> None:
    unlike = "workload.output_tokens={mean: 200, deviation: 100}"
    chunked, whole = state(unlike), state(unlike, "engine.chunked_prefill=false")
    assert whole.time_per_output_token > chunked.time_per_output_token


def test_speculation_gives_tokens_sooner() -> None:
    plain, guessed = state(), state("engine.speculative_tokens=2")
    assert 0.45 < guessed.time_per_output_token / plain.time_per_output_token < 0.9


def test_prompts_apart_leave_decoding_alone() -> None:
    apart = {
        **{key: value for key, value in LLAMA.items() if key != "instance"},
        "cluster": {"gpu": "h100-sxm", "gpus": 16},
    }
    both = "disaggregated={prefill: {gpus: 8, tensor: 8}, decode: {gpus: 8, tensor: 8}}"
    rate = "workload.arrivals={kind: poisson, rate: 30}"
    mixed, split = state("instance={gpus: 8, tensor: 8}", rate, base=apart), state(both, rate, base=apart)
    assert split.feasible
    assert split.requests_per_second == pytest.approx(30)
    assert split.time_per_output_token < 30 / 15 * mixed.time_per_output_token
    alone = state("workload.kind=decode", "cluster.gpus=8", "instance={gpus: 8, tensor: 8}", rate, base=apart)
    assert split.time_per_output_token == pytest.approx(alone.time_per_output_token, rel=1e-6)
    over = state(both, "workload.arrivals={kind: poisson, rate: 100000}", base=apart)
    assert not over.feasible
    assert "instances: rate:" in over.binding
    long = state(both, "workload.arrivals={kind: poisson, rate: 100000}", "workload.output_tokens=4000", base=apart)
    assert long.binding.startswith("decode instances: rate:")  # both pools are overrun; this one would be sooner
    closed = state(both, "workload.arrivals={kind: closed, concurrency: 64}", base=apart)
    assert closed.requests_per_second * closed.request_latency == pytest.approx(64, rel=0.02)


def test_a_loop_that_starts_at_once_makes_its_first_prompts_wait() -> None:
    unlike = "workload.output_tokens={mean: 200, deviation: 100}"
    few, many = state(unlike, "workload.requests=32"), state(unlike, "workload.requests=32000")
    assert few.time_to_first_token > 2 * many.time_to_first_token
    assert few.time_per_output_token == pytest.approx(many.time_per_output_token)


MODELS = {
    "Qwen/Qwen3-32B": "qwen3-32b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
}


def _layout(row: dict[str, str]) -> tuple[int, int, int]:
    """GPUs, tensor and expert degree: some rows multiply tensor and expert parallel of the same GPUs."""
    gpus, tensor = int(float(row["num_gpus_derived"])), int(float(row["tp_size"]))
    split, expert = (max(1, int(float(row[f"moe_{name}_size"] or 1))) for name in ("tp", "ep"))
    if split == expert > 1 and split * expert == gpus:
        return expert, expert if tensor > 1 else 1, expert
    return gpus, tensor, expert


def _document(row: dict[str, str]) -> dict[str, Any]:
    gpus, tensor, expert = _layout(row)
    model = MODELS[row["model_path"]]
    quantized = {"fp8": "fp8", "fp8_block": "fp8-block"}.get(row["gemm_quant_mode"], "bf16")
    precision: dict[str, str] = {"compute": "fp8-block" if model == "deepseek-v3" else quantized}
    if model == "gpt-oss-120b":
        precision = {"compute": "bf16", "expert_weights": "mxfp4"}
    moe = model in ("gpt-oss-120b", "deepseek-v3")
    varied = "gap-analysis" not in row["silicon_data_source"]
    low = 0.8 if varied else 1.0
    return {
        "model": model,
        "cluster": {"gpu": row["system"].replace("_", "-"), "gpus": gpus},
        "instance": {"gpus": gpus, "tensor": tensor, **({"expert": expert} if moe else {})},
        "precision": precision,
        "stack": f"{row['backend']} {row['backend_version']}".strip(),
        "engine": {"max_requests": 2048},
        "workload": {
            "kind": "serving",
            "input_tokens": {"low": round(low * int(row["isl"])), "high": int(row["isl"])},
            "output_tokens": {"low": round(low * int(row["osl"])), "high": int(row["osl"])},
            "arrivals": {"kind": "closed", "concurrency": int(float(row["concurrency"] or row["batch_size"]))},
        },
    }


def _measured(row: dict[str, str], output: float) -> float:
    """Output tokens/s a GPU from concurrency and the mean latencies."""
    count = float(row["concurrency"] or row["batch_size"])
    latency = (float(row["silicon_ttft_ms"]) + float(row["silicon_tpot_ms"]) * (output - 1)) / 1e3
    return count * output / latency / _layout(row)[0]


@pytest.fixture(scope="module")
def published() -> list[tuple[dict[str, str], float, float]]:
    """Rows with measured and predicted output tokens/s a GPU: every fifth of all, and all of two models' layouts."""
    path = SHARED / "serving_silicon_sample.csv.gz"
    if not path.exists():
        pytest.skip("the shared measurements are not here")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows[::5]:
        loaded = scenario(base=_document(row))
        output = demand_of(loaded).output
        said = steady_state(loaded).output_tokens_per_second / loaded.cluster.gpus
        found.append((row, _measured(row, output), said))
    return found


def test_published_throughputs_are_met(published: list[tuple[dict[str, str], float, float]]) -> None:
    miss = {index: abs(said / told - 1) for index, (_, told, said) in enumerate(published)}
    assert len(miss) > 200
    assert np.median(list(miss.values())) < 0.10
    for model in sorted(set(MODELS.values())):
        own = [miss[index] for index, (row, _, _) in enumerate(published) if MODELS[row["model_path"]] == model]
        assert np.median(own) < 0.17, model


def test_layouts_of_one_model_come_in_the_right_order(published: list[tuple[dict[str, str], float, float]]) -> None:
    groups: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row, told, said in published:
        names = ("model_path", "system", "backend", "backend_version", "isl", "osl", "concurrency")
        groups.setdefault(tuple(row[name] for name in names), []).append((told, said))
    right = wrong = 0
    for same in groups.values():
        for at, (told, said) in enumerate(same):
            for other, predicted in same[:at]:
                if abs(math.log(told / other)) > 0.06:
                    right += (told > other) == (said > predicted)
                    wrong += (told > other) != (said > predicted)
    assert right > 20
    assert wrong <= 0.05 * (right + wrong)
