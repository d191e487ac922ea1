"""The kernel laws against measurements: bounds a little above what was reached, so that a worse law fails."""

from __future__ import annotations

import csv
import re

import numpy as np
import pandas as pd
import pytest
from kernels_fixture import CASE, SHARED, dense, experts, grouped_rows, needs_shared

from moesim import catalog
from moesim.calibration.compute_fit import errors, reach, summary
from moesim.calibration.compute_rows import mistuned
from moesim.costs.kernels import attention_time, gemm_time, grouped_gemm_time
from moesim.costs.kernels.choice import choose, datasheet_compute
from moesim.costs.kernels.formats import number_format

pytestmark = needs_shared


def shipped(entry: str, gpu: str, dtype: str, kernel: str | None = None) -> dict[str, float]:
    return dict(choose(entry, catalog.load("gpus", gpu), dtype, kernel=kernel).values)


def by_datasheet(entry: str, gpu: str, dtype: str) -> dict[str, float]:
    sheet = catalog.calibration(entry)["datasheet"][dtype]
    return {**sheet, "compute": datasheet_compute(catalog.load("gpus", gpu), number_format(dtype))}


@pytest.mark.parametrize(
    ("gpu", "dtype", "median", "p90"),
    [
        ("a100-sxm-80g", "bf16", 0.095, 0.26),
        ("h100-sxm", "bf16", 0.055, 0.175),
        ("h100-sxm", "fp8", 0.034, 0.11),
        ("h100-sxm", "fp8-block", 0.066, 0.245),
        ("b200-sxm", "bf16", 0.078, 0.215),
        ("b200-sxm", "fp8", 0.048, 0.12),
        ("b200-sxm", "fp8-block", 0.044, 0.13),
        ("b200-sxm", "nvfp4", 0.035, 0.12),
    ],
)
def test_dense_products(gpu: str, dtype: str, median: float, p90: float) -> None:
    rows = dense()
    rows = rows[(rows["gpu"] == gpu) & (rows["dtype"] == dtype)].iloc[::7]
    found = summary(errors(rows, shipped("kernel-gemm", gpu, dtype), dtype))
    assert found["median"] < median
    assert found["p90"] < p90
    assert abs(found["bias"]) < 0.02


@pytest.mark.parametrize(
    ("gpu", "dtype", "median", "p90"),
    [
        ("h100-sxm", "bf16", 0.08, 0.25),
        ("b200-sxm", "bf16", 0.10, 0.32),
        ("h100-sxm", "fp8", 0.06, 0.16),
        ("b200-sxm", "fp8", 0.085, 0.175),
        ("b200-sxm", "nvfp4", 0.045, 0.155),
    ],
)
def test_dense_products_of_a_gpu_known_by_its_datasheet(gpu: str, dtype: str, median: float, p90: float) -> None:
    rows = dense()
    rows = rows[(rows["gpu"] == gpu) & (rows["dtype"] == dtype)].iloc[::7]
    found = summary(errors(rows, by_datasheet("kernel-gemm", gpu, dtype), dtype))
    assert found["median"] < median
    assert found["p90"] < p90


@pytest.mark.parametrize(
    ("gpu", "dtype", "median", "p90", "sheet_median"),
    [
        ("a100-sxm-80g", "bf16", 0.10, 0.30, None),
        ("h100-sxm", "bf16", 0.072, 0.25, 0.115),
        ("h100-sxm", "fp8", 0.062, 0.18, 0.07),
        ("h100-sxm", "fp8-block", 0.073, 0.18, 0.095),
        ("b200-sxm", "bf16", 0.08, 0.22, 0.095),
        ("b200-sxm", "fp8", 0.066, 0.18, 0.075),
        ("b200-sxm", "fp8-block", 0.075, 0.23, 0.105),
        ("b200-sxm", "nvfp4", 0.12, 0.31, 0.125),
    ],
)
def test_expert_layers(gpu: str, dtype: str, median: float, p90: float, sheet_median: float | None) -> None:
    rows = grouped_rows(gpu, dtype, 300)
    found = summary(errors(rows, shipped("kernel-experts", gpu, dtype), dtype))
    assert found["median"] < median
    assert found["p90"] < p90
    assert abs(found["bias"]) < 0.03
    if sheet_median is not None:
        sheet = summary(errors(rows, by_datasheet("kernel-experts", gpu, dtype), dtype))
        assert found["median"] - 0.01 < sheet["median"] < sheet_median


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "fp8-block"])
def test_triton_kernels_have_coefficients_of_their_own(dtype: str) -> None:
    rows = experts()
    rows = rows[(rows["gpu"] == "h100-sxm") & (rows["dtype"] == dtype) & rows["software"].str.startswith("vllm")]
    rows = rows[rows["kernel"].str.contains("triton|vllm_fused_moe")].iloc[::4]
    own = summary(errors(rows, shipped("kernel-experts", "h100-sxm", dtype, "vllm_fused_moe"), dtype))
    grouped = summary(errors(rows, shipped("kernel-experts", "h100-sxm", dtype), dtype))
    assert own["median"] < min(0.085, grouped["median"])


