"""A serving result as files, tables, pages and pictures, and the verbs that make them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import vl_convert
from serving_fixture import SERVED, scenario

import moesim
from moesim.columns import ITERATIONS, REQUESTS, SERVING
from moesim.errors import FileError
from moesim.serving.report import write_serving_html
from moesim.serving.result import ServingResult
from moesim.serving.table import GROUPS, serving_rows

PICTURES = ("latency", "batch", "kv_cache", "imbalance", "breakdown", "memory")


@pytest.fixture(scope="module")
def result() -> ServingResult:
    return moesim.simulate(scenario())


def test_every_column_and_metric_is_documented(result: ServingResult) -> None:
    assert set(result.requests.columns) == set(REQUESTS)
    assert set(result.iterations.columns) == set(ITERATIONS)
    estimated = moesim.estimate(scenario())
    for found in (result, estimated):
        assert set(found.summary) <= set(SERVING)
        for name, quantity in found.summary.items():
            assert quantity.unit == SERVING[name].unit, name
    assert {name for members in GROUPS.values() for name in members} == set(SERVING)
    off_loaded = {"expert_cache_hit_fraction", "expert_fetch_fraction", "host_memory_per_gpu"}
    assert {row.name for row in serving_rows(result)} == set(SERVING) - off_loaded


def test_same_scenario_same_bytes(result: ServingResult, tmp_path: Path) -> None:
    again = moesim.simulate(scenario())
    first, second = (moesim.save(one, tmp_path / name) for one, name in ((result, "a"), (again, "b")))
    assert [path.name for path in first] == ["requests.parquet", "iterations.parquet", "report.html", "result.json"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_result_comes_back_whole(result: ServingResult, tmp_path: Path) -> None:
    moesim.save(result, tmp_path)
    back = moesim.load_result(tmp_path)
    assert isinstance(back, ServingResult)
    assert back.as_dict() == result.as_dict()
    pd.testing.assert_frame_equal(back.requests, result.requests, check_dtype=False)
    pd.testing.assert_frame_equal(
        back.iterations[list(ITERATIONS)], result.iterations[list(ITERATIONS)], check_dtype=False
    )


def test_a_table_of_another_run_is_refused(result: ServingResult, tmp_path: Path) -> None:
    moesim.save(result, tmp_path)
    table = tmp_path / "requests.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(FileError, match="changed, cut"):
        moesim.load_result(tmp_path)
    document = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    (tmp_path / "result.json").write_text(json.dumps({**document, "surprise": 1}), encoding="utf-8")
    with pytest.raises(FileError, match="surprise"):
        moesim.load_result(tmp_path)


def test_one_folder_holds_one_result(result: ServingResult, tmp_path: Path) -> None:
    """A serving result replaces a training one and leaves none of its files."""
    for name in ("operations.parquet", "timeline.json", "routing.parquet"):
        (tmp_path / name).write_text("of an earlier result", encoding="utf-8")
    moesim.save(result, tmp_path)
    assert not (tmp_path / "operations.parquet").exists()
    assert not (tmp_path / "timeline.json").exists()


def test_the_page_is_whole_and_escapes_the_user(result: ServingResult) -> None:
    page = write_serving_html(replace(result, question="<script>alert(1)</script>"))
    assert "<script>alert" not in page
    for heading in ("Summary", "Latency", "Batch", "KV cache", "Imbalance", "Iterations", "Memory", "Scenario"):
        assert f"<h2>{heading}</h2>" in page
    assert write_serving_html(moesim.estimate(scenario()))


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_draws(name: str, result: ServingResult) -> None:
    for found in (result, moesim.estimate(scenario())):
        spec = getattr(found.charts, name)().to_dict()
        assert vl_convert.vegalite_to_svg(spec).startswith("<svg")
        assert spec == getattr(found.charts, name)().to_dict()


def _run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moesim", *map(str, arguments)]
    wide = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, env=wide)


def test_the_verbs(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SERVED), encoding="utf-8")
    told = _run("simulate", path, "--out", "out", "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["summary"]["time_to_first_token"]["value"] > 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "requests.parquet", "iterations.parquet", "report.html", "result.json",
    }  # fmt: skip
    table = _run("estimate", path, cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    assert "output tokens per second per GPU" in table.stdout
    compared = _run("compare", path, "out", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
