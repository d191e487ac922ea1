"""A calibration file of the user's own: values that no law can take are refused by file, entry and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from moesim import catalog
from moesim.catalog.measured_values import check_values
from moesim.errors import FileError
from moesim.validation.run import validate

GOOD = {"base": 1e-6, "compute": 0.8, "memory": 0.8, "loop": 1e-6, "loop_power": 1.0, "fill": 0.0}


def own(folder: Path, entry: str, content: object) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({entry: content}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"compute": "fast"}, r"compute: expected a finite number, got fast"),
        ({"compute": -3}, r"compute: must be at least 0, got -3"),
        ({"memory": 0}, r"memory: must be above 0"),
        ({"base": float("nan")}, r"base: expected a finite number"),
        ({"loop": True}, r"loop: expected a finite number"),
        ({"fill": -1.0}, r"fill: must be at least 0"),
    ],
)
def test_a_number_that_is_none(tmp_path: Path, wrong: dict[str, object], told: str) -> None:
    own(tmp_path, "kernel-gemm", {"coefficients": {"h100-sxm": {"bf16": {**GOOD, **wrong}}}})
    with pytest.raises(FileError, match=rf"own\.yaml: kernel-gemm\.coefficients\.h100-sxm\.bf16\.{told}"):
        catalog.measured("own.yaml", tmp_path)


def test_a_number_that_is_missing(tmp_path: Path) -> None:
    without = {name: value for name, value in GOOD.items() if name != "compute"}
    path = own(tmp_path, "kernel-gemm", {"coefficients": {"h100-sxm": {"bf16": without}}})
    with pytest.raises(FileError, match=r"bf16\.compute: is required"):
        validate(calibration=str(path))


@pytest.mark.parametrize(
    ("entry", "content", "told"),
    [
        ("network-nccl-domain", {"eta": "much"}, "eta: expected a finite number, got much"),
        ("network-nccl-domain", {"eta": 0.0}, "eta: must be above 0"),
        ("network-nccl-domain", {"valid": 3}, "valid: expected a mapping"),
        ("kernel-gemm", {"coefficients": 3}, "coefficients: expected a mapping"),
        ("training-compute", {"gemm_efficiency": {"hopper": {"bf16": "fast"}}}, "expected a finite number"),
    ],
)
def test_a_value_of_another_kind(tmp_path: Path, entry: str, content: object, told: str) -> None:
    own(tmp_path, entry, content)
    with pytest.raises(FileError, match=told):
        catalog.measured("own.yaml", tmp_path)


def test_what_is_shipped_may_stand_in_a_file(tmp_path: Path) -> None:
    for name in catalog.names("calibrations"):
        check_values(catalog.raw("calibrations", name), catalog.raw("calibrations", name), name)
    path = own(tmp_path, "kernel-gemm", {"coefficients": {"h100-sxm": {"bf16": GOOD}}})
    assert catalog.measured("own.yaml", tmp_path) == path
