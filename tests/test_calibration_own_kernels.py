"""Attention, memory-bound passes and launches of a user's own table: shares and starts come back and answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_fixture import saved

from moesim import catalog
from moesim.calibration import calibrate
from moesim.costs.kernels import attention_time, launch_time, memory_bound_time
from moesim.costs.kernels.choice import choose
from moesim.errors import UserError

GPU = catalog.load("gpus", "h200-sxm")
COMMON: dict[str, Any] = {"gpu": "h200-sxm", "software": "torch 2.9", "source": "made", "repeats": 9, "spread": 0.01}


def test_attention_shares_come_back(tmp_path: Path) -> None:
    """Rows bound by products, timed at 0.7 of the shipped law's rate."""
    shapes = [(length, heads) for length in (4096, 8192, 16384, 32768) for heads in (32, 64)]
    rows = []
    for direction in ("forward", "backward"):
        for length, heads in shapes:
            shape = (length, length, heads, 8, 128, 128)
            shipped = attention_time(GPU, *shape, True, direction, "bf16")
            words = dict(zip(("tokens", "length", "heads", "kv_heads", "head_dim", "value_dim"), shape, strict=True))
            time = float(shipped.seconds) / 0.7
            rows.append({**COMMON, "kind": "attention", **words, "causal": True, "direction": direction,
                         "dtype": "bf16", "time": time})  # fmt: skip
    found = calibrate(saved(rows, tmp_path / "own.csv"), tmp_path / "own.yaml")
    numbers = found.entries["kernel-attention"]["coefficients"]["h200-sxm"]["bf16"]
    shipped_values = choose("kernel-attention", GPU, "bf16").values
    for direction in ("forward", "backward"):
        assert numbers[direction] == pytest.approx(0.7 * shipped_values[direction], rel=0.05)
    measured = str(tmp_path / "own.yaml")
    for row in rows:
        sizes = [row[name] for name in ("tokens", "length", "heads", "kv_heads", "head_dim", "value_dim")]
        answer = attention_time(GPU, *sizes, True, row["direction"], "bf16", measured)
        assert float(answer.seconds) == pytest.approx(row["time"], rel=0.03)
        assert answer.basis == "fitted"


def test_passes_and_launches_come_back(tmp_path: Path) -> None:
    elements = np.geomspace(1e4, 1e9, 12)
    rows: list[dict[str, Any]] = [{**COMMON, "kind": "launch", "time": time} for time in (4e-6, 5e-6, 30e-6)]
    for what in ("copy", "norm"):
        each = 2 * 2.0
        for count in elements.round():
            time = 9e-6 + count * each / (GPU.memory_bandwidth * 0.6)
            rows.append({**COMMON, "kind": "memory_bound", "what": what, "elements": count, "dtype": "bf16",
                         "time": time})  # fmt: skip
    found = calibrate(saved(rows, tmp_path / "own.csv"), tmp_path / "own.yaml")
    numbers = found.entries["kernel-passes"]["coefficients"]["h200-sxm"]["bf16"]
    assert numbers["launch"]["base"] == 5e-6
    for what in ("copy", "norm"):
        assert numbers[what]["memory"] == pytest.approx(0.6, rel=0.01)
        assert numbers[what]["base"] == pytest.approx(9e-6, rel=0.01)
    measured = str(tmp_path / "own.yaml")
    assert launch_time(GPU, measured).seconds == 5e-6
    big = memory_bound_time(GPU, "norm", 1e9, "bf16", measured)
    assert float(big.seconds) == pytest.approx(9e-6 + 4e9 / (GPU.memory_bandwidth * 0.6), rel=0.01)
    assert big.basis == "fitted"
    assert float(memory_bound_time(GPU, "cast", 1e9, "bf16", measured).seconds) == pytest.approx(
        float(memory_bound_time(GPU, "cast", 1e9, "bf16").seconds)
    )


def test_a_pass_that_no_law_takes_is_told(tmp_path: Path) -> None:
    rows = [{**COMMON, "kind": "launch", "time": 4e-6}] * 3 + [
        {**COMMON, "kind": "memory_bound", "what": "juggle", "elements": 10.0**power, "dtype": "bf16", "time": 1e-5}
        for power in (3, 4, 5)
    ]
    found = calibrate(saved(rows, tmp_path / "own.csv"))
    assert found.left_out == {"kernel-passes h200-sxm bf16 juggle": "3 rows of a pass that no law takes"}
    assert list(found.entries) == ["kernel-passes"]


@pytest.mark.parametrize(("kind", "words"), [("launch", {}), ("memory_bound", {"what": "copy", "elements": 10**8})])
def test_milliseconds_for_seconds_are_refused(tmp_path: Path, kind: str, words: dict[str, Any]) -> None:
    rows = [{**COMMON, "kind": kind, "dtype": "bf16", **words, "time": 0.3 * (1 + n / 10)} for n in range(4)]
    with pytest.raises(UserError, match="check their unit"):
        calibrate(saved(rows, tmp_path / "own.csv"), tmp_path / "own.yaml")


def test_what_the_rows_do_not_tell_is_noted(tmp_path: Path) -> None:
    """Small copies alone tell the start of a kernel, not the bandwidth."""
    rows = [{**COMMON, "kind": "memory_bound", "what": "copy", "elements": 10 + n, "dtype": "bf16", "time": 9e-6}
            for n in range(6)]  # fmt: skip
    found = calibrate(saved(rows, tmp_path / "own.csv"), tmp_path / "own.yaml")
    assert any("kernel-passes" in note and "as shipped" in note and "memory" in note for note in found.notes)
