"""The law of one engine iteration: its parts, its limits from first principles, and what an engine holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import moesim
from moesim.iteration.law import Batch, IterationLaw
from moesim.iteration.stack import band, nearest, stack_note, time_factor
from moesim.scenario.serving import ServingScenario
from moesim.specs import parameters

LLAMA = {
    "model": "llama-3.1-8b",
    "cluster": {"gpu": "h100-sxm", "gpus": 1},
    "instance": {"gpus": 1},
    "workload": {
        "kind": "serving",
        "input_tokens": 1024,
        "output_tokens": 256,
        "arrivals": {"kind": "closed", "concurrency": 8},
    },
}
DEEPSEEK = {
    **LLAMA,
    "model": "deepseek-v3",
    "cluster": {"gpu": "h800-sxm", "gpus": 32},
    "instance": {"gpus": 32, "expert": 32},
    "precision": {"compute": "fp8-block", "dispatch": "fp8-block"},
}
MIXTRAL = {
    **LLAMA,
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "instance": {"gpus": 8, "tensor": 8},
}


def scenario(base: dict[str, Any], *settings: str) -> ServingScenario:
    found = moesim.load(base, settings)
    assert isinstance(found, ServingScenario)
    return found


def law(base: dict[str, Any], *settings: str) -> IterationLaw:
    loaded = scenario(base, *settings)
    pool = loaded.pools[0]
    return IterationLaw(loaded, pool.instance, pool.phase)


def batch(prefill: Any = 0.0, decode: Any = 0.0, context: float = 1000.0) -> Batch:
    """One prompt of `prefill` tokens, `decode` requests of equal context; arrays are iterations."""
    new, requests = np.broadcast_arrays(np.asarray(prefill, float), np.asarray(decode, float))
    return Batch(
        np.atleast_1d(new), np.atleast_1d(new * new / 2), np.atleast_1d(requests), np.atleast_1d(requests * context)
    )


def seconds(base: dict[str, Any], *settings: str, **of: Any) -> float:
    return float(law(base, *settings).seconds(batch(**of))[0])


@pytest.mark.parametrize("base", [LLAMA, DEEPSEEK, MIXTRAL], ids=["llama", "deepseek", "mixtral"])
def test_parts_add_up_and_an_iteration_alone_is_as_in_an_array(base: dict[str, Any]) -> None:
    found = law(base)
    many = batch(prefill=[0.0, 700.0, 5000.0, 0.0], decode=[3.0, 0.0, 64.0, 0.0])
    whole = found.seconds(many)
    parts = found.parts(many)
    assert np.allclose(sum(parts.values()), whole)
    assert whole[3] == 0.0
    assert np.all(whole[:3] > 0)
    assert all(np.all(part >= 0) for part in parts.values())
    for at in range(3):
        one = batch(prefill=many.prefill_tokens[at], decode=many.decode_requests[at])
        assert found.seconds(one)[0] == pytest.approx(whole[at], rel=1e-12)


@pytest.mark.parametrize("base", [LLAMA, DEEPSEEK, MIXTRAL], ids=["llama", "deepseek", "mixtral"])
def test_more_of_anything_never_takes_less(base: dict[str, Any]) -> None:
    found = law(base)
    counts = np.geomspace(1, 30000, 60)
    assert np.all(np.diff(found.seconds(batch(prefill=counts))) > -1e-9)
    assert np.all(np.diff(found.seconds(batch(decode=np.geomspace(1, 4000, 60)))) > -1e-9)
    longer = [float(found.seconds(batch(decode=64.0, context=context))[0]) for context in (100, 1000, 10000, 100000)]
    assert sorted(longer) == longer


def test_decoding_is_no_faster_than_reading_weights_and_cache() -> None:
    gpu = scenario(LLAMA).cluster.gpu
    found = law(LLAMA)
    read = found.weights_bytes_per_gpu - 2 * 128256 * 4096  # the input table is looked up
    for requests, context in ((1, 500), (64, 4000), (256, 2000)):
        least = (read + requests * context * found.kv_bytes_per_token) / gpu.memory_bandwidth
        took = float(found.seconds(batch(decode=requests, context=context))[0])
        assert least < took < 2.5 * least + 3e-3


def test_prefill_is_no_faster_than_its_products_at_the_peak() -> None:
    loaded = scenario(LLAMA)
    tokens = 8192.0
    work = 2 * parameters.body_parameters(loaded.model, 0) * tokens
    least = work / loaded.cluster.gpu.bf16
    assert least < seconds(LLAMA, prefill=tokens) < 2.2 * least


def test_few_tokens_read_few_experts() -> None:
    parts = law(MIXTRAL).parts(batch(decode=[1.0, 4.0, 64.0]))["experts"]
    # Two of eight experts for one token, most of them for four, all for sixty-four.
    assert parts[0] < 0.55 * parts[2]
    assert parts[0] < parts[1] < parts[2]


def test_a_sum_over_ranks_costs_and_tensor_parallel_divides_the_rest() -> None:
    one, four = (law(LLAMA, f"cluster.gpus={n}", f"instance.gpus={n}", f"instance.tensor={n}") for n in (1, 4))
    alone, shared = (found.parts(batch(prefill=4096.0)) for found in (one, four))
    assert alone["tensor_parallel"][0] == 0.0 < shared["tensor_parallel"][0]
    assert shared["dense"][0] < 0.4 * alone["dense"][0]
    assert four.weights_bytes_per_gpu == pytest.approx(one.weights_bytes_per_gpu / 4, rel=1e-3)


def test_uneven_experts_and_an_uneven_iteration_take_longer() -> None:
    even, uneven = law(DEEPSEEK), law(DEEPSEEK, "routing.load={zipf: 0.8}")
    work = batch(decode=2048.0)
    assert uneven.peaks(np.array([2048.0])).rank[0] > even.peaks(np.array([2048.0])).rank[0] >= 1.0
    assert uneven.seconds(work)[0] > even.seconds(work)[0]
    drawn = [float(even.seconds(work, np.array([peak]))[0]) for peak in (1.0, 1.5, 3.0)]
    assert drawn[0] < drawn[1] < drawn[2]
    expected = even.peaks(np.array([2048.0])).rank
    assert even.seconds(work, expected)[0] == pytest.approx(even.seconds(work)[0], rel=0.02)


def test_redundant_experts_even_the_ranks_and_take_memory() -> None:
    skewed = "routing.load={zipf: 0.8}"
    plain = law(DEEPSEEK, skewed)
    balanced = law(DEEPSEEK, skewed, "placement.strategy=global", "placement.redundant_experts=32")
    tokens = np.array([8192.0])
    assert balanced.peaks(tokens).rank[0] < 0.6 * plain.peaks(tokens).rank[0]
    assert balanced.seconds(batch(decode=8192.0))[0] < plain.seconds(batch(decode=8192.0))[0]
    expert = parameters.expert_parameters(scenario(DEEPSEEK).model)
    more = balanced.memory_parts["weights_redundant_experts"]
    assert more == pytest.approx(58 * expert * 1.03)
    assert balanced.kv_capacity_tokens < plain.kv_capacity_tokens


def test_redundant_experts_fill_up_ranks_that_experts_alone_do_not_divide_over() -> None:
    wide = ["cluster.gpus=72", "instance={gpus: 72, expert: 72}", "placement={strategy: global, redundant_experts: 32}"]
    found = law(DEEPSEEK, *wide)
    assert found.load.placement.slots == 4
    # Published: 22,282 tokens/s a node of 8 H100 at 256 requests a GPU of 2,000 prompt tokens (SGLang, 9 nodes).
    took = float(found.seconds(batch(decode=256.0 * 72, context=2100.0))[0])
    assert 8 * 256 / took == pytest.approx(22282, rel=0.35)


def test_a_plan_may_come_from_a_recording() -> None:
    skewed = "routing.load={zipf: 0.8}"
    other = "placement={strategy: greedy, planned_from: deepseek-v3-like}"
    own, planned = (law(DEEPSEEK, skewed, plan) for plan in ("placement.strategy=greedy", other))
    tokens = np.array([8192.0])
    assert own.peaks(tokens).rank[0] < planned.peaks(tokens).rank[0]


def test_the_dispatcher_follows_the_phase_and_a_named_one_is_kept() -> None:
    found = law(DEEPSEEK).exchange
    assert found.dispatcher("prefill", 4096.0).name == "deepep-normal"
    assert found.dispatcher("decode", 64.0).name == "deepep-low-latency"
    named = law(DEEPSEEK, "dispatcher=nccl-all-to-all").exchange
    assert {named.dispatcher(phase, 64.0).name for phase in ("prefill", "decode")} == {"nccl-all-to-all"}


def test_two_batches_hide_exchanges_where_they_are_long() -> None:
    work = batch(prefill=131072.0)
    plain, twice = law(DEEPSEEK).parts(work), law(DEEPSEEK, "engine.two_batch_overlap=true").parts(work)
    moved = [float(parts["dispatch"][0] + parts["combine"][0]) for parts in (plain, twice)]
    assert moved[1] < 0.2 * moved[0]
    whole = [float(sum(parts.values())[0]) for parts in (plain, twice)]
    assert whole[0] - moved[0] <= whole[1] * 1.02
    assert whole[1] < whole[0]


def test_graphs_spare_launches() -> None:
    eager, graphs = (seconds(LLAMA, f"engine.cuda_graphs={on}", decode=1.0) for on in ("false", "true"))
    assert eager > graphs
    assert seconds(LLAMA, "engine.cuda_graphs=false", prefill=8192.0) == pytest.approx(seconds(LLAMA, prefill=8192.0))


def test_speculation_computes_more_positions_and_drafts_with_the_models_own_module() -> None:
    plain, two = law(DEEPSEEK), law(DEEPSEEK, "engine.speculative_tokens=1.8")
    assert two.scenario.engine.drafted == 1
    parts = two.parts(batch(decode=64.0))
    assert parts["draft"][0] > 0.0
    took = [float(found.seconds(batch(decode=64.0))[0]) for found in (plain, two)]
    assert took[0] < took[1] < 1.8 * took[0]
    assert "draft" not in law(LLAMA).parts(batch(decode=1.0)) or law(LLAMA).parts(batch(decode=1.0))["draft"][0] == 0


def test_a_pipeline_works_on_parts_of_the_batch() -> None:
    tensor = law(MIXTRAL)
    stages = law(MIXTRAL, "instance.tensor=4", "instance.pipeline=2")
    parts = stages.parts(batch(prefill=4096.0))
    assert parts["pipeline"][0] > 0.0
    assert tensor.parts(batch(prefill=4096.0))["pipeline"][0] == 0.0
    assert stages.weights_bytes_per_gpu == pytest.approx(tensor.weights_bytes_per_gpu, rel=0.1)


def test_attention_data_parallel_needs_whole_prompts_somewhere() -> None:
    found = law(DEEPSEEK)
    tokens, requests = np.array([2048.0]), np.zeros(1)
    pairs = tokens * tokens / 2
    alone = Batch(tokens, pairs, requests, requests)
    busy = Batch(tokens, pairs, requests, requests, Batch(tokens, pairs, requests, requests))
    assert found.seconds(busy)[0] > 1.5 * found.seconds(alone)[0]


KV = [
    (LLAMA, [], 2 * 8 * 128 * 32 * 2),
    (LLAMA, ["engine.kv_format=fp8"], 2 * 8 * 128 * 32),
    (LLAMA, ["cluster.gpus=8", "instance.gpus=8", "instance.tensor=8"], 2 * 8 * 128 * 32 * 2),
    (LLAMA, ["cluster.gpus=16", "instance.gpus=16", "instance.tensor=16"], 2 * 16 * 128 * 32 * 2),
    (DEEPSEEK, [], (512 + 64) * 61 * 2),
    (DEEPSEEK, ["cluster.gpus=8", "instance.gpus=8", "instance.tensor=8", "instance.expert=8"], 8 * 576 * 61 * 2),
    (
        {**LLAMA, "model": "gpt-oss-120b", "precision": {"expert_weights": "mxfp4"}},
        [],
        2 * 8 * 64 * 2 * (18 + 18 * 128 / (1024 + 128)),
    ),
]


@pytest.mark.parametrize(("base", "settings", "each"), KV)
def test_bytes_of_a_token_in_the_cache(base: dict[str, Any], settings: list[str], each: float) -> None:
    assert law(base, *settings).kv_bytes_per_token == pytest.approx(each)


def test_weights_are_the_models_parameters() -> None:
    count = parameters.count(scenario(LLAMA).model).total
    assert law(LLAMA).weights_bytes_per_gpu == pytest.approx(2 * count, rel=0.01)
    mixed = scenario(MIXTRAL, "precision.compute=fp8")
    whole = 8 * law(MIXTRAL, "precision.compute=fp8").weights_bytes_per_gpu
    assert whole == pytest.approx(parameters.count(mixed.model).total, rel=0.03)
    gpt = {**LLAMA, "model": "gpt-oss-120b", "precision": {"expert_weights": "mxfp4"}}
    assert 60e9 < law(gpt).weights_bytes_per_gpu < 68e9  # the checkpoint's 63 GB


def test_the_cache_has_what_is_left() -> None:
    loaded, found = scenario(LLAMA), law(LLAMA)
    parts = found.memory_parts
    assert sum(parts.values()) == pytest.approx(0.9 * loaded.cluster.gpu.memory, rel=1e-6)
    assert found.kv_capacity_tokens == int(parts["kv_cache"] / found.kv_bytes_per_token + 0.5)
    assert law(LLAMA, "engine.kv_cache_fraction=0.5").kv_capacity_tokens < found.kv_capacity_tokens
    assert law({**LLAMA, "model": "llama-3.1-70b"}).kv_capacity_tokens == 0


def test_a_cache_moves_over_the_nics() -> None:
    apart = {
        **{key: value for key, value in LLAMA.items() if key != "instance"},
        "cluster": {"gpu": "h100-sxm", "gpus": 16},
        "disaggregated": {"prefill": {"gpus": 8, "tensor": 8}, "decode": {"gpus": 8, "tensor": 8}},
    }
    found = law(apart)
    one, ten = found.kv_transfer_seconds(1000.0), found.kv_transfer_seconds(10000.0)
    wire = 10000 * 131072 / 8 / 50e9
    assert wire < float(ten) < 1.6 * wire
    assert float(one) < float(ten) < 10 * float(one) + 1e-9


def test_a_stack_answers_for_its_releases_and_scales_kernels_alone() -> None:
    assert nearest("sglang 0.5.9") == "sglang 0.5.9"
    assert nearest("TensorRT-LLM 9.9") == "trtllm"
    assert nearest("SGLang 0.5.9") == "sglang 0.5.9"
    assert nearest("auto") == "kernels-alone"
    assert time_factor("auto") == 1.0
    assert "no calibration of its own" in stack_note("vllm 99")
    assert "none named" in stack_note("auto")
    assert 0.0 < band("sglang 0.5.9", None, "output_tokens_per_second") < band("auto", None, "output_tokens_per_second")
    assert band("auto", None, "time_to_first_token") > band("auto", None, "time_per_output_token")
    found = law(LLAMA)
    work = batch(decode=16.0)
    plain, slow = found.parts(work), found.with_factor(2.0).parts(work)
    assert slow["dense"][0] == pytest.approx(2 * plain["dense"][0])
    assert slow["host"][0] == pytest.approx(plain["host"][0])
