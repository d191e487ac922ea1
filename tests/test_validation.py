"""Every kind of case end to end; numbers by hand, with coefficients of the test's own where laws are fitted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim
from moesim.errors import UserError
from moesim.network.demand import Choices, balanced_demand
from moesim.validation import cases
from moesim.validation.network_kinds import forced_demand, uneven_demand
from moesim.validation.ops import RoutingOp
from moesim.validation.predict import Prediction, Refusal, predict
from moesim.validation.run import validate
from moesim.validation.words import collective_name, gpu_name

OWN = """
network-nccl-domain: {eta: 0.5, eta_small: 0.0, root: 0.0, base: 1.0e-6, hop: 0.0, all_to_all_base: 2.0}
network-hybrid-ep: {alpha: 10.0e-6, alpha_doubling: 0.0, eta_up: 1.0, eta_out: 1.0}
network-common: {latency_factor: {hopper: 1.0}}
kernel-gemm:
  coefficients:
    h100-sxm: {bf16: {compute: 0.5, memory: 0.5, base: 10.0e-6, loop: 0.0, loop_power: 1.0, fill: 0.0}}
kernel-experts:
  coefficients:
    h100-sxm:
      bf16: {compute: 0.5, memory: 0.5, base: 10.0e-6, hidden_bytes: 0.0, row: 1.0e-6, token: 0.0, expert: 0.0,
             inter_bytes: 0.0, inter_memory: 1.0e+9}
kernel-attention:
  coefficients:
    h100-sxm: {bf16: {forward: 0.5, backward: 0.25, memory: 1.0, base: 10.0e-6, tile: 0.0, backward_bytes: 1.0}}
kernel-passes:
  coefficients:
    h100-sxm: {bf16: {copy: {base: 10.0e-6, memory: 0.5}}}
"""
PAIR = {"gpu": "h100-sxm", "ranks": 8, "ranks_per_domain": 8, "bytes": 8 << 20, "library": "nccl"}
EXCHANGE = {
    "gpu": "h100-sxm", "ranks": 16, "ranks_per_domain": 8, "nic": "400 Gb/s", "tokens": 1000, "hidden": 1000,
    "top_k": 1, "experts": 16, "dispatch": "bf16", "combine": "bf16", "library": "hybrid-ep",
}  # fmt: skip
STEP = {
    "model": "gpt-oss-120b",
    "cluster": {"gpu": "h100-sxm", "gpus": 64},
    "parallelism": {"pipeline": 4, "expert": 8},
    "workload": {"kind": "training", "sequence_length": 4096, "global_batch": 1280},
    "dispatcher": {"kind": "nccl-all-to-all"},
    "recompute": ["layernorm", "moe_act"],
    "stack": "megatron-bridge-26.02",
}


def case(kind: str, op: dict[str, Any], **measured: Any) -> cases.Case:
    return cases.one({"id": "x", "kind": kind, "op": op, "measured": measured or {"time": 1.0}}, "here")


def said(kind: str, op: dict[str, Any], calibration: Path | None = None, **measured: Any) -> dict[str, Prediction]:
    found = predict(case(kind, op, **measured), calibration=str(calibration) if calibration else None)
    assert not isinstance(found, Refusal), found
    return found


def reason(kind: str, op: dict[str, Any], **measured: Any) -> str:
    found = predict(case(kind, op, **measured))
    assert isinstance(found, Refusal)
    return found.reason


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(OWN, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("collective", "microseconds", "bus"),
    [
        # 8 MiB x 7/8 over half of 450 GB/s is 32.62 us; the start is 2 us, of rings 1 us
        ("all-to-all", 2 + 32.622, 7 / 8),
        ("all-gather", 1 + 32.622, 7 / 8),
        ("ReduceScatter", 1 + 32.622, 7 / 8),
    ],
)
def test_collectives_by_hand(own: Path, collective: str, microseconds: float, bus: float) -> None:
    found = said("collective", {**PAIR, "collective": collective}, own)
    assert found["time"].value == pytest.approx(microseconds * 1e-6, rel=1e-4)
    assert found["algorithm_bandwidth"].value == pytest.approx(PAIR["bytes"] / found["time"].value)
    assert found["bus_bandwidth"].value == pytest.approx(PAIR["bytes"] * bus / found["time"].value)
    assert found["bus_bandwidth"].low < found["bus_bandwidth"].value < found["bus_bandwidth"].high


def test_all_to_all_against_the_published_example() -> None:
    """75.7 us, 16 MiB on 8 H100; the all-gather's 68 us are of 16 MiB gathered."""
    op = {**PAIR, "bytes": 16777216}
    assert said("all_to_all", op)["time"].value == pytest.approx(75.7e-6, rel=0.25)
    assert said("collective", {**op, "collective": "all-gather"})["time"].value == pytest.approx(68e-6, rel=0.25)