def skewed_over_balanced(rows: pd.DataFrame, error: np.ndarray) -> pd.DataFrame:
    """log ratios of time, measured and predicted, of the skewed load over the balanced one, by case."""
    pairs = rows.assign(error=error).pivot_table(index=CASE, columns="load", values=["error", "time"]).dropna()
    measured = np.log(pairs["time"]["power_law_1.01"] / pairs["time"]["balanced"])
    wrong = pairs["error"]["power_law_1.01"] - pairs["error"]["balanced"]
    return pd.DataFrame({"measured": measured, "predicted": measured + wrong}).reset_index()


SKEWED = {
    ("h100-sxm", "bf16"): ((0.075, 0.21), (0.105, 0.25)),
    ("h100-sxm", "fp8"): ((0.05, 0.16), (0.085, 0.21)),
    ("h100-sxm", "fp8-block"): ((0.06, 0.155), (0.09, 0.18)),
    ("b200-sxm", "bf16"): ((0.065, 0.175), (0.085, 0.17)),
    ("b200-sxm", "fp8"): ((0.045, 0.115), (0.065, 0.15)),
    ("b200-sxm", "fp8-block"): ((0.055, 0.145), (0.11, 0.22)),
    ("b200-sxm", "nvfp4"): ((0.05, 0.23), (0.075, 0.21)),
}
"""Median and 90th percentile of the error of time(power law) / time(balanced): all pairs; EP >= 8 and T >= 1024."""


def test_a_skewed_load_costs_what_it_costs() -> None:
    """Every GPU and format that has both loads; together the hard pairs meet the design notes' 6.7 / 19 %, but for the
    median, which is held to 7.8 %: cells weigh alike here, and bf16 on H100 is the worst of them."""
    hard = []
    for (gpu, dtype), (every, busy) in SKEWED.items():
        rows = grouped_rows(gpu, dtype, 350)
        ratios = skewed_over_balanced(rows, errors(rows, shipped("kernel-experts", gpu, dtype), dtype))
        wrong = (ratios["predicted"] - ratios["measured"]).to_numpy()
        many = ((ratios["expert_parallel"] >= 8) & (ratios["tokens"] >= 1024)).to_numpy()
        hard.append(wrong[many])
        for found, (median, p90) in ((summary(wrong), every), (summary(wrong[many]), busy)):
            assert found["median"] < median, (gpu, dtype)
            assert found["p90"] < p90, (gpu, dtype)
        sure = ratios[ratios["predicted"].abs() > np.log(1.1)]
        assert (np.sign(sure["predicted"]) == np.sign(sure["measured"])).mean() >= 0.95, (gpu, dtype)
    together = summary(np.concatenate(hard))
    assert together["median"] < 0.078
    assert together["p90"] < 0.19
    assert abs(together["bias"]) < 0.05


def test_the_stated_range_holds_nine_rows_of_ten() -> None:
    """The mis-tuned rows too; of other releases the range that is stated for those."""
    inside = []
    for gpu, dtype in SKEWED:
        rows = grouped_rows(gpu, dtype, 200)
        error = errors(rows, shipped("kernel-experts", gpu, dtype), dtype)
        band = choose("kernel-experts", catalog.load("gpus", gpu), dtype).band
        inside.append(float((np.abs(error) < np.log1p(band)).mean()))
        assert reach(error) < 1.25 * band, (gpu, dtype)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)
    rows = experts()
    rows = rows[rows["kernel"].str.contains("flashinfer_cutlass|cutedsl")].iloc[::40].reset_index(drop=True)
    for (gpu, dtype, kernel), same in rows.groupby(["gpu", "dtype", "kernel"]):
        found = choose("kernel-experts", catalog.load("gpus", gpu), dtype, kernel=kernel)
        assert found.basis == "assumed"
        assert found.band == catalog.calibration("kernel-experts")["residual_releases"]["range"]
        error = errors(same.reset_index(drop=True), dict(found.values), dtype)
        inside.append(float((np.abs(error) < np.log1p(found.band)).mean()))
    assert np.mean(inside) > 0.75


