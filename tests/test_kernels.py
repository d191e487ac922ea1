"""Kernel laws as functions: more work is never faster, every GPU answers or refuses clearly, spellings and ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import catalog
from moesim.costs.kernels import (
    attention_time,
    expert_rows,
    experts_time,
    gemm_efficiency,
    gemm_time,
    grouped_gemm_time,
    head_time,
    latent_heads,
    launch_time,
    memory_bound_time,
    mtp_time,
    optimizer_time,
    pass_bytes,
    router_time,
)
from moesim.errors import UnknownNameError, UserError
from moesim.specs.gpu import GpuSpec

FORMATS = ("bf16", "fp16", "fp8", "fp8-block", "mxfp8", "nvfp4", "mxfp4", "int8", "w8a16", "w4a16")
H100, B200 = catalog.load("gpus", "h100-sxm"), catalog.load("gpus", "b200-sxm")
size = st.integers(min_value=1, max_value=1 << 16)


def nobody(**changes: Any) -> GpuSpec:
    known = {"name": "nobodys", "bf16": 4e14, "memory": 8e10, "memory_bandwidth": 2e12, "power": 400.0}
    return GpuSpec.model_validate({**known, **changes})


@pytest.mark.parametrize("name", catalog.names("gpus"))
@pytest.mark.parametrize("dtype", FORMATS)
def test_every_gpu_answers_or_refuses_in_one_line(name: str, dtype: str) -> None:
    gpu = catalog.load("gpus", name)
    units = {"fp8": gpu.fp8, "fp8-block": gpu.fp8, "mxfp8": gpu.fp8, "nvfp4": gpu.fp4, "mxfp4": gpu.fp4}
    integers = gpu.fp8 or gpu.generation in ("ampere", "tpu")
    if not {**units, "int8": integers}.get(dtype, True):
        with pytest.raises(UserError, match=f"^{name} has no [^\n]*ask for bf16[^\n]*$"):
            gemm_time(gpu, 4096, 4096, 4096, dtype)
        return
    found = gemm_time(gpu, 4096, 4096, 4096, dtype)
    assert 2 * 4096**3 / (gpu.fp4 or gpu.fp8 or 2 * gpu.bf16) < found.seconds < 40 * 2 * 4096**3 / gpu.bf16
    assert 0 < found.band <= 1
    layer = experts_time(gpu, [64.0] * 8, 4096, 1536, dtype, 128)
    assert layer.seconds > 0
    assert attention_time(gpu, 4096, 4096, 32, 8, 128, 128, dtype=dtype).seconds > 0


@settings(max_examples=60, deadline=None)
@given(m=size, n=size, k=size, more=st.integers(1, 4096), at=st.sampled_from("mnk"), dtype=st.sampled_from(FORMATS))
def test_more_of_a_product_is_never_faster(m: int, n: int, k: int, more: int, at: str, dtype: str) -> None:
    sizes = {"m": m, "n": n, "k": k}
    less = gemm_time(B200, **sizes, dtype=dtype).seconds
    assert gemm_time(B200, **{**sizes, at: sizes[at] + more}, dtype=dtype).seconds >= less


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 5000), min_size=1, max_size=16),
    more=st.integers(1, 500),
    dtype=st.sampled_from(("bf16", "fp8", "fp8-block", "nvfp4")),
    kernel=st.sampled_from((None, "triton", "trtllm-gen")),
)
def test_more_rows_are_never_faster(rows: list[int], more: int, dtype: str, kernel: str | None) -> None:
    def seconds(counts: list[int], presented: int) -> float:
        return float(experts_time(B200, counts, 2048, 768, dtype, presented, kernel=kernel).seconds)

    assert seconds([rows[0] + more, *rows[1:]], 100) >= seconds(rows, 100)
    assert seconds([*rows, more], 100) >= seconds(rows, 100)
    assert seconds(rows, 100 + more) >= seconds(rows, 100)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 65536), more=st.integers(1, 65536), direction=st.sampled_from(("forward", "backward")))
def test_longer_sequences_are_never_faster(length: int, more: int, direction: Any) -> None:
    def seconds(queries: int, keys: int, causal: bool) -> float:
        return float(attention_time(H100, queries, keys, 32, 8, 128, 128, causal, direction, sequences=1).seconds)

    assert seconds(length + more, length + more, True) >= seconds(length, length, True)
    assert seconds(length, length, False) >= seconds(length, length, True)
    assert seconds(1, length + more, True) >= seconds(1, length, True)


def test_arrays_broadcast_and_equal_single_answers() -> None:
    m = np.array([1, 64, 4096])
    many = gemm_time(H100, m[:, None], [512, 8192], 4096, "fp8")
    assert many.seconds.shape == (3, 2)
    assert many.seconds[2, 1] == pytest.approx(gemm_time(H100, 4096, 8192, 4096, "fp8").seconds)
    rows = np.arange(24.0).reshape(2, 3, 4)
    layers = experts_time(H100, rows, 2048, 768, "bf16", 64)
    assert layers.seconds.shape == (2, 3)
    assert layers.seconds[1, 2] == pytest.approx(experts_time(H100, rows[1, 2], 2048, 768, "bf16", 64).seconds)
    both = attention_time(H100, [2048, 4096], [2048, 4096], 32, 8, 128, 128)
    assert both.seconds[1] == pytest.approx(attention_time(H100, 4096, 4096, 32, 8, 128, 128).seconds)


def test_a_gpu_never_measured_is_near_its_calibrated_twin() -> None:
    twin = nobody(bf16=H100.bf16, fp8=H100.fp8, memory_bandwidth=H100.memory_bandwidth, power=H100.power)
    twin = twin.model_copy(update={"generation": "ada"})
    m = 2 ** np.arange(0, 14)
    for dtype, apart in (("bf16", 0.25), ("fp8", 0.2), ("fp8-block", 0.45)):
        own, sheet = gemm_time(H100, m, 4096, 4096, dtype), gemm_time(twin, m, 4096, 4096, dtype)
        assert np.max(np.abs(np.log(own.seconds / sheet.seconds))) < apart
        assert sheet.basis == "datasheet"
        assert sheet.band > own.band
        assert "by its datasheet alone" in sheet.notes[0]


def test_what_is_less_known_says_so() -> None:
    assert gemm_time(H100, 4096, 4096, 4096, "bf16").notes == ()
    sister = gemm_time(catalog.load("gpus", "h200-sxm"), 4096, 4096, 4096, "bf16")
    assert sister.basis == "fitted"
    assert sister.band > gemm_time(H100, 4096, 4096, 4096, "bf16").band
    assert "coefficients of h100-sxm" in sister.notes
    small = gemm_time(catalog.load("gpus", "jetson-orin-agx-64g"), 4096, 4096, 4096, "bf16")
    assert (small.basis, small.notes[-1]) == ("assumed", "a GPU of another size")
    unpowered = gemm_time(nobody(power=None), 4096, 4096, 4096, "bf16")
    assert unpowered.basis == "assumed"
    assert "power is not stated" in unpowered.notes[-1]
    outside = gemm_time(H100, 10**6, 4096, 4096, "bf16")
    assert (outside.basis, outside.notes[-1]) == ("assumed", "outside the range of the fit: m")
    assert outside.band > gemm_time(H100, 4096, 4096, 4096, "bf16").band


def test_more_watts_a_teraflop_sustain_more_of_the_peak() -> None:
    shares = [gemm_efficiency(nobody(power=power), "bf16") for power in (100.0, 400.0, 1600.0)]
    assert shares == sorted(shares)
    assert len(set(shares)) == 3
    rule = catalog.calibration("kernel-gemm")["rule"]
    assert shares[1] == pytest.approx(rule["bf16"] * 1.0 ** rule["exponent"])
    assert gemm_efficiency(nobody(power=1e6), "bf16") == rule["limit"]
    assert 0.5 < gemm_efficiency(H100, "fp8-block", k=4096) < gemm_efficiency(H100, "fp8-block") < 0.7


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("bfloat16", "bf16"),
        ("torch.float16", "fp16"),
        ("FP8_BLOCK", "fp8-block"),
        ("int8_wo", "w8a16"),
        ("fp4", "nvfp4"),
    ],
)
def test_formats_are_read_in_other_spellings(spelled: str, name: str) -> None:
    assert gemm_time(B200, 64, 4096, 4096, spelled) == gemm_time(B200, 64, 4096, 4096, name)


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownNameError, match="number format 'fp7'"):
        gemm_time(H100, 1, 1, 1, "fp7")
    with pytest.raises(UserError, match="m: must be at least 1"):
        gemm_time(H100, 0, 1, 1, "bf16")
    with pytest.raises(UserError, match="k: must be at least 1"):
        gemm_time(H100, 1, 1, float("nan"), "bf16")
    with pytest.raises(UserError, match="free_share"):
        gemm_time(H100, 1, 1, 1, "bf16", free_share=0.0)
    with pytest.raises(UserError, match="rows"):
        experts_time(H100, [-1.0], 2048, 768, "bf16", 1)
    with pytest.raises(UserError, match="kv_heads"):
        attention_time(H100, 1, 1, 8, 16, 128, 128)
    with pytest.raises(UnknownNameError, match="direction"):
        attention_time(H100, 1, 1, 8, 8, 128, 128, direction="sideways")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="product"):
        grouped_gemm_time(H100, [1.0], 64, 64, "bf16", "hgrad")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="memory-bound pass"):
        memory_bound_time(H100, "juggle", 10)


def test_an_activation_that_arrives_converted_costs_less() -> None:
    whole = gemm_time(H100, 4096, 4096, 4096, "fp8-block").seconds
    alone = gemm_time(H100, 4096, 4096, 4096, "fp8-block", quantize=False).seconds
    assert alone < whole
    assert gemm_time(H100, 64, 64, 64, "bf16", quantize=False) == gemm_time(H100, 64, 64, 64, "bf16")


def test_taken_multiprocessors_slow_arithmetic_alone() -> None:
    big = [gemm_time(H100, 16384, 16384, 16384, "bf16", free_share=share).seconds for share in (1.0, 0.5)]
    assert big[1] / big[0] == pytest.approx(2.0, rel=0.02)
    thin = [gemm_time(H100, 1, 16384, 16384, "bf16", free_share=share).seconds for share in (1.0, 0.5)]
    assert thin[1] / thin[0] < 1.01


def test_weights_are_read_once_an_active_expert() -> None:
    def seconds(rows: list[float]) -> float:
        return float(experts_time(H100, rows, 7168, 2048, "bf16", 8).seconds)

    weights = 3 * 7168 * 2048 * 2 / H100.memory_bandwidth
    one = seconds([1.0, 1, 1, 1]) - seconds([1.0, 1, 1, 0])
    assert weights < one < 1.3 * weights
    assert seconds([4.0, 0, 0, 0]) < seconds([1.0, 1, 1, 1])
    assert seconds([0.5] * 4) < seconds([1.0] * 4)
    assert seconds([0.0] * 4) < 60e-6


def test_real_weights_sustain_no_more_than_dense_products() -> None:
    rows = [8192.0] * 4
    for gpu, dtype in ((H100, "bf16"), (H100, "fp8-block"), (B200, "fp8")):
        filled = experts_time(gpu, rows, 7168, 2048, dtype, 4096, real_weights=True).seconds
        assert filled >= experts_time(gpu, rows, 7168, 2048, dtype, 4096).seconds
    old = catalog.load("gpus", "a100-sxm-80g")
    assert (
        experts_time(old, rows, 7168, 2048, "bf16", 4096, real_weights=True).seconds
        < experts_time(old, rows, 7168, 2048, "bf16", 4096).seconds
    )


def test_kernel_families_are_read_from_kernel_names() -> None:
    def seconds(kernel: str | None) -> Any:
        return experts_time(B200, [64.0] * 8, 2048, 768, "bf16", 512, kernel=kernel, presented_rows=4096)

    assert seconds("sglang_fused_moe_triton").seconds == seconds("triton").seconds != seconds(None).seconds
    assert seconds("moe_torch_flow_cutlass") == seconds("grouped") == seconds(None)
    strange = seconds("handmade")
    assert strange.seconds == seconds(None).seconds
    assert "of no family known" in strange.notes[0]
    absent = experts_time(catalog.load("gpus", "l40s"), [64.0] * 8, 2048, 768, "bf16", 512, kernel="triton")
    assert absent.basis == "assumed"
    assert "no calibration of triton kernels for ada" in absent.notes[0]


def test_triton_runs_its_element_wise_part_over_all_presented_rows() -> None:
    def seconds(kernel: str, presented: int) -> float:
        return float(
            experts_time(H100, [64.0] * 8, 2048, 768, "bf16", 512, kernel=kernel, presented_rows=presented).seconds
        )

    assert seconds("triton", 4096) > seconds("triton", 512)
    assert seconds("grouped", 4096) == seconds("grouped", 512)


@pytest.mark.parametrize("load", ["balanced", "uniform", "power_law_1.01", "power_law_1.2", "power_law_0.6_eplb"])
@pytest.mark.parametrize(("tokens", "top_k", "experts", "ranks"), [(1, 8, 256, 32), (64, 2, 8, 4), (4096, 8, 256, 32)])
def test_rows_of_the_busiest_rank(load: str, tokens: int, top_k: int, experts: int, ranks: int) -> None:
    rows = expert_rows(load, tokens, top_k, experts, ranks)
    assert rows.shape[-1] == experts // ranks
    assert np.all(rows >= 0)
    assert np.all(rows.sum(axis=-1) >= tokens * top_k / ranks - 1e-6)
    if load != "uniform":
        assert np.all(rows <= tokens + 1e-6)
    assert np.array_equal(rows, expert_rows(load, tokens, top_k, experts, ranks))
    whole = expert_rows(load, tokens, top_k, experts, 1)
    assert whole.sum(axis=-1) == pytest.approx(tokens * top_k, abs=0.02 * tokens * top_k + 2)


def test_skew_of_the_power_law_is_the_recipes() -> None:
    """Busiest of 32 ranks over the mean, 4,096 tokens, 256 experts, top-8: 1.8, 2.6, 3.4 by exponent."""
    for name, low, high in (("power_law_0.6", 1.6, 2.0), ("power_law_1.01", 2.4, 3.0), ("power_law_1.2", 3.0, 3.8)):
        rows = expert_rows(name, 4096, 8, 256, 32, samples=200)
        assert low < rows.sum(axis=-1).mean() / 1024 < high
    dealt = expert_rows("power_law_1.01_eplb", 4096, 8, 256, 32, samples=50)
    assert dealt.sum(axis=-1).mean() / 1024 < 1.5


def test_balanced_rows_follow_the_strided_choice() -> None:
    assert expert_rows("balanced", 8, 8, 256, 32).tolist() == [[1, 0, 0, 0, 1, 0, 0, 0]]
    assert expert_rows("Balanced", 4096, 2, 8, 8).tolist() == [[1024.0]]
    with pytest.raises(UnknownNameError, match="load 'lumpy'"):
        expert_rows("lumpy", 8, 2, 8, 1)
    with pytest.raises(UserError, match="no expert layer"):
        expert_rows("balanced", 8, 9, 8, 1)


def test_absorbed_latent_attention_reads_less_and_computes_more() -> None:
    plain, absorbed = latent_heads(128, 128, 64, 128, 512, False), latent_heads(128, 128, 64, 128, 512, True)
    assert (plain.heads, plain.kv_heads, plain.head_dim, plain.value_dim) == (128, 128, 192, 128)
    assert (absorbed.kv_heads, absorbed.head_dim, absorbed.value_dim, absorbed.latent) == (1, 576, 512, True)

    def seconds(shape: Any, tokens: int, sequences: int) -> float:
        sizes = (shape.heads, shape.kv_heads, shape.head_dim, shape.value_dim)
        return float(attention_time(H100, tokens, 4096, *sizes, sequences=sequences, latent=shape.latent).seconds)

    assert seconds(absorbed, 64, 64) < 0.3 * seconds(plain, 64, 64)
    assert seconds(absorbed, 4096, 1) > 2.0 * seconds(plain, 4096, 1)


def test_fewer_key_heads_speed_decoding_alone() -> None:
    def seconds(kv_heads: int, tokens: int) -> float:
        return float(attention_time(H100, tokens, 8192, 64, kv_heads, 128, 128, sequences=8).seconds)

    assert seconds(8, 8) < 0.25 * seconds(64, 8)
    assert seconds(8, 8 * 8192) == pytest.approx(seconds(64, 8 * 8192), rel=0.05)


def test_memory_bound_passes_move_their_bytes() -> None:
    elements = 1 << 28
    for what in ("copy", "permute", "unpermute", "cast", "norm", "rotary", "activation", "embedding"):
        found = memory_bound_time(H100, what, elements)
        assert found.seconds > pass_bytes(what, "bf16") * elements / H100.memory_bandwidth
        assert memory_bound_time(H100, what, 2 * elements).seconds > 1.9 * found.seconds
    assert pass_bytes("copy", "fp32") == 8.0
    assert pass_bytes("cast", "fp8") == 3.0
    assert pass_bytes("unpermute", "bf16", top_k=2) == 3.0
    assert memory_bound_time(H100, "swiglu", 10**6) == memory_bound_time(H100, "activation", 10**6)
    assert memory_bound_time(catalog.load("gpus", "mi300x"), "copy", 10**6).basis == "assumed"


def test_permute_and_unpermute_of_the_traced_layer() -> None:
    """DeepSeek-V3's training layer on H800: 32,768 rows of 7,168; permuted in fp8 192 us, unpermuted 318 us."""
    gpu, rows = catalog.load("gpus", "h800-sxm"), 32768 * 7168
    assert memory_bound_time(gpu, "permute", rows, "fp8-block").seconds == pytest.approx(192e-6, rel=0.12)
    assert memory_bound_time(gpu, "unpermute", rows, top_k=1.0).seconds == pytest.approx(318e-6, rel=0.12)


