"""`measure gpu` on a processor: it computes what it should, times are sane, a run that ends early keeps what it has."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import hears, interrupt

from moesim.calibration import tables
from moesim.errors import UnknownNameError, UserError
from moesim.measurement.columns import COLUMNS, write
from moesim.measurement.outcome import Measured, Progress
from moesim.measurement.plan import KINDS, Case, cases

torch = pytest.importorskip("torch", reason="torch is not installed (extra `trace`)")

from moesim.measurement import torch_device, torch_gpu, torch_matrices, torch_products, torch_timer  # noqa: E402
from moesim.measurement.torch_gpu import _PREPARE, measure_gpu  # noqa: E402
from moesim.measurement.torch_inputs import Inputs  # noqa: E402
from moesim.randomness import Streams  # noqa: E402

CPU = torch.device("cpu")
SMALL = torch_device.Limits(memory=1 << 30, cache=1 << 20, most=3)
LAYER = {"tokens": 40, "hidden": 32, "inter": 48, "top_k": 2, "experts": 8, "expert_tensor": 1, "dtype": "fp32"}


def prepared(case: Case, seed: int = 0) -> Any:
    with torch.no_grad():
        return _PREPARE[case.kind](case.op, Inputs(case.label, CPU, Streams(seed), SMALL))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure_gpu(tmp_path_factory.mktemp("measured") / "file.csv", "small", seconds=4.0, device="cpu")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_short_run_times_every_kind(measured: Measured) -> None:
    assert measured.path is not None
    rows = rows_of(measured.path)
    assert {row["kind"] for row in rows} == set(KINDS)
    assert len(rows) == len(measured.rows)
    assert not measured.skipped
    assert measured.ended in ("finished", "out of time")
    assert len(rows) + measured.left == len(cases("small"))
    for row in rows:
        filled = {name for name in COLUMNS[row["kind"]] if row[name]}
        assert filled >= set(COLUMNS[row["kind"]]) - ({"rows"} if row["kind"] != "expert_gemm" else set())
        assert float(row["time"]) > 0
        assert float(row["spread"]) >= 0
        assert int(row["repeats"]) >= 3
        assert row["gpu"].startswith("cpu (")
        assert row["software"].startswith("torch ")
        assert "preset small, seed 0" in row["source"]


def test_calibration_reads_the_file(measured: Measured, tmp_path: Path) -> None:
    """As if a GPU of the catalog had been timed: every row is understood and kept."""
    for name in ("file.csv", "file.parquet"):
        path = write([row | {"gpu": "h200-sxm"} for row in measured.rows], tmp_path / name)
        read = tables.read([path])
        assert read.files[0].format == "moesim"
        assert not read.files[0].left_out
        assert read.rows["time"].tolist() == pytest.approx([row["time"] for row in measured.rows])


def test_times_are_in_seconds() -> None:
    """Bounds that a wrong unit or a wrong count breaks, and a busy machine does not."""
    plan = [
        Case("gemm", {"m": 512, "n": 512, "k": 512, "dtype": "fp32"}),
        Case("memory_bound", {"what": "copy", "elements": 1 << 21, "dtype": "fp32"}),
        Case("launch", {"what": "stream"}),
    ]
    gemm, copy, launch = measure_gpu(None, plan, seconds=2.0, device="cpu").rows
    assert 1e8 < 2 * 512**3 / gemm["time"] < 5e12
    assert 1e8 < 2 * 4 * (1 << 21) / copy["time"] < 1e12
    assert 1e-7 < launch["time"] < 1e-3


GPU_PASSES = [
    Case("memory_bound", {"what": "cast", "elements": 4096, "dtype": "fp8"}),
    Case("memory_bound", {"what": "optimizer", "elements": 4096, "dtype": "bf16"}),
    Case("gemm", {"m": 16, "n": 32, "k": 64, "dtype": "fp8"}),
    Case("expert_gemm", LAYER | {"expert_parallel": 2, "load": "uniform", "dtype": "bf16"}),
]


@pytest.mark.parametrize("case", [*cases("small"), *GPU_PASSES], ids=lambda case: case.label)
def test_every_case_runs_with_every_set_of_its_inputs(case: Case) -> None:
    found = prepared(case)
    for call in found.calls:
        assert call() is not None or case.op["what"] == "optimizer"
    assert 1 <= len(found.calls) <= SMALL.most


def test_a_case_that_overflows_the_cache_by_itself_needs_one_set() -> None:
    inputs = Inputs("any", CPU, Streams(0), SMALL)
    assert inputs.sets(4 * SMALL.cache) == 1
    assert inputs.sets(SMALL.cache) == 3
    assert inputs.sets(1) == SMALL.most
    assert inputs.sets(1, SMALL.memory // 2) == 2
    with pytest.raises(UserError, match=r"needs 2\.1 GB, and 1\.1 GB are free"):
        inputs.sets(2 * SMALL.memory)


@pytest.mark.parametrize("parallel", [1, 4])
def test_the_expert_layer_computes_what_a_loop_over_tokens_does(parallel: int) -> None:
    op = LAYER | {"expert_parallel": parallel, "load": "power_law_1.2"}
    case = Case("expert_gemm", op)
    found = prepared(case)
    rows = json.loads(found.columns["rows"])
    assert len(rows) == 8 // parallel
    assert parallel > 1 or sum(rows) == 80
    inputs = Inputs(case.label, CPU, Streams(0), SMALL)
    with torch.no_grad():
        layer = torch_matrices._layer(op, inputs, torch_products.grouped("fp32", CPU), rows, 0)
    ends = np.cumsum(rows)
    expected = torch.zeros(40, 32)
    for token, (places, shares) in enumerate(zip(layer.place.tolist(), layer.share, strict=True)):
        for place, share in zip(places, shares, strict=True):
            if place == layer.token.numel() - 1:
                continue
            assert layer.token[place] == token
            expert = int(np.searchsorted(ends, place, side="right"))
            hidden = torch_matrices.gated(layer.one[expert] @ layer.x[token])
            expected[token] += share * (layer.two[expert] @ hidden)
    torch.testing.assert_close(found.calls[0](), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "tokens", "top_k"), [([4, 4], 4, 2), ([3, 0, 5, 1], 7, 2), ([1], 9, 3), ([6, 6], 6, 2)]
)
def test_every_row_has_its_token_and_every_token_its_rows(rows: list[int], tokens: int, top_k: int) -> None:
    token, place = torch_matrices.places(rows, tokens, top_k, np.random.default_rng(0))
    none = token.size - 1
    assert token.size % torch_matrices.ALIGNED == 0
    assert none >= sum(rows)
    assert sorted(place[place != none].tolist()) == list(range(sum(rows)))
    for at, mine in enumerate(place):
        assert (token[mine[mine != none]] == at).all()
    for begin, count in zip(np.cumsum([0, *rows[:-1]]), rows, strict=True):
        assert len(set(token[begin : begin + count].tolist())) == count


def test_both_ways_to_multiply_rows_of_experts_are_proven_and_a_wrong_one_is_not() -> None:
    ways = torch_products._grouped_ways("fp32", CPU)
    assert ways[-1].kernel == "torch mm, expert by expert"
    for way in ways:
        torch_products._prove_grouped("fp32", CPU, way)
    wrong = torch_products.Grouped("wrong", ways[0].cast, ways[0].scales, lambda x, w, *_: x @ w[0].t(), casts=False)
    with pytest.raises(torch_products.CannotTimeError, match="wrong numbers"):
        torch_products._prove_grouped("fp32", CPU, wrong)
    absent = torch_products.Grouped("absent", ways[0].cast, ways[0].scales, lambda *_: torch.nonsense(), casts=False)
    with pytest.raises(AttributeError):
        torch_products._prove_grouped("fp32", CPU, absent)


def test_backward_gives_the_gradients_of_queries_keys_and_values() -> None:
    op = {"tokens": 32, "length": 16, "heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 8, "causal": True}
    found = prepared(Case("attention", op | {"direction": "backward", "dtype": "fp32"}))
    shapes = [tuple(gradient.shape) for gradient in found.calls[0]()]
    assert shapes == [(2, 4, 16, 8), (2, 2, 16, 8), (2, 2, 16, 8)]
    assert not found.graph


def test_inputs_depend_on_the_seed_and_the_case_alone() -> None:
    case = Case("gemm", {"m": 8, "n": 4, "k": 16, "dtype": "fp32"})
    one, two, other = (prepared(case, seed).calls for seed in (5, 5, 6))
    assert torch.equal(one[0](), two[0]())
    assert torch.equal(one[1](), two[1]())
    assert not torch.equal(one[0](), one[1]())
    assert not torch.equal(one[0](), other[0]())
    layer = Case("expert_gemm", LAYER | {"expert_parallel": 1, "load": "power_law_1.2"})
    texts = [prepared(layer, seed).columns["rows"] for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    told: list[Progress] = []

    def progress(now: Progress) -> None:
        told.append(now)
        if now.done == 3:
            raise KeyboardInterrupt

    found = measure_gpu(tmp_path / "file.csv", "small", 5.0, "cpu", progress=progress)
    assert (found.ended, len(found.rows), found.left) == ("interrupted", 3, len(cases("small")) - 2)
    assert len(rows_of(tmp_path / "file.csv")) == 3
    assert [now.done for now in told] == [1, 2, 3]
    assert "interrupted" in found.summary()


def test_a_run_out_of_time_tells_what_it_did_not_come_to(tmp_path: Path) -> None:
    found = measure_gpu(tmp_path / "file.csv", "small", 0.05, "cpu")
    assert found.ended == "out of time"
    assert found.left == len(cases("small")) - len(found.rows) > 0
    assert f"{found.left} cases were not come to" in found.summary()


def test_what_cannot_be_timed_is_skipped_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def exhausted(op: Any, inputs: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setitem(torch_gpu._PREPARE, "launch", exhausted)
    plan = [
        Case("launch", {"what": "stream"}),
        Case("gemm", {"m": 1 << 20, "n": 1 << 20, "k": 1 << 20, "dtype": "fp32"}),
        Case("gemm", {"m": 8, "n": 8, "k": 8, "dtype": "nvfp4"}),
        Case("gemm", {"m": 8, "n": 8, "dtype": "fp32"}),
        Case("memory_bound", {"what": "host-to-device", "elements": 8, "dtype": "fp32"}),
        Case("memory_bound", {"what": "dance", "elements": 8, "dtype": "fp32"}),
        Case("routing", {}),
        Case("gemm", {"m": 8, "n": 8, "k": 8, "dtype": "fp32"}),
    ]
    found = measure_gpu(tmp_path / "file.csv", plan, 2.0, "cpu")
    reasons = [entry.reason for entry in found.skipped]
    expected = ["out of memory", "GB are free", "nvfp4", "does not say 'k'", "no link", "'dance'", "no timing of kind"]
    assert len(reasons) == len(expected)
    assert all(part in reason for part, reason in zip(expected, reasons, strict=True))
    assert len(found.rows) == 1
    with pytest.raises(UserError, match="nothing could be timed: launch what stream: out of memory"):
        measure_gpu(None, plan[:1], 2.0, "cpu")


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"preset": "large"}, UnknownNameError, "preset"),
        ({"preset": []}, UserError, "no case"),
        ({"seconds": 0}, UserError, "seconds is 0"),
        ({"seconds": float("nan")}, UserError, "positive"),
        ({"device": "mps"}, UserError, "only cuda and cpu"),
        ({"device": "gpu"}, UserError, "allowed: cuda, cuda:N, cpu"),
        ({"output": "file.txt"}, UserError, "ends in .csv or .parquet"),
        ({"output": "nowhere/at/all.csv"}, UserError, "there is no folder"),
    ],
)
def test_a_bad_argument_is_one_clear_message(given: dict[str, Any], error: type[UserError], told: str) -> None:
    with pytest.raises(error, match=told) as found:
        measure_gpu(**({"device": "cpu", "seconds": 1.0} | given))
    assert "\n" not in str(found.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="no CUDA device here"):
        measure_gpu(device="cuda")


def test_the_median_and_the_spread_are_those_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that tells 1 ms a call, and 3 ms for every fifth sample."""
    samples = iter([1e-3] + [1e-3, 1e-3, 1e-3, 1e-3, 3e-3] * 40)
    monkeypatch.setattr(torch_timer, "_on_processor", lambda run: next(samples))
    timer = torch_timer.Timer(CPU, 1.0)
    monkeypatch.setattr(timer, "_guess", lambda calls: 1e-3)
    found = timer.time([lambda: None])
    assert found.time == pytest.approx(1e-3)
    assert found.spread == pytest.approx(1.0)
    assert found.repeats == torch_timer.MOST_SAMPLES
    assert not found.graph