def test_an_unequal_all_to_all_is_as_slow_as_its_busiest_rank(own: Path) -> None:
    even, uneven = (said("all_to_all", {**PAIR, "imbalance": each}, own)["time"] for each in (1.0, 3.0))
    assert uneven.value - 2e-6 == pytest.approx(3 * (even.value - 2e-6))
    assert any("3 times the mean" in note for note in uneven.notes)


def test_a_serving_frameworks_own_all_reduce() -> None:
    """A small one is quicker than the library's; a framework without a law is told so."""
    op = {**PAIR, "bytes": 4096, "collective": "all-reduce"}
    assert said("collective", {**op, "library": "sglang"})["time"].value < said("collective", op)["time"].value
    notes = said("collective", {**op, "library": "hccl"})["time"].notes
    assert "library hccl: no calibration of its own for all-reduce, answered by nccl's" in notes


def test_dispatch_by_hand(own: Path) -> None:
    """1,000 tokens of 2,000 bytes reach one of two nodes each: half of them cross a 50 GB/s interface, 20 us."""
    found = said("dispatch_combine", EXCHANGE, own, dispatch_time=1.0, combine_time=1.0)
    assert found["dispatch_time"].value == pytest.approx(10e-6 + 1000 * 2000 / 2 / 50e9, rel=1e-6)
    assert found["combine_time"].value == pytest.approx(10e-6 + 1000 * 2004 / 2 / 50e9, rel=1e-6)
    assert found["time"].value == pytest.approx(found["dispatch_time"].value + found["combine_time"].value)
    far = said("dispatch_combine", {**EXCHANGE, "nic": "100 Gb/s"}, own)["dispatch_time"].value
    assert far == pytest.approx(10e-6 + 80e-6, rel=1e-6)


def test_groups_limit_the_nodes_that_a_token_reaches(own: Path) -> None:
    """Of 2 nodes and 2 groups, a token of one group goes to one node: half of them away; of both groups, to both."""
    op = {**EXCHANGE, "top_k": 4}
    one = said("dispatch_combine", {**op, "groups": {"count": 2, "top": 1}}, own)["dispatch_time"].value
    assert one == pytest.approx(10e-6 + 1000 * 2000 / 2 / 50e9, rel=1e-6)
    free = said("dispatch_combine", op, own)["dispatch_time"].value
    hit = 2 * (1 - math.comb(8, 4) / math.comb(16, 4)) / 2
    assert free == pytest.approx(10e-6 + 1000 * 2000 * hit / 50e9, rel=1e-6)
    assert "do not hold" in reason("dispatch_combine", {**op, "groups": {"count": 16, "top": 2}})
    assert said("dispatch_combine", {**op, "groups": 2, "top_groups": 1}, own)["dispatch_time"].value == one


def test_forced_balance_reaches_as_many_ranks_as_it_can() -> None:
    choices = Choices(64, 8)
    few, many = forced_demand(choices, 4, 4, 100.0), forced_demand(choices, 16, 8, 100.0)
    assert few.rank_tokens.sum(axis=1).tolist() == pytest.approx([400.0] * 4)
    assert many.rank_tokens.sum(axis=1).tolist() == pytest.approx([800.0] * 16)
    assert many.domain_tokens.tolist() == [[100.0, 100.0]] * 16
    assert many.copies.sum(axis=1).tolist() == pytest.approx([800.0] * 16)


