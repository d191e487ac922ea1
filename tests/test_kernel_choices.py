"""Whose numbers answer for a kernel and how far they hold, and what is built of several kernels, all by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from moesim import catalog
from moesim.costs import compute
from moesim.costs.kernels import choice, experts, passes
from moesim.costs.kernels.choice import KernelTime, choose
from moesim.costs.kernels.experts import ExpertWork, experts_law
from moesim.costs.kernels.gemm import gemm_efficiency, gemm_time
from moesim.errors import UserError
from moesim.specs.gpu import GpuSpec

H100, H200, A100 = (catalog.load("gpus", name) for name in ("h100-sxm", "h200-sxm", "a100-sxm-80g"))


def nobody(**changes: Any) -> GpuSpec:
    known = {"name": "nobodys", "bf16": 4e14, "memory": 8e10, "memory_bandwidth": 2e12, "power": 400.0}
    return GpuSpec.model_validate({**known, **changes})


def own_shares(path: Path, gpu: str, **shares: float) -> str:
    """A user's calibration file with shares of the peak of isolated products on one GPU."""
    known = choose("kernel-gemm", catalog.load("gpus", gpu), "bf16").values
    sets = {dtype.replace("_", "-"): {**known, "compute": share} for dtype, share in shares.items()}
    path.write_text(yaml.safe_dump({"kernel-gemm": {"coefficients": {gpu: sets}}}))
    return str(path)


def test_measured_products_move_a_training_steps_by_as_much(tmp_path: Path) -> None:
    """In a format measured, on the GPU measured; elsewhere everything is as shipped."""
    alone, step = gemm_efficiency(H100, "bf16"), compute.gemm_efficiency(H100, "bf16")
    own = own_shares(tmp_path / "own.yaml", "h100-sxm", bf16=0.8 * alone)
    assert gemm_efficiency(H100, "bf16", own) == pytest.approx(0.8 * alone)
    assert compute.gemm_efficiency(H100, "bf16", own) == pytest.approx(0.8 * step, rel=1e-12)
    assert compute.gemm_efficiency(H100, "fp16", own) == pytest.approx(0.8 * step, rel=1e-12)
    assert compute.gemm_efficiency(H100, "fp8", own) == compute.gemm_efficiency(H100, "fp8")
    assert compute.gemm_efficiency(A100, "bf16", own) == compute.gemm_efficiency(A100, "bf16")
    found, plain = compute.rates(H100, "bf16", measured=own), compute.rates(H100, "bf16")
    assert found.gemm == pytest.approx(0.8 * plain.gemm)
    fast = own_shares(tmp_path / "fast.yaml", "h100-sxm", bf16=50.0)
    assert compute.gemm_efficiency(H100, "bf16", fast) == compute.coefficients()["gemm_rule_limit"]


def test_measured_products_of_an_unfitted_generation_stand_for_the_rule(tmp_path: Path) -> None:
    mi300x = catalog.load("gpus", "mi300x")
    own = own_shares(tmp_path / "own.yaml", "mi300x", bf16=0.5)
    kept = compute.coefficients()["gemm_rule_training"]["bf16"]
    assert compute.gemm_efficiency(mi300x, "bf16", own) == pytest.approx(0.5 * kept, rel=1e-12)


def test_measured_power_moves_a_fitted_share(tmp_path: Path) -> None:
    """The clock that power sustains and what was measured multiply."""
    gb300 = catalog.load("gpus", "b200-sxm")
    alone, step = gemm_efficiency(gb300, "bf16"), compute.gemm_efficiency(gb300, "bf16")
    assert step != pytest.approx(compute.coefficients()["gemm_efficiency"]["blackwell"]["bf16"], rel=1e-3)
    own = own_shares(tmp_path / "own.yaml", "b200-sxm", bf16=0.9 * alone)
    assert compute.gemm_efficiency(gb300, "bf16", own) == pytest.approx(0.9 * step, rel=1e-12)


@pytest.mark.parametrize("entry", ["kernel-gemm", "kernel-experts"])
@pytest.mark.parametrize(
    ("generation", "power", "known"), [("ada", 350.0, True), ("ada", None, False), ("cdna3", 700.0, False)]
)
def test_a_datasheet_alone(entry: str, generation: str, power: float | None, known: bool) -> None:
    """The wider of what the rule was fitted to and of what was kept apart; doubtful for other makers' GPUs."""
    data = catalog.calibration(entry)
    found = choose(entry, nobody(generation=generation, power=power), "bf16")
    held = max(data["residual_datasheet"]["p90"], data["residual_elsewhere"]["p90"])
    assert found.band == (held if known else data["rule"]["doubtful_band"])
    assert found.band_elsewhere == data["rule"]["doubtful_band"]
    assert found.basis == ("datasheet" if known else "assumed")
    assert found.values["compute"] == choice.datasheet_compute(nobody(power=power), found.kind)
    assert dict(found.valid) == data["rule"]["valid"]
    why = f"by its datasheet alone: no bf16 kernel of {generation} was measured"
    assert found.notes == (why if power else f"{why}; its power is not stated",)