def published(kind: str) -> tuple[list[tuple[int, int, int, int]], np.ndarray]:
    """(groups, m, n, k) and seconds of DeepGEMM's published tables (H800)."""
    with (SHARED / "gemm_published_tables.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == kind and row["metric"] == "derived_time"]
    shapes = [re.search(r"groups=(\d+) M=(\d+) N=(\d+) K=(\d+)", row["op_or_model"]) for row in rows]
    sizes = [tuple(int(number) for number in shape.groups()) for shape in shapes if shape]
    return sizes, np.array([float(row["value"]) * 1e-6 for row in rows])


def test_products_published_by_another_library() -> None:
    gpu = catalog.load("gpus", "h800-sxm")
    shapes, measured = published("dense_gemm")
    dense_time = [gemm_time(gpu, m, n, k, "fp8-block", quantize=False).seconds for _, m, n, k in shapes]
    found = summary(np.log(np.array(dense_time) / measured))
    assert found["median"] < 0.16
    assert found["p90"] < 0.31
    for kind in ("grouped_gemm_contiguous", "grouped_gemm_masked"):
        shapes, measured = published(kind)
        grouped = [grouped_gemm_time(gpu, [m] * groups, n, k, "fp8-block").seconds for groups, m, n, k in shapes]
        assert summary(np.log(np.array(grouped) / measured))["median"] < 0.15


def test_shares_of_peak_in_a_training_layer() -> None:
    gpu, free = catalog.load("gpus", "h800-sxm"), 112 / 132
    rows = [8192] * 4
    work = 2 * 4096 * 7168 * 4 * 8192
    shares = {
        product: work
        / grouped_gemm_time(gpu, rows, 4096, 7168, "fp8-block", product, free_share=free).seconds
        / gpu.fp8
        for product in ("forward", "dgrad", "wgrad")
    }
    assert 0.44 < shares["forward"] < 0.53
    assert 0.47 < shares["dgrad"] < 0.56
    assert 0.27 < shares["wgrad"] < 0.32


@pytest.mark.parametrize(
    ("name", "free", "forward", "backward"),
    [
        ("h800-sxm", 112 / 132, (0.53, 0.59), (0.45, 0.51)),
        ("b200-sxm", 1.0, (0.59, 0.75), (0.48, 0.58)),
        ("gb200-nvl72", 1.0, (0.59, 0.75), (0.48, 0.58)),
    ],
)
def test_attention_reaches_its_published_share_of_peak(
    name: str, free: float, forward: tuple[float, float], backward: tuple[float, float]
) -> None:
    gpu = catalog.load("gpus", name)
    pairs = 4096 * 4096 / 2 * 128
    shape = (4096, 4096, 128, 128, 192, 128)
    there = attention_time(gpu, *shape, causal=True, direction="forward", free_share=free)
    back = attention_time(gpu, *shape, causal=True, direction="backward", free_share=free)
    assert forward[0] < pairs * 2 * 320 / there.seconds / gpu.bf16 < forward[1]
    assert backward[0] < pairs * 2 * (3 * 192 + 2 * 128) / back.seconds / gpu.bf16 < backward[1]


def test_attention_of_the_traced_layer() -> None:
    gpu = catalog.load("gpus", "h800-sxm")
    found = attention_time(gpu, 4096, 4096, 128, 128, 192, 128, free_share=112 / 132)
    assert found.seconds == pytest.approx(1237e-6, rel=0.06)


def test_the_mis_tuned_are_few_and_slow() -> None:
    rows = dense()
    rows = rows[(rows["gpu"] == "h100-sxm") & (rows["dtype"] == "fp8-block")]
    slow = mistuned(rows, ("m", "n", "k"), (), ("gpu", "software"))
    assert 0.02 < slow.mean() < 0.08
    error = errors(rows, shipped("kernel-gemm", "h100-sxm", "fp8-block"), "fp8-block")
    assert np.median(error[slow]) < -0.15
    assert abs(np.median(error[~slow])) < 0.02
