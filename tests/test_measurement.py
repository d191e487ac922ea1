"""Measurement tables, the names of GPUs, loads and presets: what needs no torch."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from moesim import catalog
from moesim.errors import FileError, UnknownNameError, UserError
from moesim.measurement import loads
from moesim.measurement.columns import COLUMNS, COMMON, DETAILS, ELEMENTS, column, names, write
from moesim.measurement.names import catalog_gpu
from moesim.measurement.plan import KINDS, PRESETS, cases

GEMM = {"kind": "gemm", "gpu": "h200-sxm", "time": 1.25e-5, "m": 128, "n": 4096, "k": 7168, "dtype": "bf16"}
EXPERTS = {"kind": "expert_gemm", "gpu": "h200-sxm", "time": 2e-3, "repeats": np.int64(9), "rows": "[3,0,5]"}
ATTENTION = {"kind": "attention", "gpu": "h200-sxm", "time": 0.5, "causal": True, "my_note": "kept"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_comes_back_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    path = write([GEMM, EXPERTS, ATTENTION], tmp_path / f"file{suffix}")
    table = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    assert list(table.columns[: len(COMMON)]) == list(COMMON)
    assert table["time"].tolist() == [1.25e-5, 2e-3, 0.5]
    assert table["m"].iloc[0] == 128
    assert table["m"].isna().tolist() == [False, True, True]
    assert json.loads(table["rows"].iloc[1]) == [3, 0, 5]
    assert bool(table["causal"].iloc[2]) is True
    assert table["my_note"].iloc[2] == "kept"
    assert not list(tmp_path.glob("*.unfinished"))


def test_what_pandas_read_can_be_written_again(tmp_path: Path) -> None:
    first = write([GEMM | {"bytes": 17179869184}, EXPERTS], tmp_path / "one.csv")
    for name in ("two.csv", "two.parquet"):
        second = write(pd.read_csv(first), tmp_path / name)
        again = pd.read_csv(second) if name.endswith("csv") else pd.read_parquet(second)
        assert again["bytes"].iloc[0] == 17179869184
    assert first.read_text() == (tmp_path / "two.csv").read_text()


def test_parquet_says_unit_and_meaning(tmp_path: Path) -> None:
    schema = parquet.read_schema(write([GEMM], tmp_path / "file.parquet"))
    assert schema.field("time").metadata == {b"unit": b"s", b"meaning": COMMON["time"].meaning.encode()}
    assert str(schema.field("m").type) == "int64"


@pytest.mark.parametrize(
    ("table", "name", "told"),
    [
        ([], "file.csv", "no rows"),
        ([GEMM | {"kind": "gem"}], "file.csv", "unknown kind 'gem'"),
        ([GEMM, {"kind": "launch"}], "file.csv", "row 2: time is None"),
        ([GEMM | {"time": -1.0}], "file.csv", "positive number of seconds"),
        ([GEMM | {"time": float("inf")}], "file.csv", "positive number of seconds"),
        ([GEMM | {"m": "many"}], "file.parquet", "column 'm'"),
        ([GEMM], "file.txt", "ends in .csv or .parquet"),
        ([GEMM], "nowhere/file.csv", "No such file"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path: Path, table: list[Any], name: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        write(table, tmp_path / name)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    path = write([GEMM], tmp_path / "file.csv")
    before = path.read_bytes()
    with pytest.raises(UserError):
        write([GEMM | {"time": 0}], path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileError, match="folder"):
        write([GEMM], tmp_path / "folder.csv")
    assert path.read_bytes() == before


def test_every_column_has_a_type_and_a_meaning() -> None:
    assert len(names()) == len(set(names()))
    for name in names():
        known = column(name)
        assert known is not None
        assert known.meaning
        assert known.dtype in {"str", "int64", "float64", "bool"}
    assert column("nonsense") is None
    assert set(KINDS) <= set(COLUMNS)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80g"),
        ("NVIDIA B200", "b200-sxm"),
        ("NVIDIA GB200", "gb200-nvl72"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-server"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("cpu (x86_64)", None),
        ("", None),
    ],
)
def test_a_gpu_is_called_by_its_catalog_name_and_never_by_another(driver: str, name: str | None) -> None:
    assert catalog_gpu(driver) == name
    assert name is None or name in catalog.names("gpus")


@pytest.mark.parametrize("load", ["balanced", "uniform", "power_law_1.2", "power_law_1.0", "power_law_0.6"])
@pytest.mark.parametrize(("tokens", "top_k", "experts"), [(1, 8, 256), (16, 2, 8), (300, 8, 64), (5, 4, 4)])
def test_rows_of_experts_add_up(load: str, tokens: int, top_k: int, experts: int) -> None:
    rows = [loads.expert_rows(load, tokens, top_k, experts, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert rows[0].sum() == tokens * top_k
    assert rows[0].min() >= 0
    assert rows[0].max() <= tokens
    assert np.array_equal(rows[0], rows[1])


def test_the_power_law_is_as_uneven_as_its_authors_draw_it() -> None:
    """Max/mean of 256 experts, top 8, 4,096 tokens: 8.2 at 1.01 and 15.2 at 1.2, 200 draws of aiconfigurator's."""
    for load, expected in (("power_law_1.01", 8.2), ("power_law_1.2", 15.2)):
        draws = [loads.expert_rows(load, 4096, 8, 256, np.random.default_rng(seed)) for seed in range(200)]
        assert np.mean([rows.max() / rows.mean() for rows in draws]) == pytest.approx(expected, rel=0.08)


