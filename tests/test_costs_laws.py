"""The laws of a training step's compute by hand: every rate, factor and limit of a GPU that nobody has built."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim import catalog
from moesim.costs import compute, reliability
from moesim.costs.compute import Rates
from moesim.errors import InfeasibleError
from moesim.specs.gpu import GpuSpec
from moesim.specs.workload import FailuresSpec

LAW = compute.coefficients()


def gpu(**changes: Any) -> GpuSpec:
    """1 and 2 PFLOP/s, 3 TB/s, 700 W, 100 SMs."""
    rates = {"bf16": 1e15, "fp8": 2e15, "memory": 8e10, "memory_bandwidth": 3e12, "power": 700.0}
    made = {"name": "nobodys", "generation": "hopper", "multiprocessors": 100}
    return GpuSpec.model_validate({**rates, **made, **changes})


def by_hand(**changes: Any) -> Rates:
    """Rates of round numbers."""
    plain = {"gemm": 4.0, "grouped_gemm": 2.0, "bf16_gemm": 4.0, "scores": 1.0, "memory": 8.0, "quantize": 1.0}
    return Rates(**{**plain, "weight_bytes": 2.0, "basis": "fitted", "band": 0.1, **changes})


def test_rates_are_shares_of_the_datasheet() -> None:
    found, own = compute.rates(gpu(), "bf16"), LAW["gemm_efficiency"]["hopper"]["bf16"]
    assert found.gemm == pytest.approx(1e15 * own, rel=1e-12)
    assert found.grouped_gemm == pytest.approx(1e15 * own * LAW["grouped_gemm"], rel=1e-12)
    assert found.bf16_gemm == found.gemm
    assert found.scores == pytest.approx(1e15 * LAW["attention_scores"]["hopper"], rel=1e-12)
    assert found.memory == pytest.approx(3e12 * LAW["memory_efficiency"], rel=1e-12)
    assert (found.quantize, found.weight_bytes, found.experts, found.slower) == (1.0, 2.0, 1.0, 0.0)
    other = compute.rates(gpu(generation="cdna3"), "bf16")
    assert other.scores == pytest.approx(1e15 * LAW["attention_scores"]["other"], rel=1e-12)


def test_narrow_formats_have_rates_bytes_and_a_pass_of_their_own() -> None:
    found, plain = compute.rates(gpu(), "fp8"), compute.rates(gpu(), "bf16")
    assert found.gemm == pytest.approx(2e15 * LAW["gemm_efficiency"]["hopper"]["fp8"], rel=1e-12)
    assert (found.bf16_gemm, found.scores, found.memory) == (plain.bf16_gemm, plain.scores, plain.memory)
    assert found.quantize == LAW["quantize_passes"] > 1.0
    black = gpu(generation="blackwell", fp4=4e15)
    formats = ("bf16", "fp16", "fp8", "fp8-block", "mxfp8", "nvfp4")
    # Scales of a block: a float for 128 values, a byte for 32, a byte for 16 beside half a byte each.
    exact = [2.0, 2.0, 1.0, 1 + 4 / 128, 1 + 1 / 32, 0.5 + 1 / 16]
    assert [compute.rates(black, one).weight_bytes for one in formats] == pytest.approx(exact, abs=2e-3)
    assert [compute.rates(black, one).quantize > 1.0 for one in formats] == [False, False, True, True, True, True]
    assert compute.rates(black, "fp16").gemm == compute.rates(black, "bf16").gemm
    for one in formats[2:]:
        full = 4e15 if one == "nvfp4" else 2e15
        assert compute.rates(black, one).gemm == pytest.approx(full * compute.gemm_efficiency(black, one), rel=1e-12)


def test_what_serves_exchanges_computes_nothing_and_reads_as_before() -> None:
    whole, most = compute.rates(gpu(), "fp8"), compute.rates(gpu(), "fp8", 25)
    for name in ("gemm", "grouped_gemm", "bf16_gemm", "scores"):
        assert getattr(most, name) == pytest.approx(0.75 * getattr(whole, name), rel=1e-12)
    assert most.memory == whole.memory
    least = LAW["least_free_multiprocessors"]
    assert compute.rates(gpu(), "fp8", 99).gemm == pytest.approx(least * whole.gemm, rel=1e-12)
    unknown = gpu(multiprocessors=None)
    assert compute.rates(unknown, "fp8", 25).gemm == compute.rates(unknown, "fp8").gemm == whole.gemm


def test_what_was_fitted_says_so() -> None:
    h100, near, far = LAW["residual"]["p90"], LAW["residual_elsewhere"]["p90"], gpu(generation="other")
    assert h100 < near
    known = catalog.load("gpus", "h100-sxm")
    found = [(known, "bf16"), (known, "fp16"), (known, "fp8"), (known, "fp8-block"), (gpu(), "bf16"), (far, "bf16")]
    told = [(compute.rates(one, kind).basis, compute.rates(one, kind).band) for one, kind in found]
    fitted, assumed = ("fitted", h100), ("assumed", near)
    assert told == [fitted, fitted, fitted, assumed, ("fitted", near), assumed]


def test_peaks_by_format() -> None:
    black = gpu(fp4=4e15)
    peaks = {"bf16": 1e15, "fp16": 1e15, "fp8": 2e15, "fp8-block": 2e15, "mxfp8": 2e15, "nvfp4": 4e15}
    assert {kind: compute.peak(black, kind) for kind in peaks} == peaks
    assert compute.peak(gpu(fp8=None), "fp8") == compute.peak(gpu(), "nvfp4") == 1e15


@pytest.mark.parametrize(
    ("watts", "bf16", "times"),
    [(1200.0, 2.5e15, 1.0), (900.0, 2.5e15, 0.75), (900.0, 1.25e15, 1.2), (900.0, 2e15, 0.9375), (900.0, 5e15, 0.75)],
)
def test_power_sustains_a_clock(watts: float, bf16: float, times: float) -> None:
    """Watts over the reference's, by the clock that the peak takes, which more units do not raise; at most 1.2."""
    fitted = LAW["gemm_efficiency"]["blackwell"]
    black = gpu(generation="blackwell", power=watts, bf16=bf16, fp8=2 * bf16)
    for kind in ("bf16", "fp8"):
        limit = min(fitted[kind] * times, LAW["gemm_rule_limit"])
        assert compute.gemm_efficiency(black, kind) == pytest.approx(limit, rel=1e-12)
    assert (
        compute.gemm_efficiency(gpu(generation="hopper", power=watts), "bf16")
        == LAW["gemm_efficiency"]["hopper"]["bf16"]
    )
    assert compute.gemm_efficiency(gpu(generation="blackwell", power=None), "bf16") == fitted["bf16"]