def test_the_clock_is_that_of_the_rows_own_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nfor i in 1 2 3; do echo '1980, 650.5'; done\necho 'N/A, 1'\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr(torch_device, "_command", lambda device, fields: [str(tool)])
    with torch_device.ClockWatch(CPU) as watch:
        for _ in range(100):
            if len(watch._samples) == 3:
                break
            torch_timer.time.sleep(0.05)
        assert watch.since(0.0) == (1980e6, 650.5)
        assert watch.since(1e12) == (1980e6, 650.5)
        process = watch._process
    assert process is not None
    assert process.poll() is not None


def test_without_a_tool_there_is_no_clock() -> None:
    with torch_device.ClockWatch(CPU) as watch:
        assert watch.since(0.0) == (None, None)


def run_alone(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=hears,
    )


def test_it_runs_where_only_torch_and_numpy_are_and_a_signal_ends_it(tmp_path: Path) -> None:
    missing = ("pydantic", "pandas", "pyarrow", "yaml", "numba", "scipy", "typer", "rich", "altair")
    program = (
        f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
        "from moesim.measurement.__main__ import main\nsys.exit(main())\n"
    )
    path = tmp_path / "file.csv"
    process = run_alone(program, "gpu", "--device", "cpu", "--preset", "small", "--seconds", "60", str(path))
    assert process.stderr is not None
    for _ in range(2):
        assert "us " in process.stderr.readline()
    out, _ = interrupt(process)
    assert process.returncode == 130
    assert "interrupted" in out
    assert len(rows_of(path)) >= 2


def test_without_torch_it_is_said_what_to_install() -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom moesim.measurement.__main__ import main\nsys.exit(main())\n"
    )
    process = run_alone(program, "gpu", "file.csv")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert error == "Error: timing kernels and collectives needs torch: pip install 'moesim[trace]'\n"


def test_alone_it_refuses_one_process_for_collectives() -> None:
    process = run_alone(
        "from moesim.measurement.__main__ import main\nimport sys\nsys.exit(main())\n", "collectives", "x.csv"
    )
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert error.startswith("Error: there is nobody to exchange with: this is one process")
    assert error.count("\n") == 1