def test_an_uneven_demand_has_its_busiest_rank_and_the_same_tokens() -> None:
    even = balanced_demand(Choices(64, 2), 8, 4, 100.0)
    uneven = uneven_demand(even, 3.0)
    received = uneven.copies.sum(axis=0)
    assert received.max() / received.mean() == pytest.approx(3.0)
    assert uneven.copies.sum() == pytest.approx(even.copies.sum())
    assert (uneven.rank_tokens <= 100.0).all()
    assert (uneven.domain_tokens <= 100.0).all()


def test_a_rack_is_asked_with_forced_balance_unless_told_otherwise() -> None:
    op = {**EXCHANGE, "gpu": "GB200", "ranks_per_domain": 72, "top_k": 8, "library": "NVLinkOneSided"}
    op |= {"tokens": 8192, "hidden": 7168, "experts": 256}
    unsaid, forced, free = (
        said("dispatch_combine", {**op, **load})["dispatch_time"]
        for load in ({}, {"load": "balanced"}, {"load": "uniform"})
    )
    assert unsaid.value == forced.value > free.value
    assert any("forced balance" in note for note in unsaid.notes)
    uneven = said("dispatch_combine", {**op, "load": "power_law_1.2"})["dispatch_time"]
    assert uneven.value > free.value
    assert any(note.startswith("uneven load") for note in uneven.notes)


def test_two_sided_kernels_prepare() -> None:
    op = {**EXCHANGE, "gpu": "gb200-nvl72", "ranks_per_domain": 72, "library": "NVLinkTwoSided"}
    found = said("dispatch_combine", op, prepare_time=1.0)
    assert 5e-6 < found["prepare_time"].value < found["dispatch_time"].value
    assert "prepare_time" not in said("dispatch_combine", {**op, "library": "one-sided-nvl"})


@pytest.mark.parametrize(
    "library", ["DeepEP V2", "deepep", "uccl-ep", "pplx", "rccl", "TRTLLM", "hybrid_ep", "something"]
)
def test_every_library_is_answered_by_some_law(library: str) -> None:
    found = said("dispatch_combine", {**EXCHANGE, "library": library, "ranks": 8})
    assert 0 < found["dispatch_time"].low < found["dispatch_time"].value < found["dispatch_time"].high


def test_what_cannot_run_has_its_reason() -> None:
    assert "one NVLink domain" in reason("dispatch_combine", {**EXCHANGE, "library": "one-sided-nvl"})
    assert "nothing to exchange" in reason("dispatch_combine", {**EXCHANGE, "ranks": 1})
    assert "moves nothing" in reason("all_to_all", {**PAIR, "ranks": 1})
    assert "at most 4096" in reason("all_to_all", {**PAIR, "ranks": 8192})
    assert "2 nodes of 4 ranks are not 16 ranks" in reason(
        "dispatch_combine", {**EXCHANGE, "ranks_per_domain": 4, "nodes": 2}
    )
    assert "top_k 17 of only 16" in reason("dispatch_combine", {**EXCHANGE, "top_k": 17})
    assert "unknown collective" in reason("collective", {**PAIR, "collective": "broadcast"})
    assert "scenario: is required" in reason("serving", {}, time_to_first_token=0.1)


def test_nodes_instead_of_ranks_of_a_domain(own: Path) -> None:
    op = {key: value for key, value in EXCHANGE.items() if key != "ranks_per_domain"}
    assert said("dispatch_combine", {**op, "nodes": 2}, own) == said("dispatch_combine", EXCHANGE, own)


def test_a_gemm_by_hand(own: Path) -> None:
    """At half of 989 TFLOP/s 277.9 us, at half of 3.35 TB/s 60.1 us: together 284.3 us, and 10 us before."""
    found = said("gemm", {"gpu": "H100", "m": 4096, "n": 4096, "k": 4096, "dtype": "bfloat16"}, own)
    work, moved = 2 * 4096**3 / 494.5e12, 6 * 4096**2 / 1.675e12
    assert found["time"].value == pytest.approx(10e-6 + math.hypot(work, moved), rel=1e-9)
    assert found["time"].value == pytest.approx(294.3e-6, rel=1e-3)
    assert found["flops_per_second"].value == pytest.approx(2 * 4096**3 / found["time"].value)