@pytest.mark.parametrize(("watts", "fp8", "each"), [(500.0, 1e15, 1.0), (250.0, 1e15, 0.5), (None, 1e15, None)])
def test_the_datasheets_rule(watts: float | None, fp8: float, each: float | None) -> None:
    """a x (watts a bf16 TFLOP/s) ^ exponent x what training keeps of it; of fp8 half its peak stands for bf16's."""
    rule, kept = LAW["gemm_rule"], LAW["gemm_rule_training"]
    per = (each if each is not None else rule["watts_per_teraflop"]) ** rule["exponent"]
    other = gpu(generation="other", power=watts, bf16=5e14, fp8=fp8)
    assert compute.gemm_efficiency(other, "bf16") == pytest.approx(rule["bf16"] * per * kept["bf16"], rel=1e-12)
    assert compute.gemm_efficiency(other, "fp8") == pytest.approx(rule["fp8"] * per * kept["fp8"], rel=1e-12)
    warm = gpu(generation="other", power=1e5)
    assert compute.gemm_efficiency(warm, "bf16") == LAW["gemm_rule_limit"]


def test_products_and_passes() -> None:
    assert compute.gemm_seconds(12.0, 4.0) == 3.0
    # Two bytes a value, read or written three times, at 8 bytes a second, half as long again.
    assert compute.passes_seconds(4.0, 3.0, by_hand(quantize=1.5)) == pytest.approx(2 * 4 * 3 * 1.5 / 8)