def test_the_busiest_rank_has_most_rows() -> None:
    assert loads.busiest(np.array([1, 2, 9, 0, 3, 4]), 3).tolist() == [9, 0]
    with pytest.raises(UserError, match="6 experts do not divide over 4"):
        loads.busiest(np.arange(6), 4)


@pytest.mark.parametrize("load", ["zipf", "power_law_", "power_law_-1", ""])
def test_an_unknown_load_is_refused(load: str) -> None:
    with pytest.raises(UserError, match="unknown load"):
        loads.expert_rows(load, 8, 2, 4, np.random.default_rng(0))
    with pytest.raises(UserError, match="unknown load"):
        loads.pair_elements(load, 4, 8, np.random.default_rng(0))


def test_unequal_pairs_have_the_stated_imbalance() -> None:
    rng = np.random.default_rng(0)
    assert (loads.pair_elements("equal", 4, 100, rng) == 100).all()
    hot = loads.pair_elements("hot-rank 4", 16, 1000, rng)
    assert loads.received_imbalance(hot) == pytest.approx(4, rel=1e-3)
    assert np.ptp(hot.sum(axis=1)) == 0
    spread = [loads.received_imbalance(loads.pair_elements(f"log-normal {s}", 16, 10**6, rng)) for s in ("0.2", "1")]
    assert 1 < spread[0] < spread[1]
    assert loads.pair_elements("log-normal 1", 16, 1000, rng).mean() == pytest.approx(1000, rel=1e-2)
    with pytest.raises(UserError, match="hot-rank"):
        loads.pair_elements("hot-rank 5", 4, 100, rng)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_every_kind_early_and_no_case_twice(preset: str) -> None:
    found = cases(preset)
    assert {case.kind for case in found[: len(KINDS)]} == set(KINDS)
    labels = [case.label for case in found]
    assert len(labels) == len(set(labels))
    assert [case.tier for case in found] == sorted(case.tier for case in found)
    for case in found:
        assert set(case.op) <= {*COLUMNS[case.kind], *DETAILS, "what"}
        if case.kind == "memory_bound":
            assert case.op["what"] in ELEMENTS
    assert preset == "small" or {case.op["what"] for case in found if "elements" in case.op} == set(ELEMENTS)


def test_a_preset_may_be_cut_to_kinds() -> None:
    assert {case.kind for case in cases("gpu", ["attention", "launch"])} == {"attention", "launch"}
    with pytest.raises(UnknownNameError, match="nearest: gemm"):
        cases("gpu", ["gem"])
    with pytest.raises(UnknownNameError, match="preset"):
        cases("large")


def test_a_csv_needs_no_other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    with (write([GEMM], tmp_path / "file.csv")).open(newline="") as file:
        assert next(csv.DictReader(file))["k"] == "7168"
    with pytest.raises(ImportError, match="needs pyarrow"):
        write([GEMM], tmp_path / "file.parquet")
