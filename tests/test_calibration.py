"""From measurements to a file that scenarios name: known coefficients come back, and answers change as they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from calibration_fixture import LAWS, deepep_rows, nccl_rows, saved, timed

import moesim
from moesim import catalog
from moesim.calibration import calibrate, network_fit
from moesim.calibration.solve import Name
from moesim.calibration.statistics import noise, residual, weights
from moesim.calibration.tables import read
from moesim.costs.kernels import gemm_time
from moesim.errors import UserError
from moesim.network.coefficients import law

SHARED = Path(__file__).parents[1].parent / "shared" / "measurements"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no folder of published measurements beside the checkout")

NCCL: dict[Name, float] = {
    ("nccl-domain", "eta"): 0.75,
    ("nccl-domain", "root"): 0.9,
    ("nccl-domain", "base"): 7e-6,
    ("nccl-domain", "hop"): 1.2e-6,
    ("nccl-domain", "all_to_all_base"): 1.1,
}


def test_nccl_coefficients_come_back(tmp_path: Path) -> None:
    path = saved(timed(nccl_rows(), "nccl-domain", NCCL, noise=0.03), tmp_path / "own.csv")
    entry = calibrate(path, tmp_path / "own.yaml").entries["network-nccl-domain"]
    for (_, name), value in NCCL.items():
        assert entry[name] == pytest.approx(value, rel=0.06)
    assert entry["residual"]["median"] < 0.03 < entry["residual_of_shipped"]["median"]
    assert entry["valid"] == {"generations": ["hopper"], "kinds": ["nvlink"], "most_ranks": 8}
    assert entry["range"]["bytes"] == [1024, 1 << 30]


def test_generations_have_their_own_latencies(tmp_path: Path) -> None:
    truth = {**NCCL, ("common", "latency_factor", "blackwell"): 2.2, ("common", "latency_factor", "ampere"): 1.2}
    rows = timed(nccl_rows(("h100-sxm", "b200-sxm", "a100-sxm-80g")), "nccl-domain", truth, noise=0.03)
    found = calibrate(saved(rows, tmp_path / "own.csv"))
    factors = found.entries["network-common"]["latency_factor"]
    assert factors == {"ampere": pytest.approx(1.2, rel=0.03), "blackwell": pytest.approx(2.2, rel=0.03)}
    assert any("a100-sxm-80g, b200-sxm, h100-sxm fitted together" in note for note in found.notes)


def test_deepep_coefficients_come_back(tmp_path: Path) -> None:
    truth: dict[Name, float] = {
        ("deepep-normal", "eta_up"): 0.55,
        ("deepep-normal", "eta_out"): 0.8,
        ("deepep-normal", "alpha_dispatch"): 40e-6,
        ("deepep-normal", "rate", "dispatch"): 15e9,
        ("deepep-normal", "rate_fabric", "combine"): 12e9,
    }
    rows = timed(deepep_rows(), "deepep-normal", truth, noise=0.02)
    entry = calibrate(saved(rows, tmp_path / "own.csv")).entries["network-deepep-normal"]
    assert entry["eta_up"] == pytest.approx(0.55, rel=0.05)
    assert entry["eta_out"] == pytest.approx(0.8, rel=0.05)
    assert entry["alpha_dispatch"] == pytest.approx(40e-6, rel=0.05)
    assert entry["rate"]["dispatch"] == pytest.approx(15e9, rel=0.05)
    assert entry["rate_fabric"]["combine"] == pytest.approx(12e9, rel=0.05)
    assert entry["residual"]["median"] < 0.02


def test_what_one_domain_cannot_tell_stays_as_shipped(tmp_path: Path) -> None:
    found = calibrate(saved(timed(deepep_rows((1,)), "deepep-normal", {}), tmp_path / "own.csv"))
    entry = found.entries["network-deepep-normal"]
    for name in ("eta_out", "rate_fabric.dispatch", "rate_fabric.combine", "alpha_doubling"):
        assert entry["kept"][name] == "no row depends on it"
    assert "eta_out" not in entry
    assert "rate_fabric" not in entry
    assert any("as shipped" in note and "eta_out" in note for note in found.notes)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    path = saved(timed(nccl_rows(), "nccl-domain", NCCL, noise=0.03), tmp_path / "own.csv")
    first, second = (calibrate(path, tmp_path / name, name="mine", date="2026-01-02") for name in ("a.yaml", "b.yaml"))
    assert first.path is not None
    assert second.path is not None
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.path.read_text().startswith("# Calibration mine")
    source = first.entries["network-nccl-domain"]["source"]
    assert source["date"] == "2026-01-02"
    assert source["basis"] == "fitted"
    assert [file["name"] for file in source["files"]] == ["own.csv"]


SCENARIO = """
model: mixtral-8x7b
cluster: {{gpu: h100-sxm, gpus: 64, fabric: rail-optimized-400g{calibration}}}
parallelism: {{expert: 8, data_sharding: optimizer}}
workload: {{kind: training, sequence_length: 4096, global_batch: 64, micro_batch: 1}}
routing: {{load: uniform}}
dispatcher: {{kind: nccl-all-to-all}}
"""


def test_a_scenario_answers_with_the_calibration_it_names(tmp_path: Path) -> None:
    half = {("nccl-domain", "eta"): law("nccl-domain").value("eta") / 2}
    path = saved(timed(nccl_rows(), "nccl-domain", half), tmp_path / "own.csv")
    calibrate(path, tmp_path / "own.yaml")
    (tmp_path / "shipped.yml").write_text(SCENARIO.format(calibration=""))
    (tmp_path / "measured.yml").write_text(SCENARIO.format(calibration=", calibration: own.yaml"))
    times = [
        moesim.estimate(moesim.load(tmp_path / name)).summary["dispatch_time"].value
        for name in ("shipped.yml", "measured.yml")
    ]
    assert 1.5 < times[1] / times[0] < 2.05
    assert law("nccl-domain", str(tmp_path / "own.yaml")).value("eta") == pytest.approx(
        half["nccl-domain", "eta"], 0.01
    )
    catalog.measured("own.yaml", tmp_path)


def test_a_gemm_table_of_one_gpu_answers_for_that_gpu(tmp_path: Path) -> None:
    gpu = catalog.load("gpus", "h200-sxm")
    sizes = [(m, n, 4096) for m in (16, 256, 1024, 4096, 8192) for n in (2048, 4096, 8192, 16384)]
    rows = [
        {"kind": "gemm", "gpu": "h200-sxm", "software": "torch 2.9", "source": "made", "m": m, "n": n, "k": k,
         "dtype": "bf16", "repeats": 9, "spread": 0.02, "time": 2 * float(gemm_time(gpu, m, n, k, "bf16").seconds)}
        for m, n, k in sizes
    ]  # fmt: skip
    found = calibrate(saved(rows, tmp_path / "gemm.csv"), tmp_path / "own.yaml")
    entry = found.entries["kernel-gemm"]
    assert list(entry["coefficients"]) == ["h200-sxm"]
    assert entry["noise"] == {"repeats": 0.02}
    measured = str(tmp_path / "own.yaml")
    for m, n, k in sizes:
        ratio = gemm_time(gpu, m, n, k, "bf16", measured).seconds / gemm_time(gpu, m, n, k, "bf16").seconds
        assert 1.6 < ratio < 2.4


def test_no_usable_row_is_the_users_mistake(tmp_path: Path) -> None:
    rows = timed(nccl_rows(), "nccl-domain", {})
    few = saved(rows[:6], tmp_path / "few.csv")
    with pytest.raises(UserError, match=r"no row can be used.*6 rows, fewer than are needed for its 8"):
        calibrate(few)
    slow = saved(rows.assign(time=rows["time"] * 1e3), tmp_path / "milliseconds.csv")
    with pytest.raises(UserError, match=r"1e\+03 times as long.*seconds"):
        calibrate(slow)
    unknown = saved(rows.assign(gpu="cpu"), tmp_path / "cpu.csv")
    with pytest.raises(UserError, match="gpu 'cpu' is not in the catalog"):
        calibrate(unknown)
    other = saved(rows.assign(library="gloo"), tmp_path / "gloo.csv")
    with pytest.raises(UserError, match=r"gloo.*no law"):
        calibrate(other)
    with pytest.raises(UserError, match="at least one"):
        calibrate([])


def test_a_law_with_too_few_rows_is_left_out_and_told(tmp_path: Path) -> None:
    both = pd.concat([timed(nccl_rows(), "nccl-domain", {}), timed(deepep_rows(), "deepep-normal", {})[:5]])
    found = calibrate(saved(both, tmp_path / "own.csv"), tmp_path / "own.yaml")
    assert set(found.entries) == {"network-nccl-domain"}
    assert "5 rows" in found.left_out["network-deepep-normal"]
    assert "# Not fitted: network-deepep-normal: 5 rows" in (tmp_path / "own.yaml").read_text()
    assert found.as_dict()["left_out"] == found.left_out


def test_an_operation_measured_often_counts_once() -> None:
    rows = pd.DataFrame(
        {"kind": "gemm", "gpu": "g", "m": [1, 1, 2], "software": ["a", "b", "a"], "time": [1.0, 1.2, 5.0]}
    )
    assert weights(rows).tolist() == [0.5, 0.5, 1.0]
    told = noise(rows)
    assert told["releases"] == pytest.approx(0.2)


def test_residuals_by_hand() -> None:
    miss = residual(np.array([1.1, 0.8, 1.0]), np.ones(3))
    assert (miss.median, miss.bias, miss.rows) == (0.1, 0.0, 3)
    assert miss.p90 == pytest.approx(0.18)


@needs_shared
@pytest.mark.parametrize(
    ("name", "file", "part", "tolerance"),
    [
        ("nccl-domain", "aic_nccl_collectives.csv", 2, 0.15),
        ("deepep-normal", "aic_deepep_normal.csv", 2, 0.15),
        ("deepep-low-latency", "aic_deepep_ll.csv", 1, 0.1),
        ("one-sided-nvl", "aic_trtllm_alltoall_gb200.csv", 1, 0.1),
        ("two-sided-nvl", "aic_trtllm_alltoall_gb200.csv", 1, 0.1),
        ("custom-all-reduce", "aic_custom_allreduce.csv", 1, 0.15),
    ],
)
def test_a_fit_of_the_published_rows_is_what_is_shipped(name: str, file: str, part: int, tolerance: float) -> None:
    """Every coefficient that the rows determine, on every `part`-th of them, with misses no larger than as shipped."""
    rows = read([SHARED / file]).rows
    rows = rows[LAWS[name].takes(rows)][::part]
    found = network_fit.fit(LAWS[name], rows)
    assert not isinstance(found, str)
    for (entry, *path), value in found.values.items():
        if path[-1] not in ("all_to_all_hop", "combine_copies", "base"):
            assert value == pytest.approx(law(entry).value(*path), rel=tolerance), path
    assert found.residual.p90 <= found.shipped.p90 + 0.01


@needs_shared
@pytest.mark.parametrize(
    ("name", "file", "fitted", "judged", "median", "ninth"),
    [
        ("deepep-low-latency", "aic_deepep_ll.csv", (8, 16), 32, 0.04, 0.11),
        ("one-sided-nvl", "aic_trtllm_alltoall_gb200.csv", (2, 4, 8), 16, 0.045, 0.12),
        ("two-sided-nvl", "aic_trtllm_alltoall_gb200.csv", (2, 4, 8), 16, 0.06, 0.12),
        ("deepep-normal", "aic_deepep_normal.csv", (8, 16), 32, 0.1, 0.19),
        ("nccl-domain", "aic_nccl_collectives.csv", (2,), 8, 0.11, 0.24),
    ],
)
def test_a_fit_carries_over_to_a_scale_that_it_has_not_seen(
    name: str, file: str, fitted: tuple[int, ...], judged: int, median: float, ninth: float
) -> None:
    rows = read([SHARED / file]).rows
    rows = rows[LAWS[name].takes(rows)]
    found = network_fit.fit(LAWS[name], rows[rows["ranks"].isin(fitted)])
    assert not isinstance(found, str)
    miss = network_fit.judge(LAWS[name], rows[rows["ranks"] == judged], found.values)
    assert miss.median <= median
    assert miss.p90 <= ninth
