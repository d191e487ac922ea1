"""The laws of isolated kernels by hand, with coefficients and GPUs of round numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim import catalog
from moesim.costs.kernels import attention, choice, experts, formats, gemm, passes, releases
from moesim.costs.kernels.choice import Choice, choose
from moesim.costs.kernels.experts import ExpertWork, experts_law
from moesim.costs.kernels.formats import Format, number_format
from moesim.errors import UserError
from moesim.specs.gpu import GpuSpec

H100, A100, B200 = (catalog.load("gpus", name) for name in ("h100-sxm", "a100-sxm-80g", "b200-sxm"))
NARROW = Format("narrow", 0.5, 0.25, True, "fp8", "fp8")
DENSE = {"base": 100.0, "fill": 4.0, "compute": 0.5, "memory": 0.25, "loop": 3.0, "loop_power": 0.5, "quantize": 0.125}
LAYER = {
    "base": 1000.0,
    "expert": 100.0,
    "row": 10.0,
    "token": 3.0,
    "compute": 0.5,
    "memory": 0.25,
    "inter_bytes": 3.0,
    "inter_memory": 0.5,
    "hidden_bytes": 2.0,
}


def nobody(**changes: Any) -> GpuSpec:
    known = {"name": "nobodys", "bf16": 4e14, "memory": 8e10, "memory_bandwidth": 2e12, "power": 400.0}
    return GpuSpec.model_validate({**known, **changes})


def test_a_dense_product() -> None:
    """2 x 3 x (4092 + 4) x 2 at half of 4096 FLOP/s; weights, x and result at a quarter of 1,023 B/s; a loop of 2."""
    m, n, k = np.array([2.0]), np.array([3.0]), np.array([4092.0])
    moved = 0.5 * 3 * 4092 + 0.25 * 2 * 4092 + 2 * 2 * 3
    norm = (12 * 2) ** 2 + (moved / (1023 * 0.25)) ** 2 + 9 * 4092 / 1024
    quantizing = (2 + 0.25) * 2 * 4092 / (1023 * 0.125)
    found = gemm.gemm_law(DENSE, m, n, k, (NARROW, 4096.0, 1023.0))
    assert found == pytest.approx(100 + norm**0.5 + quantizing, rel=1e-12)
    plain = gemm.gemm_law(DENSE, m, n, k, (replace(NARROW, quantized=False), 4096.0, 1023.0))
    assert plain == pytest.approx(100 + norm**0.5, rel=1e-12)


def test_dense_products_of_a_gpu() -> None:
    chosen = choose("kernel-gemm", H100, "fp8-block")
    sizes = (np.array([4096.0]), np.array([2048.0]), np.array([1024.0]))
    half = gemm.gemm_law(chosen.values, *sizes, (chosen.kind, 0.5 * H100.fp8, H100.memory_bandwidth))  # type: ignore[operator]
    assert gemm.gemm_time(H100, 4096, 2048, 1024, "fp8-block", free_share=0.5).seconds == pytest.approx(half[0])
    alone = gemm.gemm_time(H100, 4096, 2048, 1024, "fp8-block", quantize=False).seconds
    base = min(chosen.values["base"], choose("kernel-gemm", H100, "bf16").values["base"])
    bare = gemm.gemm_law(
        {**chosen.values, "base": base},
        *sizes,
        (replace(chosen.kind, quantized=False), H100.fp8, H100.memory_bandwidth),  # type: ignore[arg-type]
    )
    assert alone == pytest.approx(bare[0], rel=1e-12)
    endless = gemm.gemm_efficiency(H100, "bf16")
    values = choose("kernel-gemm", H100, "bf16").values
    assert endless == values["compute"]
    assert gemm.gemm_efficiency(H100, "bf16", k=1024.0) == pytest.approx(endless * 1024 / (1024 + values["fill"]))


@pytest.mark.parametrize("value", [0.5, 0, -1, float("nan"), float("inf"), [1, 0.99]])
def test_sizes_below_1_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="n: must be at least 1"):
        gemm.positive(m=1, n=value)
    assert gemm.positive(m=1)[0] == 1.0


@pytest.mark.parametrize(("free", "legal"), [(0.0, False), (-0.5, False), (1e-9, True), (1.0, True), (1.01, False)])
def test_a_share_of_multiprocessors(free: float, legal: bool) -> None:
    if legal:
        assert gemm.share(free) == free
    else:
        with pytest.raises(UserError, match="free_share"):
            gemm.share(free)


def test_an_expert_layer() -> None:
    """Three experts, rows 4, half a row and none; an expert's weights take 24 s, a row's arithmetic 6 s."""
    rows, one = np.array([[4.0, 0.5, 0.0]]), np.array([1.0])
    work = ExpertWork(rows, 4 * one, 2 * one, 7 * one)
    found = experts_law(LAYER, work, (NARROW, 16.0, 2.0))
    an_expert, a_row = 24 * 0.5 / (2 * 0.25), 2 * 24 / (16 * 0.5)
    assert (an_expert, a_row) == (24.0, 6.0)
    products = np.hypot(24, 24) + 0.5 * np.hypot(6, 24)
    row_bytes = 2.0 * 4 + (3.0 + 0.25) / 0.5 * 2
    exact = 1000 + 100 * 3 + products + 4.5 * (10 + row_bytes / 2) + 3 * 7 * 2 * 4 / 2
    assert found == pytest.approx([exact], rel=1e-12)
    two = replace(work, matrices=2.0)
    less = np.hypot(16, 16) + 0.5 * np.hypot(4, 16)
    assert experts_law(LAYER, two, (NARROW, 16.0, 2.0)) == pytest.approx([exact - products + less])
    padded = replace(work, local=np.array([2.0]))
    assert experts_law(LAYER, padded, (NARROW, 16.0, 2.0)) == pytest.approx([exact - 100])
    fullest = experts_law({**LAYER, "fullest": 5.0}, work, (NARROW, 16.0, 2.0))
    assert fullest == pytest.approx([exact + 5 * 4])
    shown = replace(work, presented_rows=np.array([20.0]))
    assert experts_law(LAYER, shown, (NARROW, 16.0, 2.0)) == pytest.approx([exact])
    every = experts_law({**LAYER, "all_rows": 1.0}, shown, (NARROW, 16.0, 2.0))
    assert every == pytest.approx([exact + 15.5 * (10 + row_bytes / 2)])


@pytest.mark.parametrize(("product", "dtype"), [("forward", "fp8-block"), ("dgrad", "bf16"), ("wgrad", "fp8-block")])
def test_grouped_products(product: Any, dtype: str) -> None:
    chosen, shares = choose("kernel-gemm", H100, dtype), catalog.calibration("kernel-gemm")["grouped"][product]
    values, kind, n, k = chosen.values, chosen.kind, 512.0, 256.0
    rate = chosen.peak * 0.5 * values["compute"] * shares.get(kind.coefficients, 1.0)
    total = min(values["base"], choose("kernel-gemm", H100, "bf16").values["base"])
    for rows in (64.0, 1000.0):
        wgrad = product == "wgrad"
        length, width = (rows, k) if wgrad else (k, rows)
        held = n * k * (8.0 if wgrad else kind.weight)
        moved = kind.activation * k + (kind.activation if wgrad else 2.0) * n
        reading = (held + rows * moved) / (H100.memory_bandwidth * values["memory"])
        total += np.hypot(2 * (length + values["fill"]) * width * n / rate, reading)
    found = experts.grouped_gemm_time(H100, [64.0, 0.0, 1000.0], 512, 256, dtype, product, free_share=0.5)
    assert found.seconds == pytest.approx(total, rel=1e-12)


def test_pairs_of_queries_and_keys() -> None:
    def pairs(tokens: float, length: float, sequences: float, causal: bool, tile: float) -> float:
        sizes = (np.array([one]) for one in (tokens, length, sequences))
        return float(attention._pairs(*sizes, causal, tile)[0])

    assert pairs(8, 8, 2, False, 4.0) == 64.0
    # A triangle of 4 x 4 with half a tile of 2 a query, two sequences of four queries each.
    assert pairs(8, 4, 2, True, 2.0) == 8 * (4 - 2 + 1)
    # A tile larger than the sequence is all of it; more queries than keys are no more.
    assert pairs(4, 4, 1, True, 64.0) == 4 * 4
    assert pairs(8, 4, 1, True, 2.0) == 8 * (4 - 2 + 1)
    # The last two of ten places.
    assert pairs(2, 10, 1, True, 1.0) == 2 * (10 - 1 + 0.5)
    assert pairs(1, 100, 1, True, 128.0) == 100.0


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("latent", [False, True])
def test_attention_by_its_terms(direction: Any, latent: bool) -> None:
    """16 sequences of 512 with 32 query and 8 key heads of 192, values of 128."""
    chosen = choose("kernel-attention", H100, "bf16")
    values = chosen.values
    pairs = 8192 * (512 - 256 + values["tile"] / 2)
    each = 2 * (192 + 128) if direction == "forward" else 2 * (3 * 192 + 2 * 128)
    work = pairs * 32 * each / (H100.bf16 * 0.5 * values[direction])
    moved = (8192 * 32 * 320 + 8192 * 8 * (192 if latent else 320)) * 2.0
    moved *= values["backward_bytes"] if direction == "backward" else 1.0
    exact = values["base"] + np.hypot(work, moved / (H100.memory_bandwidth * values["memory"]))
    sizes = (8192, 512, 32, 8, 192, 128)
    found = attention.attention_time(H100, *sizes, direction=direction, latent=latent, free_share=0.5)
    assert found.seconds == pytest.approx(exact, rel=1e-12)
    stated = attention.attention_time(H100, *sizes, direction=direction, latent=latent, free_share=0.5, sequences=16)
    assert stated.seconds == found.seconds
    # Half a sequence more: its keys are read too.
    half, (_, *rest) = {"direction": direction, "latent": latent}, sizes
    counted = attention.attention_time(H100, 768, *rest, sequences=1.5, causal=False, **half)
    assert attention.attention_time(H100, 768, *rest, causal=False, **half).seconds == counted.seconds


def test_attention_asks_for_sense_and_names_its_format() -> None:
    with pytest.raises(UserError, match="kv_heads"):
        attention.attention_time(H100, 8, 8, 4, 5, 64, 64)
    assert attention.attention_time(H100, 8, 8, 4, 4, 64, 64).seconds > 0
    told = {dtype: attention._format(H100, dtype)[0] for dtype in ("bf16", "fp8", "mxfp8", "int8", "w4a16")}
    assert told == {"bf16": "bf16", "fp8": "fp8", "mxfp8": "fp8", "int8": "bf16", "w4a16": "bf16"}
    assert attention._format(nobody(), "fp8") == ("bf16", ("fp8: attention in bf16",))
    assert attention._format(H100, "fp8")[1] == attention._format(H100, "bf16")[1] == ()
    assert attention._format(nobody(), "fp16") == ("fp16", ())
    assert attention._format(H100, "mxfp8")[1] == ("mxfp8: attention in fp8",)


def test_an_answer_outside_the_fit_is_assumed() -> None:
    made = Choice({}, NARROW, 1.0, 1.0, "fitted", 0.1, 0.3, {"m": [2, 8]}, ("a note",), 1.5)
    inside, outside = made.answer(2.0, m=[2, 8], k=1), made.answer(2.0, m=[2, 9])
    assert (inside.seconds, inside.basis, inside.band, inside.notes) == (3.0, "fitted", 0.1, ("a note",))
    assert (outside.basis, outside.band) == ("assumed", 0.3)
    assert outside.notes == ("a note", "outside the range of the fit: m")
    assert made.answer(1.0, m=1).basis == "assumed"
    assert replace(made, band=0.5).answer(1.0, m=1).band == 0.5


def test_power_moves_a_share_of_the_peak() -> None:
    """(watts a TFLOP/s over the fitted ones') ^ 0.2, no higher than the limit unless it was already."""
    rule = catalog.calibration("kernel-gemm")["rule"]
    values = {"compute": 0.6, "forward": 0.5, "memory": 0.7, "watts_per_teraflop": 0.5}
    moved = (1.0 / 0.5) ** rule["exponent"]
    assert choice.watts(nobody()) == 1.0
    assert choice._at_power(values, nobody()) == pytest.approx({"compute": 0.6 * moved, "forward": 0.5 * moved})
    hot = choice._at_power({**values, "compute": 0.9, "forward": 0.97}, nobody())
    assert hot == {"compute": rule["limit"], "forward": 0.97}
    unknown = nobody(power=None)
    assert choice._at_power(values, unknown) == {"compute": 0.6, "forward": 0.5}
    assert choice.watts(unknown) == rule["watts_per_teraflop"]
    sheet = choice.datasheet_compute(nobody(power=100.0), number_format("bf16"))
    assert sheet == pytest.approx(rule["bf16"] * 0.25 ** rule["exponent"])
    assert choice.datasheet_compute(nobody(power=4e4), number_format("bf16")) == rule["limit"]


def test_a_gpu_of_another_size_is_far() -> None:
    rule = {"far": 3.0}
    for times, far in ((2.9, False), (3.1, True), (1 / 2.9, False), (1 / 3.1, True)):
        assert choice._far(nobody(bf16=times * H100.bf16), ("h100-sxm",), rule) == far
    assert not choice._far(nobody(bf16=H100.bf16 / 3.1), ("h100-sxm", "a100-sxm-80g"), rule)
    assert not choice._far(nobody(bf16=1e12), ("of no catalog",), rule)
    assert choice.spread({"p90": 0.2}) == 0.2
    assert choice.spread({"p90": 0.2, "range": 0.3}) == 0.3


def test_peaks_of_integers_and_of_formats_without_units() -> None:
    assert formats.peak(A100, number_format("int8"))[0] == 2 * A100.bf16
    assert formats.peak(H100, number_format("int8")) == (
        H100.fp8,
        ("int8: the fp8 rate is taken for that of 8-bit integers",),
    )
    rate, notes = formats.peak(H100, number_format("mxfp8"))
    assert rate == H100.fp8
    assert "no units known for mxfp8" in notes[0]
    assert formats.peak(B200, number_format("mxfp8")) == (B200.fp8, ())
    assert number_format("w4a16").activation == 2.0
    assert not number_format("w4a16").quantized
    assert number_format("fp8").quantized


@pytest.mark.parametrize("what", ["copy", "norm", "permute", "unpermute"])
def test_a_memory_bound_pass(what: str) -> None:
    data = catalog.calibration("kernel-passes")
    shape, (numbers, *_) = data["passes"][what], passes._numbers(data, H100, what, "bf16")
    each = shape["moves"] * 2.0 + shape.get("extra_bytes", 0.0) + (2.0 / 4 if what == "unpermute" else 0.0)
    seconds = numbers["base"] + 1e8 * each / (H100.memory_bandwidth * numbers["memory"])
    assert passes.memory_bound_time(H100, what, 1e8, top_k=4).seconds == pytest.approx(seconds, rel=1e-12)
    assert passes.pass_bytes(what, "bf16", 4) == pytest.approx(each)


def test_an_optimizer_step() -> None:
    data = catalog.calibration("kernel-passes")
    numbers = passes._numbers(data, H100, "optimizer", "fp32")[0]
    for stated, each in ((None, data["optimizer_bytes"]), (10.0, 10.0)):
        exact = numbers["base"] + 1e9 * each / (H100.memory_bandwidth * numbers["memory"])
        assert passes.optimizer_time(H100, 1e9, stated).seconds == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("fitted", "told", "same"),
    [
        ("trtllm 1.3.0", "TensorRT-LLM v1.3.0", True),
        ("trtllm 1.3.0", "1.3.0", True),
        ("trtllm 1.3.0", "tensorrt release v1.3.0", True),
        ("trtllm 1.3.0", "trtllm", True),
        ("trtllm 1.3.0", "trtllm 1.2.0", False),
        ("trtllm 1.3.0", "vllm 1.3.0", False),
        ("trtllm 1.3.0", "17", False),
        ("vllm 0.8.4", "vLLM", True),
    ],
)
def test_releases_agree_as_far_as_they_are_told(fitted: str, told: str, same: bool) -> None:
    assert releases.same(fitted, told) == same


def test_another_release_takes_its_factor() -> None:
    found = {"release": "trtllm 1.3.0", "releases": {"trtllm 1.0.0": 1.2}}
    assert releases.answering(found, "auto") == (1.0, True, "")
    assert releases.answering(found, "trtllm 1.3.0") == (1.0, True, "")
    factor, known, note = releases.answering(found, "trtllm 1.0.0")
    assert (factor, known) == (1.2, True)
    assert note == "release trtllm 1.0.0: 1.2 times as long as trtllm 1.3.0"
    assert releases.answering(found, "sglang 0.5.1")[:2] == (1.0, False)
    assert releases.product_of("vllm_fused_moe") == "vllm"
    assert releases.product_of("fused_vllm") is releases.product_of(None) is None