def test_what_is_built_of_parts_costs_their_sum() -> None:
    router = router_time(H100, 4096, 7168, 256)
    parts = (
        gemm_time(H100, 4096, 256, 7168, "bf16").seconds + memory_bound_time(H100, "top-k", 4096 * 256, "fp32").seconds
    )
    assert router.seconds == pytest.approx(parts)
    assert head_time(H100, 4096, 7168, 129280).seconds > gemm_time(H100, 4096, 129280, 7168, "bf16").seconds
    assert mtp_time(H100, 4096, 7168).seconds > gemm_time(H100, 4096, 7168, 2 * 7168, "bf16").seconds
    adam = optimizer_time(H100, 1e9)
    assert 28e9 / H100.memory_bandwidth < adam.seconds < 2 * 28e9 / H100.memory_bandwidth
    assert optimizer_time(H100, 1e9, 14.0).seconds < adam.seconds
    assert 1e-6 < launch_time(H100).seconds < 2e-5


def test_wgrad_of_fp8_is_slower_and_bf16_is_not() -> None:
    rows = [8192.0] * 4
    forward, wgrad = (
        grouped_gemm_time(H100, rows, 4096, 7168, "fp8", product).seconds for product in ("forward", "wgrad")
    )
    assert 1.4 < wgrad / forward < 2.0
    forward, wgrad = (
        grouped_gemm_time(H100, rows, 4096, 7168, "bf16", product).seconds for product in ("forward", "wgrad")
    )
    assert 0.95 < wgrad / forward < 1.3