def test_a_grouped_product_reads_the_weights_of_experts_that_have_rows() -> None:
    rows = np.array([[3.0, 0.0], [4.0, 6.0]])
    # A row takes 2 / 2 = 1 s, an expert's weights 16 x 2 / 8 = 4 s.
    assert compute.grouped_costs(2.0, 16.0, by_hand()) == (1.0, 4.0)
    assert compute.experts_seconds(rows, 2.0, 16.0, by_hand()) == pytest.approx([5.0, 32**0.5 + 52**0.5])
    # Expected rows: half the time an expert has twice as many.
    active = np.array([[1.0, 0.5], [0.5, 1.0]])
    thin = compute.experts_seconds(rows, 2.0, 16.0, by_hand(), active)
    assert thin == pytest.approx([5.0 + 2.0, 20**0.5 + 52**0.5])
    assert compute.grouped_seconds(np.array([3.0]), 2.0, 8.0) == pytest.approx(10.0)
    assert compute.grouped_seconds(np.array([1.0, 0.5, 0.0]), 6.0, 8.0) == pytest.approx(10.0 + 73**0.5)


def test_a_rounded_maximum() -> None:
    assert compute.smooth_max(3.0, 4.0, 2.0) == pytest.approx(5.0)
    assert compute.smooth_max(4.0, 3.0, 2.0) == pytest.approx(5.0)
    assert compute.smooth_max(0.0, 0.0, 8.0) == 0.0
    assert compute.smooth_max(0.0, 2.0, 8.0) == 2.0
    assert compute.smooth_max(2.0, 2.0, 4.0) == pytest.approx(2 * 2**0.25)


def test_intervals_between_checkpoints() -> None:
    """Young: sqrt(2 C M). Daly: times 1 + sqrt(C / 2M) / 3 + (C / 2M) / 9, less C; M itself from C = 2 M on."""
    np.testing.assert_allclose(reliability.young_interval([8.0, 2.0], 4.0), [8.0, 4.0])
    write = np.array([0.08, 2.0, 7.9, 8.0, 12.0, 80.0])
    young, part = np.sqrt(8 * write[:3]), write[:3] / 8
    exact = [*(young * (1 + np.sqrt(part) / 3 + part / 9) - write[:3]), 4.0, 4.0, 4.0]
    np.testing.assert_allclose(reliability.daly_interval(write, 4.0), exact, rtol=1e-12)


def failures(**changes: Any) -> FailuresSpec:
    plain = {"mean_time_between_failures": 1e6, "restart": 60.0, "checkpoint": {"write": 20.0, "load": 30.0}}
    return FailuresSpec.model_validate({**plain, **changes})


def test_a_runs_plan_by_hand() -> None:
    """100 GPUs fail every 1e4 s; 25 steps of 10 s a segment, and what remains of 110 in the last one."""
    stated = failures(checkpoint={"write": 20.0, "load": 30.0, "interval": 254.0})
    plan = reliability.plan_run(stated, 100, 110, 10.0)
    assert (plan.segment_steps, plan.segments, plan.last_steps, plan.interval, plan.useful) == (
        25,
        5,
        10,
        250.0,
        1100.0,
    )
    assert plan.rate == pytest.approx(1e-4)
    assert plan.chance == pytest.approx(np.exp(-(30 + 250 + 20) / 1e4))
    assert (plan.write, plan.load, plan.restart, plan.spares, plan.repair) == (20.0, 30.0, 60.0, None, 0.0)
    even = reliability.plan_run(stated, 100, 100, 10.0)
    assert (even.segments, even.last_steps) == (4, 25)
    assert reliability.plan_run(stated, 100, 7, 10.0).segment_steps == 7
    assert reliability.plan_run(stated, 100, 7, 1000.0).segment_steps == 1
    auto = reliability.plan_run(failures(), 100, 1000, 10.0)
    assert auto.segment_steps == round(float(reliability.daly_interval(20.0, 1e4)) / 10)
    spare = reliability.plan_run(failures(spares={"hosts": 3, "repair": 3600.0}), 100, 110, 10.0)
    assert (spare.spares, spare.repair) == (3, 3600.0)


def test_a_segment_that_ends_once_in_a_hundred_tries_is_the_last_one_taken() -> None:
    """exp(-4.60) is above 0.01, exp(-4.61) below."""
    for seconds, legal in ((4.60e6 - 50, True), (4.61e6 - 50, False)):
        stated = failures(checkpoint={"write": 20.0, "load": 30.0, "interval": seconds})
        if legal:
            assert reliability.plan_run(stated, 1, 1, seconds).chance > reliability.LEAST_CHANCE
        else:
            with pytest.raises(InfeasibleError, match=r"1 GPUs fail every 11\.6 d"):
                reliability.plan_run(stated, 1, 1, seconds)