def test_an_expert_layer_by_hand(own: Path) -> None:
    """8 tokens, one for each of 8 experts: each reads 6 MiB of weights; a row takes 1 us more."""
    op = {"gpu": "h100-sxm", "tokens": 8, "hidden": 1024, "inter": 1024, "top_k": 1, "experts": 8, "dtype": "bf16"}
    row, weights = 6 * 1024**2 / 494.5e12, 6 * 1024**2 / 1.675e12
    assert said("expert_gemm", op, own)["time"].value == pytest.approx(18e-6 + 8 * math.hypot(row, weights), rel=1e-9)
    spread = said("expert_gemm", {**op, "expert_parallel": 4, "expert_tensor": 2}, own)["time"].value
    assert spread == pytest.approx(12e-6 + 2 * math.hypot(row, weights) / 2, rel=1e-9)
    listed = said("expert_gemm", {**op, "rows": "[4, 0]"}, own)["time"].value
    assert listed == pytest.approx(14e-6 + math.hypot(4 * row, weights), rel=1e-9)
    assert "does not split" in reason("expert_gemm", {**op, "expert_tensor": 3})
    assert "cannot be spread" in reason("expert_gemm", {**op, "expert_parallel": 16})


def test_an_uneven_load_is_slower() -> None:
    op = {"gpu": "h100-sxm", "tokens": 16384, "hidden": 7168, "inter": 2048, "top_k": 8, "experts": 256}
    op |= {"expert_parallel": 32, "dtype": "fp8-block"}
    even, uneven = (said("expert_gemm", {**op, "load": load})["time"].value for load in ("balanced", "power_law_1.01"))
    assert 1.15 < uneven / even < 3.0


def test_attention_by_hand(own: Path) -> None:
    """Without a mask 4,096 x 4,096 pairs of 32 heads, 2 (128 + 128) a pair, at half of the peak; half of it causal."""
    op = {"gpu": "h100-sxm", "tokens": 4096, "length": 4096, "heads": 32, "head_dim": 128, "dtype": "bf16"}
    work, moved = 4096**2 * 32 * 512 / 494.5e12, 4 * 4096 * 32 * 128 * 2 / 3.35e12
    full = said("attention", {**op, "causal": False}, own)["time"].value
    assert full == pytest.approx(10e-6 + math.hypot(work, moved), rel=1e-6)
    assert said("attention", op, own)["time"].value == pytest.approx(10e-6 + math.hypot(work / 2, moved), rel=1e-3)
    back = said("attention", {**op, "causal": False, "direction": "bwd"}, own)["time"].value
    assert back == pytest.approx(10e-6 + math.hypot(work * 2.5 * 2, moved), rel=1e-3)
    assert "direction" in reason("attention", {**op, "direction": "sideways"})


def test_a_pass_over_memory_by_hand(own: Path) -> None:
    """1 Mi values of 2 bytes read and written at half of 3.35 TB/s, and 10 us before."""
    found = said("memory_bound", {"gpu": "h100-sxm", "what": "copy", "elements": 1 << 20, "dtype": "bf16"}, own)
    assert found["time"].value == pytest.approx(10e-6 + 4 * (1 << 20) / 1.675e12, rel=1e-9)
    assert "memory-bound" in reason("memory_bound", {"gpu": "h100-sxm", "what": "dance", "elements": 1})


def test_a_format_that_a_gpu_lacks_is_told() -> None:
    assert "nvfp4" in reason("gemm", {"gpu": "h100-sxm", "m": 1, "n": 1, "k": 1, "dtype": "nvfp4"})
    assert "number format" in reason("gemm", {"gpu": "h100-sxm", "m": 1, "n": 1, "k": 1, "dtype": "posit8"})