def test_a_release_that_nobody_fitted_is_told() -> None:
    def found(**how: Any) -> Any:
        return experts_time(H100, [64.0] * 8, 2048, 768, "bf16", 512, **how)

    own = found(release="TensorRT-LLM 1.3.0rc20")
    assert own == found() == found(release="1.3.0rc20") == found(kernel="moe_torch_flow_cutlass")
    older = found(release="trtllm 1.3.0rc10")
    factor = catalog.calibration("kernel-experts")["coefficients"]["hopper"]["bf16"]["releases"]["trtllm 1.3.0rc10"]
    assert older.seconds == pytest.approx(factor * own.seconds)
    assert (older.basis, older.band > own.band) == ("fitted", True)
    other = found(release="vllm 0.24.0")
    assert other.seconds == own.seconds
    assert (other.basis, other.band) == ("assumed", catalog.calibration("kernel-experts")["residual_releases"]["range"])
    assert other.notes == ("release vllm 0.24.0 has no calibration: trtllm 1.3.0rc20 answered",)
    assert found(kernel="vllm_flashinfer_cutlass").basis == found(kernel="deepepmoe").basis == "assumed"
    assert gemm_time(H100, 64, 64, 64, "bf16", kernel="handmade").basis == "assumed"


def test_the_fullest_expert_is_waited_for() -> None:
    rows = 4096.0
    for gpu, dtype in ((H100, "bf16"), (B200, "fp8-block")):
        level = experts_time(gpu, [rows] * 8, 2048, 768, dtype, 16384).seconds
        steep = experts_time(gpu, [4.5 * rows, *[0.5 * rows] * 7], 2048, 768, dtype, 16384).seconds
        fullest = catalog.calibration("kernel-experts")["coefficients"][gpu.generation][dtype]["fullest"]
        assert steep - level >= 3.5 * rows * fullest


def test_experts_that_do_not_divide_leave_places_idle() -> None:
    rows = expert_rows("balanced", 600, 8, 256, 6)
    assert rows.shape == (1, 43)
    assert rows.sum() == pytest.approx(43 * 600 * 8 / 256, rel=0.02)
    for load in ("uniform", "power_law_1.2", "power_law_1.01_eplb"):
        found = expert_rows(load, 600, 8, 256, 6)
        assert found.shape[-1] == 43
        assert np.all(found.sum(axis=-1) >= 800 - 1e-6)


@pytest.mark.parametrize(("spelled", "like"), [("fp8_static", "fp8"), ("w4a16_mxfp4", "w4a16"), ("w4afp8", "fp8")])
def test_formats_near_a_known_one_answer_with_a_note(spelled: str, like: str) -> None:
    found = gemm_time(H100, 4096, 4096, 4096, spelled)
    assert found.seconds == pytest.approx(gemm_time(H100, 4096, 4096, 4096, like).seconds, rel=0.15)
    assert found.basis == "assumed"
    assert found.notes