def test_a_sister_of_the_gpus_fitted_is_less_sure() -> None:
    data = catalog.calibration("kernel-gemm")
    own, sister = choose("kernel-gemm", H100, "bf16"), choose("kernel-gemm", H200, "bf16")
    residual = data["coefficients"]["hopper"]["bf16"].get("residual", data["residual"])
    assert own.band == choice.spread(residual)
    assert sister.band == max(own.band, data["residual_elsewhere"]["p90"])
    borrowed = choose("kernel-gemm", H100, "int8")
    assert borrowed.basis == "assumed"
    assert borrowed.band >= data["residual_elsewhere"]["p90"]


def test_an_unknown_kernels_name_is_cut_in_the_note() -> None:
    found = gemm_time(H100, 64, 64, 64, "bf16", kernel="x" * 61)
    assert found.notes[0] == f"kernel {'x' * 60!r} is of no family known: those fitted answer"


def test_only_a_share_of_the_multiprocessors_does_the_arithmetic_of_experts() -> None:
    rows = [512.0, 300.0, 0.0]
    chosen, one = choose("kernel-experts", H100, "bf16"), np.array(1.0)
    work = ExpertWork(np.array(rows), 4096 * one, 1024 * one, 512 * one)
    half = experts_law(chosen.values, work, (chosen.kind, 0.5 * H100.bf16, H100.memory_bandwidth))
    found = experts.experts_time(H100, rows, 4096, 1024, "bf16", 512, free_share=0.5)
    assert found.seconds == pytest.approx(float(half), rel=1e-12)
    two = experts.experts_time(H100, rows, 4096, 1024, "bf16", 512, matrices=2).seconds
    bare = ExpertWork(np.array(rows), 4096 * one, 1024 * one, 512 * one, 2.0)
    assert two == pytest.approx(
        float(experts_law(chosen.values, bare, (chosen.kind, H100.bf16, H100.memory_bandwidth)))
    )
    assert found.notes == ()
    for outside, name in (
        ((1e6, 1024, 512), "hidden"),
        ((4096, 1e6, 512), "inter"),
        ((4096, 1024, 1e6), "presented_tokens"),
    ):
        told = experts.experts_time(H100, rows, *outside[:2], "bf16", outside[2])
        assert told.notes == (f"outside the range of the fit: {name}",)


@pytest.mark.parametrize("rows", [5.0, [-1.0], [float("nan")], [float("inf"), 1.0]])
def test_rows_that_are_none(rows: Any) -> None:
    with pytest.raises(UserError, match="rows: expected an array"):
        experts.experts_time(H100, rows, 4096, 1024, "bf16", 512)


def test_kernels_one_after_another() -> None:
    """The router's logits in fp32, the head's loss in bf16, two norms and a projection of two hidden states."""
    router = passes.router_time(H100, 512, 4096, 64)
    logits = passes.memory_bound_time(H100, "top-k", 512 * 64, "fp32")
    assert router.seconds == pytest.approx(gemm_time(H100, 512, 64, 4096, "bf16").seconds + logits.seconds, rel=1e-12)
    head = passes.head_time(H100, 512, 4096, 32000, "fp8")
    loss = passes.memory_bound_time(H100, "cross-entropy", 512 * 32000)
    assert head.seconds == pytest.approx(gemm_time(H100, 512, 32000, 4096, "fp8").seconds + loss.seconds, rel=1e-12)
    module = passes.mtp_time(H100, 512, 4096)
    norms = passes.memory_bound_time(H100, "norm", 2 * 512 * 4096)
    assert module.seconds == pytest.approx(gemm_time(H100, 512, 4096, 8192, "bf16").seconds + norms.seconds, rel=1e-12)
    assert (head.basis, head.band) == (loss.basis, max(loss.band, gemm_time(H100, 512, 32000, 4096, "fp8").band))
    parts = [KernelTime(1.0, "fitted", 0.1, ("a", "b")), KernelTime(np.array([1.0, 2.0]), "assumed", 0.3, ("b", "c"))]
    both = passes._together(*parts)
    assert both.seconds.tolist() == [2.0, 3.0]
    assert (both.basis, both.band, both.notes) == ("assumed", 0.3, ("a", "b", "c"))


