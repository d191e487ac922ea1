"""Fits of the kernel laws: known coefficients come back, traps are left out, shipped numbers are the rows' own."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import yaml
from kernels_fixture import GROUPED, NEWEST, SHAPES, dense, experts, grouped_rows, needs_shared

from moesim import catalog
from moesim.calibration.compute_fit import entries, errors, fit_experts, fit_gemm, law_of, summary
from moesim.calibration.compute_rows import mistuned
from moesim.costs.kernels import experts_time, gemm_time
from moesim.costs.kernels.choice import choose
from moesim.errors import UserError

TRUTH = {"base": 4e-6, "compute": 0.6, "memory": 0.7, "loop": 0.9e-6, "loop_power": 0.5, "fill": 120.0}
SIZES = (64, 256, 1024, 2048, 4096, 8192, 16384)


def made_products(noise: float = 0.03) -> pd.DataFrame:
    sizes = np.array(list(product((1, 16, 64, 256, 1024, 4096, 16384), SIZES, SIZES)))
    rows = pd.DataFrame(sizes, columns=["m", "n", "k"]).assign(kind="gemm", gpu="h100-sxm", dtype="bf16", time=1.0)
    scatter = np.random.default_rng(5).normal(0.0, noise, len(rows))
    return rows.assign(time=law_of(rows, "bf16")(TRUTH) * np.exp(scatter))


def test_known_coefficients_come_back() -> None:
    (found,) = fit_gemm(made_products()).sets
    assert (found.calibration, found.key, found.dtype, found.kernel) == ("kernel-gemm", "hopper", "bf16", "grouped")
    for name, value in TRUTH.items():
        assert found.entry[name] == pytest.approx(value, rel=0.12 if name in ("fill", "loop") else 0.04), name
    assert found.entry["residual"]["median"] == pytest.approx(0.02, abs=0.006)
    assert found.used == 343
    assert found.left_out == {}


def test_a_badly_tuned_block_is_left_out() -> None:
    rows = made_products()
    block = (rows["n"] == 2048) & (rows["m"] == 256) & (rows["k"] >= 1024)
    rows.loc[block, "time"] *= 4.0
    (found,) = fit_gemm(rows).sets
    assert 3 <= found.left_out["mis-tuned"] <= block.sum()
    assert found.entry["compute"] == pytest.approx(TRUTH["compute"], rel=0.05)


def test_mistuned_needs_a_neighbour_with_no_less_of_anything() -> None:
    rows = pd.DataFrame({"m": [1, 2, 4, 1], "n": [8, 8, 4, 16], "time": [3.0, 2.0, 1.0, 2.9]})
    flagged = mistuned(rows.assign(gpu="x"), ("m", "n"), (), ("gpu",))
    assert flagged.tolist() == [True, False, False, False]


def test_weights_that_lay_in_a_cache_are_left_out() -> None:
    rows = made_products()
    fast = (rows["m"] == 1) & (rows["n"] == 16384) & (rows["k"] == 16384)
    rows.loc[fast, "time"] = 2.0 * 16384**2 / 3.35e12 / 2
    (found,) = fit_gemm(rows).sets
    assert found.left_out["its weights lay in a cache"] == 1


def test_few_rows_stay_near_the_datasheet() -> None:
    (found,) = fit_gemm(made_products().iloc[:6]).sets
    sheet = catalog.calibration("kernel-gemm")["datasheet"]["bf16"]
    assert found.entry["compute"] == pytest.approx(0.805 * (700 / 989) ** 0.2, rel=0.1)
    assert 0.3 < found.entry["memory"] / sheet["memory"] < 1.3
    assert fit_gemm(made_products().iloc[:3]).skipped == {"fewer than 5 rows of bf16 on hopper": 3}


def test_a_fit_by_gpu_goes_before_its_generation(tmp_path) -> None:
    made = fit_gemm(made_products(), by="gpu").sets
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(entries(made)))))
    gpu, other = catalog.load("gpus", "h100-sxm"), catalog.load("gpus", "h200-sxm")
    own = gemm_time(gpu, 8192, 8192, 8192, "bf16", str(path))
    assert own.seconds == pytest.approx(2 * 8192**3 / (0.6 * gpu.bf16), rel=0.08)
    assert own.band == made[0].entry["residual"]["range"]
    assert gemm_time(other, 8192, 8192, 8192, "bf16", str(path)) == gemm_time(other, 8192, 8192, 8192, "bf16")


def test_formats_that_a_gpu_lacks_are_told() -> None:
    found = fit_gemm(made_products().assign(dtype="nvfp4"))
    assert found.sets == ()
    (reason,) = found.skipped
    assert "h100-sxm has no fp4 rate" in reason


def test_an_unknown_grouping_is_refused() -> None:
    with pytest.raises(UserError, match="generation or gpu"):
        fit_gemm(made_products(), by="colour")


def made_layers() -> pd.DataFrame:
    truth = dict(choose("kernel-experts", catalog.load("gpus", "h100-sxm"), "bf16").values) | {"base": 40e-6}
    cases = product((1, 16, 128, 1024, 8192), (1, 4, 16), ("balanced", "power_law_1.01"), ((2048, 768), (4096, 1536)))
    rows = pd.DataFrame(
        [{"tokens": t, "expert_parallel": e, "load": l, "hidden": h, "inter": i} for t, e, l, (h, i) in cases]
    ).assign(kind="expert_gemm", gpu="h100-sxm", dtype="bf16", top_k=8, experts=64, expert_tensor=1, time=1.0)
    return rows.assign(time=law_of(rows, "bf16")(truth), software="mine 1.0", kernel="cutlass")


def test_known_expert_coefficients_come_back() -> None:
    rows = made_layers()
    (found,) = fit_experts(rows).sets
    assert found.entry["base"] == pytest.approx(40e-6, rel=0.03)
    assert summary(errors(rows, found.entry, "bf16"))["p90"] < 0.03


def test_rows_stated_by_expert_are_taken_as_they_are() -> None:
    rows = made_layers()
    rows = rows[rows["load"] == "balanced"].assign(load="something of our own")
    assert fit_experts(rows).skipped == {"fewer than 5 rows of bf16 on hopper": 0}
    rows["rows"] = [json.dumps([t] * (64 // e)) for t, e in zip(rows["tokens"], rows["expert_parallel"], strict=True)]
    (found,) = fit_experts(rows).sets
    assert found.used == len(rows)


def test_traps_of_expert_rows_are_left_out() -> None:
    rows = made_layers()
    triton = rows.assign(kernel="sglang_fused_moe_triton", software="sglang 0.5.10")
    unknown = rows.assign(kernel="marlin")
    found = fit_experts(pd.concat([rows, triton, unknown], ignore_index=True))
    assert found.skipped == {"a kernel of no known family": len(rows)}
    by_kernel = {made.kernel: made for made in found.sets}
    assert set(by_kernel) == {"grouped", "triton"}
    assert by_kernel["triton"].left_out["remote tokens on the first expert"] == (rows["expert_parallel"] > 1).sum()


@needs_shared
@pytest.mark.parametrize(("gpu", "dtype"), [("h100-sxm", "bf16"), ("b200-sxm", "fp8-block"), ("a100-sxm-80g", "bf16")])
def test_shipped_dense_numbers_are_those_of_the_rows(gpu: str, dtype: str) -> None:
    rows = dense()
    rows = rows[(rows["gpu"] == gpu) & (rows["dtype"] == dtype)]
    (found,) = fit_gemm(rows, most=1500).sets
    kept = choose("kernel-gemm", catalog.load("gpus", gpu), dtype).values
    assert found.entry["compute"] == pytest.approx(kept["compute"], rel=0.03)
    ratio = law_of(rows.iloc[::50], dtype)(found.entry) / law_of(rows.iloc[::50], dtype)(kept)
    assert np.quantile(np.abs(np.log(ratio)), 0.95) < 0.06


@needs_shared
def test_shipped_expert_numbers_are_those_of_the_rows() -> None:
    rows = grouped_rows("h100-sxm", "fp8-block", 250)
    (found,) = fit_experts(rows).sets
    kept = choose("kernel-experts", catalog.load("gpus", "h100-sxm"), "fp8-block").values
    ratio = law_of(rows, "fp8-block")(found.entry) / law_of(rows, "fp8-block")(kept)
    assert np.quantile(np.abs(np.log(ratio)), 0.9) < 0.08


@needs_shared
@pytest.mark.parametrize(
    ("left_out", "median", "p90"),
    [("deepseek-v3", 0.11, 0.27), ("mixtral-8x7b", 0.10, 0.27), ("qwen3-30b-a3b", 0.17, 0.42)],
)
def test_a_model_left_out_is_met(left_out: str, median: float, p90: float) -> None:
    rows = grouped_rows("h100-sxm", "fp8-block", 450)
    out = rows["hidden"].map(SHAPES) == left_out
    (found,) = fit_experts(rows[~out]).sets
    reached = summary(errors(rows[out], found.entry, "fp8-block"))
    assert reached["median"] < median
    assert reached["p90"] < p90


@needs_shared
def test_another_release_is_a_factor() -> None:
    rows = experts()
    rows = rows[(rows["gpu"] == "h100-sxm") & (rows["dtype"] == "fp8") & rows["software"].str.startswith("trtllm")]
    (found,) = fit_experts(rows[rows["kernel"].str.contains(GROUPED)], most=700).sets
    assert set(found.release_factors) == {"trtllm 1.3.0rc10"}
    assert 1.0 < found.release_factors["trtllm 1.3.0rc10"] < 1.35
    assert found.entry["release"] == NEWEST["h100-sxm"]


def test_the_fit_speaks_the_laws_own_words() -> None:
    (found,) = fit_experts(made_layers()).sets
    gpu = catalog.load("gpus", "h100-sxm")
    assert set(choose("kernel-experts", gpu, "bf16").values) <= set(found.entry) | {"releases"}
    assert experts_time(gpu, [8.0] * 8, 2048, 768, "bf16", 64).seconds > 0


@pytest.mark.parametrize("factor", [1000.0, 40.0, 0.001])
def test_times_in_another_unit_or_of_another_machine_are_refused(factor: float) -> None:
    rows = made_products()
    found = fit_gemm(rows.assign(time=rows["time"] * factor))
    assert found.sets == ()
    (why,) = found.skipped
    assert "check their unit (seconds) and the GPU's name" in why


def test_numbers_that_no_row_tells_stay_as_shipped() -> None:
    """Products bound by arithmetic alone say nothing of how memory and long sums are reached."""
    rows = made_products()
    large = rows[(rows["m"] >= 4096) & (rows["n"] >= 4096) & (rows["k"] == 4096)]
    (found,) = fit_gemm(large).sets
    sheet = catalog.calibration("kernel-gemm")["datasheet"]["bf16"]
    assert "base" in found.kept
    assert found.entry["base"] == pytest.approx(sheet["base"])
    assert "compute" not in found.kept
    assert fit_gemm(rows).sets[0].kept == ()


def test_the_range_covers_rows_that_ran_badly() -> None:
    rows = made_products()
    slow = rows.iloc[:: max(2, len(rows) // 40)].assign(time=lambda table: 3.0 * table["time"])
    both = pd.concat([rows, slow], ignore_index=True)
    (found,) = fit_gemm(both).sets
    assert found.left_out["mis-tuned"] >= len(slow) // 2
    assert found.entry["residual"]["range"] >= found.entry["residual"]["p90"]