def test_a_layer_is_its_parts(own: Path) -> None:
    op = {**EXCHANGE, "inter": 512}
    found = said("moe_layer", op, own, dispatch_time=1.0, expert_time=1.0)
    parts = [found[name].value for name in ("dispatch_time", "expert_time", "combine_time")]
    assert found["time"].value == pytest.approx(sum(parts))
    assert found["dispatch_time"] == said("dispatch_combine", EXCHANGE, own)["dispatch_time"]
    # 16 ranks, one expert each: its 1,000 rows, presented with the 1,000 tokens that come to it
    row, weights = 6 * 1000 * 512 / 494.5e12, 6 * 1000 * 512 / 1.675e12
    assert found["expert_time"].value == pytest.approx(10e-6 + 1e-3 + math.hypot(1000 * row, weights), rel=1e-6)
    assert "16 experts cannot be spread over 32 ranks" in reason("moe_layer", {**op, "ranks": 32})
    alone = said("moe_layer", {**op, "ranks": 1}, own)
    assert set(alone) == {"expert_time", "time"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100-sxm", "h100-sxm"), ("H100", "h100-sxm"), ("H100 SXM", "h100-sxm"), ("h100_sxm", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("H100-SXM5-80GB", "h100-sxm"), ("H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80g"), ("a100_pcie", "a100-pcie-80g"), ("GB200", "gb200-nvl72"),
        ("NVIDIA GB300 NVL72", "gb300-nvl72"), ("NVIDIA H200", "h200-sxm"), ("B300", "b300-sxm"), ("l40s", "l40s"),
        ("NVIDIA B200", "b200-sxm"), ("H20", "h20-sxm"), ("H800", "h800-sxm"), ("AMD Instinct MI300X", "mi300x"),
        ("RTX PRO 6000", "rtx-pro-6000-server"), ("rtx_pro_6000_server", "rtx-pro-6000-server"), ("TPU v5e", "tpu-v5e"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)  # fmt: skip
def test_gpus_by_other_names(name: str, found: str) -> None:
    assert gpu_name(name) == found


@pytest.mark.parametrize("name", ["H300", "A100-SXM4-40GB", "V100", "gpu", "", "MI250", "H100 NVL"])
def test_another_gpu_is_not_taken_for_the_nearest(name: str) -> None:
    told = reason("all_to_all", {**PAIR, "gpu": name or "?"})
    assert "unknown gpu" in told
    assert name != "H300" or "h200-sxm" in told


def test_a_changed_gpu_is_its_own(own: Path) -> None:
    fast = {"base": "H100", "scale_up_bandwidth": "900 GB/s"}
    twice = said("all_to_all", {**PAIR, "gpu": fast}, own)["time"].value
    assert twice - 2e-6 == pytest.approx((said("all_to_all", PAIR, own)["time"].value - 2e-6) / 2)
    assert "op.gpu: 1 problem" in reason("all_to_all", {**PAIR, "gpu": {"base": "h100-sxm", "bf61": 1}})


def test_collectives_by_other_names() -> None:
    names = {
        "all_gather": "all-gather",
        "AllReduce": "all-reduce",
        "alltoall": "all-to-all",
        "send_recv": "point-to-point",
    }
    assert {name: collective_name(name) for name in names} == names


def test_routing_by_hand() -> None:
    """Every expert chosen by every token: all alike, at half capacity half is dropped, every rank is reached."""
    op = {"profile": "uniform", "experts": 8, "top_k": 8, "expert_parallel": 4, "tokens": 64, "layer": 0}
    found = said("routing", op, **{"dropped_token_fraction": {0.5: 0.5, 1.0: 0.0}})
    assert found["rank_load_max_over_mean"].value == pytest.approx(1.0)
    assert found["expert_load_max_over_mean"].value == pytest.approx(1.0)
    assert found["distinct_destination_ranks"].value == pytest.approx(4.0)
    assert found["idle_expert_fraction"].value == 0.0
    assert found["dropped_token_fraction[0.5]"].value == pytest.approx(0.5)
    assert found["dropped_token_fraction[1.0]"].value == pytest.approx(0.0)


def test_routing_of_one_token_by_hand() -> None:
    """One token of top-1 loads one of 4 experts: busiest over mean 4, three in four idle, one rank reached."""
    op = {"profile": "uniform", "experts": 4, "top_k": 1, "expert_parallel": 2, "tokens": 1, "layer": 0}
    found = said("routing", op)
    assert found["expert_load_max_over_mean"].value == pytest.approx(4.0)
    assert found["rank_load_max_over_mean"].value == pytest.approx(2.0)
    assert found["idle_expert_fraction"].value == pytest.approx(0.75)
    assert found["distinct_destination_ranks"].value == pytest.approx(1.0)


def test_routing_of_a_fitted_profile() -> None:
    """More sequences are more even; the range holds single batches; an unknown layer or profile is told."""
    op = {"profile": "gpt-oss-20b-like", "layer": 12, "expert_parallel": 8}
    few, many = (said("routing", {**op, "sequences": each})["rank_load_max_over_mean"] for each in (1, 16))
    assert few.value > many.value > 1.0
    assert few.low < few.value < few.high
    assert few.basis == "fitted"
    assert "not 99" in reason("routing", {**op, "layer": 99})
    assert "unknown profile" in reason("routing", {**op, "profile": "no-such"})
    assert "op.experts and op.top_k" in reason("routing", {"profile": "uniform"})
    assert (
        said("routing", {"profile": "mixtral-like", "model": "mixtral-8x7b", "tokens": 512})["balancedness"].value < 1
    )


def test_a_training_step_is_the_roads() -> None:
    """5,993 tokens/s/GPU on 64 H100 (Megatron-Bridge 26.02)."""
    step = cases.one({"id": "s", "kind": "train_step", "scenario": STEP, "measured": {"step_time": 1}}, "here")
    found = predict(step)
    assert not isinstance(found, Refusal)
    summary = moesim.estimate(moesim.load(STEP), even_if_infeasible=True).summary
    assert found["step_time"].value == summary["step_time"].value
    assert found["tokens_per_second_per_gpu"].value == pytest.approx(5993, rel=0.12)
    assert any("software stack" in note for note in found["step_time"].notes)
    simulated = predict(step, simulate=True)
    assert not isinstance(simulated, Refusal)
    assert simulated["step_time"].value == pytest.approx(found["step_time"].value, rel=0.2)
    assert simulated["step_time"].value != found["step_time"].value


def test_a_training_step_that_is_wrong_has_its_problems() -> None:
    wrong = {**STEP, "cluster": {"gpu": "H100", "gpus": 60}, "stack": "megatron-bridge-99", "modle": 1}
    told = predict(
        cases.one({"id": "s", "kind": "train_step", "scenario": wrong, "measured": {"step_time": 1}}, "here")
    )
    assert isinstance(told, Refusal)
    assert "modle" in told.reason


def test_a_stack_without_a_calibration_is_told() -> None:
    other = {**STEP, "stack": "megatron-bridge-99.01", "cluster": {"gpu": "NVIDIA H100 80GB HBM3", "gpus": 64}}
    found = predict(
        cases.one({"id": "s", "kind": "train_step", "scenario": other, "measured": {"step_time": 1}}, "here")
    )
    assert not isinstance(found, Refusal)
    assert any("no calibration of its own" in note for note in found["step_time"].notes)


def test_a_metric_that_is_not_predicted_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    item = {"id": "a", "kind": "all_to_all", "op": PAIR, "measured": {"time": 5e-5, "tim": 1, "loss": 2.0}}
    path.write_text("- " + json.dumps(item) + "\n", encoding="utf-8")
    found = validate([path])
    assert [(row.metric, row.predicted is None) for row in found.cases] == [
        ("time", False),
        ("tim", True),
        ("loss", True),
    ]
    assert "tim is not predicted for kind all_to_all; nearest: time" in found.cases[1].reason
    assert (found.by_kind["all_to_all"]["n"], found.by_kind["all_to_all"]["unpredicted"]) == (1, 2)


def test_the_json_is_as_promised_and_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    items = [
        {"id": "a", "kind": "all_to_all", "op": PAIR, "measured": {"time": 5e-5}},
        {
            "id": "b",
            "kind": "dispatch_combine",
            "op": EXCHANGE,
            "measured": {"dispatch_time": 5e-5, "combine_time": 6e-5},
        },
        {
            "id": "c",
            "kind": "routing",
            "op": {"profile": "gpt-oss-like", "layer": 3},
            "measured": {"balancedness": 0.5},
        },
        {"id": "d", "kind": "serving", "scenario": {}, "measured": {"time_to_first_token": 0.1}},
    ]
    path.write_text(json.dumps(items), encoding="utf-8")
    once, again = (json.dumps(validate(path).as_dict(), allow_nan=False) for _ in range(2))
    assert once == again
    data = json.loads(once)
    for row in data["cases"]:
        assert {"id", "kind", "metric", "measured", "predicted", "error"} <= set(row)
    for stats in data["by_kind"].values():
        assert {"n", "median_ape", "mean_ape", "p90_ape", "bias", "rank_correlation"} <= set(stats)
    a, *_, d = data["cases"]
    assert a["error"] == pytest.approx(a["predicted"] / 5e-5 - 1)
    assert a["low"] < a["predicted"] < a["high"]
    assert a["within_range"] == (a["low"] <= 5e-5 <= a["high"])
    assert (d["predicted"], d["error"]) == (None, None)
    assert "workload: is required" in d["reason"]
    assert data["unpredicted"] == 1
    assert list(data["by_gpu"]) == ["h100-sxm"]
    assert set(data["by_library"]) == {"auto", "hybrid-ep", "nccl"}
    assert data["coverage"] == pytest.approx(np.mean([row["within_range"] for row in data["cases"][:-1]]))


def test_a_calibration_of_ones_own_goes_before_the_catalog(tmp_path: Path, own: Path) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(json.dumps([{"id": "a", "kind": "all_to_all", "op": PAIR, "measured": {"latency": "34.6 us"}}]))
    (row,) = validate([path], calibration=own).cases
    assert (row.metric, row.predicted) == ("latency", pytest.approx(34.622e-6, rel=1e-4))
    assert abs(row.error) < 1e-3
    assert validate([path]).cases[0].predicted != row.predicted


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(
        json.dumps([{"id": "a", "kind": "all_to_all", "op": PAIR, "measured": {"time": 1}}]), encoding="utf-8"
    )
    heard: list[tuple[str, float]] = []
    validate([path], progress=lambda what, share: heard.append((what, share)))
    assert heard == [("validating", 0.0), ("validating", 1.0)]


EXPERTS = {"gpu": "h100-sxm", "tokens": 4096, "hidden": 2048, "inter": 768, "top_k": 8, "experts": 128, "dtype": "bf16"}


@pytest.mark.parametrize("key", ["library", "stack", "software", "release", "kernel"])
def test_any_kind_may_tell_what_ran(key: str) -> None:
    ops = {
        "gemm": {"gpu": "h100-sxm", "m": 64, "n": 64, "k": 64},
        "grouped_gemm": {"gpu": "h100-sxm", "groups": 4, "m": 64, "n": 64, "k": 64},
        "expert_gemm": EXPERTS,
        "attention": {"gpu": "h100-sxm", "tokens": 4096, "length": 4096, "heads": 32},
        "memory_bound": {"gpu": "h100-sxm", "what": "copy", "elements": 1000},
        "launch": {"gpu": "h100-sxm"},
        "collective": {**PAIR, "collective": "all-gather"},
        "dispatch_combine": {**EXCHANGE, "ranks": 8},
    }
    for kind, op in ops.items():
        found = next(iter(said(kind, {**op, key: "handmade 7.7"}).values()))
        assert any("handmade" in note for note in found.notes), kind
        assert found.basis == "assumed", kind
    assert isinstance(cases.one({"id": "a", "kind": "routing", "op": {"profile": "uniform", key: "x"},
                                 "measured": {"rank_load_max_over_mean": 1}}, "here").op, RoutingOp)  # fmt: skip


@pytest.mark.parametrize(
    "load", ["power_law", {"zipf": 0.6}, {"log_normal": 0.8}, "zipf_0.6", "deepseek-v3-like", "mixtral-like"]
)
def test_loads_by_other_laws(load: object) -> None:
    spread = said("expert_gemm", {**EXPERTS, "expert_parallel": 8, "load": load})["time"]
    assert spread.value > said("expert_gemm", {**EXPERTS, "expert_parallel": 8})["time"].value
    assert any(note.startswith("load") for note in spread.notes)
    moved = said("dispatch_combine", {**EXCHANGE, "load": load})["dispatch_time"]
    assert moved.value > said("dispatch_combine", EXCHANGE)["dispatch_time"].value
    assert any(note.startswith("load") for note in moved.notes)


def test_a_load_of_no_law_is_named() -> None:
    assert "not a law of a load" in reason("expert_gemm", {**EXPERTS, "load": {"zipff": 1}})
    assert "lumpy" in reason("expert_gemm", {**EXPERTS, "load": "lumpy"})


def test_what_passes_are_built_into() -> None:
    gpu, sizes = {"gpu": "h100-sxm"}, {"tokens": 4096, "hidden": 7168}
    whats = {
        "router": {**sizes, "experts": 256},
        "head": {**sizes, "vocabulary": 129280},
        "mtp": sizes,
        "optimizer": {"parameters": 10**9},
        "embedding": sizes,
        "launch": {},
    }
    times = {what: said("memory_bound", {**gpu, "what": what, **op})["time"].value for what, op in whats.items()}
    assert times["launch"] < times["embedding"] < times["mtp"] < times["head"]
    assert times["launch"] == said("launch", gpu)["time"].value
    assert "needs tokens, hidden, vocabulary" in reason("memory_bound", {**gpu, "what": "head"})
    assert "elements" in reason("memory_bound", {**gpu, "what": "copy"})


def test_heads_of_latent_attention_in_their_own_words() -> None:
    op = {"gpu": "h100-sxm", "tokens": 64, "length": 4096, "heads": 128, "sequences": 64}
    sizes = {"rank": 512, "nope": 128, "rope": 64, "value": 128}
    absorbed = said("attention", {**op, "latent": {**sizes, "absorbed": True}})["time"].value
    by_hand = {**op, "kv_heads": 1, "head_dim": 576, "value_dim": 512, "latent": True}
    assert absorbed == said("attention", by_hand)["time"].value
    assert absorbed < said("attention", {**op, "latent": sizes})["time"].value


def test_grouped_products_are_the_kernels() -> None:
    op = {"gpu": "h100-sxm", "n": 4096, "k": 7168, "dtype": "fp8-block"}
    listed = said("grouped_gemm", {**op, "rows": [512, 512]})["time"].value
    assert listed == said("grouped_gemm", {**op, "groups": 2, "m": 512})["time"].value
    assert said("grouped_gemm", {**op, "groups": 2, "m": 8192, "product": "wgrad"})["time"].value > listed
    assert "either rows" in reason("grouped_gemm", op)


def test_two_hop_kernels_on_other_links_are_assumed() -> None:
    op = {**EXCHANGE, "gpu": "mi300x", "ranks": 8, "ranks_per_domain": 8, "library": "deepep"}
    found = said("dispatch_combine", op)["dispatch_time"]
    assert found.basis == "assumed"
    assert any("xgmi" in note for note in found.notes)
    assert found.high > 1.4 * found.value


def test_rates_in_the_words_of_benchmarks() -> None:
    item = {"id": "a", "kind": "gemm", "op": {"gpu": "h100-sxm", "m": 8192, "n": 8192, "k": 8192}}
    assert cases.one({**item, "measured": {"tflops": 700}}, "here").measured == {"tflops": 7e14}
    bandwidth = {"id": "a", "kind": "all_to_all", "op": PAIR, "measured": {"busbw": 350}}
    assert cases.one(bandwidth, "here").measured == {"busbw": 3.5e11}
    assert cases.one({**bandwidth, "measured": {"busbw": "350 GB/s"}}, "here").measured == {"busbw": 3.5e11}
    assert predict(cases.one(bandwidth, "here"))["bus_bandwidth"].value > 1e10  # type: ignore[index]


def test_a_measurement_table_is_a_list_of_cases(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text(
        "kind,gpu,software,time,spread,m,n,k,dtype,direction,tokens,hidden,top_k,experts,ranks,library,other\n"
        "gemm,NVIDIA H100 80GB HBM3,trtllm 1.3.0rc20,2.0e-4,0.01,4096,4096,4096,bf16,,,,,,,,x\n"
        "dispatch_combine,h100-sxm,,1.0e-3,,,,,,combine,4096,7168,8,256,8,deepep,\n"
        "launch,h100-sxm,,4.0e-6,,,,,,,,,,,,,\n",
        encoding="utf-8",
    )
    found = validate([table])
    assert [(row.kind, row.metric, row.predicted is not None) for row in found.cases] == [
        ("gemm", "time", True),
        ("dispatch_combine", "combine_time", True),
        ("launch", "time", True),
    ]
    assert found.cases[0].id == "own.csv/row 1"
    assert found.cases[0].basis == "fitted"
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="column 'kind' is missing"):
        validate([table])