@pytest.mark.parametrize(("generation", "known"), [("hopper", True), ("cdna3", False)])
@pytest.mark.parametrize("what", ["copy", "permute", "host-to-device"])
def test_passes_by_the_datasheets_bandwidth(what: str, generation: str, known: bool) -> None:
    """What a pass says of itself, else the residual of all; doubtful for other makers' GPUs. Host copies cross PCIe."""
    data = catalog.calibration("kernel-passes")
    sheet, gpu = data["datasheet"]["bf16"][what], nobody(generation=generation)
    found = passes.memory_bound_time(gpu, what, 1e6)
    assert found.basis == (sheet.get("basis", "paper") if known else "assumed")
    assert found.band == (
        sheet.get("band", data["residual_datasheet"]["p90"]) if known else data["rule"]["doubtful_band"]
    )
    assert found.notes == (f"{what}: by the datasheet's bandwidth",)
    width = data["host_bandwidth"]["hopper" if known else "other"] if what == "host-to-device" else 2e12
    moved = data["passes"][what]["moves"] * 2.0 * 1e6
    assert found.seconds == pytest.approx(sheet["base"] + moved / (width * sheet["memory"]), rel=1e-12)


def test_a_users_own_pass_answers_with_its_residual(tmp_path: Path) -> None:
    own = {"copy": {"memory": 0.5, "residual": {"p90": 0.07}}, "norm": {"base": 1e-3}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"kernel-passes": {"coefficients": {"h100-sxm": {"bf16": own}}}}))
    data = catalog.calibration("kernel-passes")
    sheet = data["datasheet"]["bf16"]
    copy = passes.memory_bound_time(H100, "copy", 1e9, measured=str(path))
    assert (copy.basis, copy.band, copy.notes) == (data["source"]["basis"], 0.07, ())
    assert copy.seconds == pytest.approx(sheet["copy"]["base"] + 4e9 / (H100.memory_bandwidth * 0.5), rel=1e-12)
    norm = passes.memory_bound_time(H100, "norm", 1e9, "fp8", str(path))
    assert norm.band == data["residual"]["p90"]
    assert norm.seconds == pytest.approx(1e-3 + 2e9 / (H100.memory_bandwidth * sheet["norm"]["memory"]), rel=1e-12)
    assert passes.memory_bound_time(H200, "copy", 1e9, measured=str(path)).notes != ()


@pytest.mark.parametrize("product", ["forward", "dgrad", "wgrad"])
def test_grouped_products_of_a_batch_are_its_samples(product: Any) -> None:
    """Half a row, one and many: an expert that has any reads its weights; one that has none takes no time."""
    rows = np.array([[64.0, 0.0, 1000.0], [1.0, 0.5, 0.0]])
    found = experts.grouped_gemm_time(H100, rows, 512, 256, "bf16", product).seconds
    single = [experts.grouped_gemm_time(H100, row, 512, 256, "bf16", product).seconds for row in rows]
    assert found == pytest.approx(single, rel=1e-12)
    base = choose("kernel-gemm", H100, "bf16").values["base"]
    apart = [experts.grouped_gemm_time(H100, [row], 512, 256, "bf16", product).seconds - base for row in (1.0, 0.5)]
    assert single[1] == pytest.approx(base + sum(apart), rel=1e-12)
    assert experts.grouped_gemm_time(H100, [0.0], 512, 256, "bf16", product).seconds == base
    assert min(apart) > 512 * 256 * 2 / H100.memory_bandwidth
    values = choose("kernel-gemm", H100, "bf16").values
    length, width = (1.0, 256) if product == "wgrad" else (256, 1.0)
    share = catalog.calibration("kernel-gemm")["grouped"][product].get("bf16", 1.0)
    arithmetic = 2 * (length + values["fill"]) * width * 512 / (H100.bf16 * values["compute"] * share)
    moved = 512 * 256 * (8 if product == "wgrad" else 2) + 2 * 256 + 2 * 512
    assert apart[0] == pytest.approx(np.hypot(arithmetic, moved / (H100.memory_bandwidth * values["memory"])), rel=1e-9)


def test_experts_of_a_batch_are_its_samples() -> None:
    rows = np.array([[64.0, 0.0, 1000.0], [1.0, 0.5, 0.0]])
    found = experts.experts_time(H100, rows, 4096, 1024, "bf16", [512, 8], presented_rows=[2048, 16], kernel="triton")
    for row, presented, one in zip(rows, (512, 8), found.seconds, strict=True):
        single = experts.experts_time(
            H100,
            row,
            4096,
            1024,
            "bf16",
            presented,
            presented_rows=presented * (4 if presented > 8 else 2),
            kernel="triton",
        )
        assert one == pytest.approx(single.seconds, rel=1e-12)
