"""Which coefficients answer for a GPU: its own calibration, else its generation's, else the rule from the datasheet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim import catalog
from moesim.costs.kernels.formats import Format, number_format, peak
from moesim.costs.kernels.releases import Release, answering, product_of
from moesim.provenance import Basis
from moesim.specs.gpu import GpuSpec

Floats = NDArray[np.float64]

DEFAULT_KERNEL = "grouped"


@dataclass(frozen=True)
class KernelTime:
    """Seconds of an isolated kernel (or of each of many), with the relative range of 90 % of calibrated rows."""

    seconds: Any
    basis: Basis
    band: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """Coefficients chosen for one GPU and number format.

    `peak` FLOP/s and `bandwidth` bytes/s are the datasheet's; `values` hold the law's numbers, `compute` and `memory`
    (and `quantize`) as shares of them; `valid` maps a quantity to the range of the rows fitted; `factor` is the time of
    the release asked for over that of the release fitted.
    """

    values: Mapping[str, float]
    kind: Format
    peak: float
    bandwidth: float
    basis: Basis
    band: float
    band_elsewhere: float
    valid: Mapping[str, Any]
    notes: tuple[str, ...]
    factor: float = 1.0

    def answer(self, seconds: Any, **asked: Any) -> KernelTime:
        """`seconds` with basis and band; `asked` names quantities, which are held against the range of the fit."""
        seconds = seconds * self.factor
        outside = [name for name, value in asked.items() if not self._covers(name, value)]
        if not outside:
            return KernelTime(seconds, self.basis, self.band, self.notes)
        note = f"outside the range of the fit: {', '.join(outside)}"
        return KernelTime(seconds, "assumed", max(self.band, self.band_elsewhere), (*self.notes, note))

    def _covers(self, name: str, value: Any) -> bool:
        if name not in self.valid:
            return True
        low, high = self.valid[name]
        return bool(np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)))


def choose(
    entry: str,
    gpu: GpuSpec,
    dtype: str,
    measured: str | None = None,
    kernel: str | None = None,
    release: str | None = None,
) -> Choice:
    """The coefficients of calibration `entry` that answer for `gpu` in `dtype` with kernels of family `kernel`, as the
    software `release` ("trtllm 1.3.0") has them. Raises `UserError` where the GPU has no units of that format.
    """
    data = catalog.calibration(entry, measured)
    kind = number_format(dtype)
    rate, notes = peak(gpu, kind)
    release = release or product_of(kernel)
    named, stranger = family(data, kernel)
    if stranger:
        return _doubted(choose(entry, gpu, dtype, measured, None, release), data, stranger)
    sets = data["coefficients"] if named == DEFAULT_KERNEL else data.get("families", {}).get(named, {})
    wanted = (kind.name, kind.coefficients)
    for key in (gpu.name, gpu.generation):
        name = next((name for name in wanted if name in sets.get(key, {})), None)
        if name is not None:
            stands_in = () if name == kind.name else (f"{kind.name} by the coefficients of {name}",)
            made = _fitted(data, sets[key][name], gpu, (kind, rate), (*notes, *stands_in))
            return _of_release(made, answering(sets[key][name], release), data)
    if named != DEFAULT_KERNEL:
        missing = f"no calibration of {named} kernels for {gpu.generation} in {kind.name}"
        return _doubted(choose(entry, gpu, dtype, measured, None, release), data, f"{missing}: grouped ones answer")
    return _of_release(_from_datasheet(data, gpu, (kind, rate), notes), answering({}, release), data)


def _of_release(made: Choice, found: Release, data: Mapping[str, Any]) -> Choice:
    """`made` with another release's factor on time, or with what is not known of that release."""
    if found.note and not found.known:
        made = _doubted(made, data, found.note)
    elif found.note:
        band = max(made.band, float(data.get("residual_releases", {}).get("told_apart", made.band_elsewhere)))
        made = replace(made, factor=found.factor, band=band, notes=(*made.notes, found.note))
    return made


def _doubted(made: Choice, data: Mapping[str, Any], note: str) -> Choice:
    """`made` for kernels or a release that nobody fitted, with the range over those that were kept apart."""
    apart = spread(data.get("residual_releases", data["residual_elsewhere"]))
    band = max(made.band, made.band_elsewhere, apart)
    return replace(made, basis="assumed", band=band, notes=tuple(dict.fromkeys((note, *made.notes))))


def family(data: Mapping[str, Any], kernel: str | None) -> tuple[str, str]:
    """The kernel family that a name means ("sglang_fused_moe_triton" is "triton"), and what to say where none is known:
    "grouped" answers then."""
    text = str(kernel or DEFAULT_KERNEL).strip().lower()
    for name, words in data["names"].items():
        if text == name or any(word in text for word in words):
            return name, ""
    if text == DEFAULT_KERNEL:
        return DEFAULT_KERNEL, ""
    return DEFAULT_KERNEL, f"kernel {text[:60]!r} is of no family known: those fitted answer"


def datasheet_compute(gpu: GpuSpec, kind: Format, measured: str | None = None) -> float:
    """Share of the peak that dense products sustain by the rule a (watts / bf16 TFLOP/s) ^ exponent."""
    rule = catalog.calibration("kernel-gemm", measured)["rule"]
    return float(min(rule[kind.coefficients] * watts(gpu) ** rule["exponent"], rule["limit"]))


def watts(gpu: GpuSpec) -> float:
    """Watts for a bf16 TFLOP/s of the datasheet: the fewer, the lower the clock that a GPU sustains."""
    if gpu.power is None:
        return float(catalog.calibration("kernel-gemm")["rule"]["watts_per_teraflop"])
    return float(gpu.power / (gpu.bf16 / 1e12))


def _fitted(
    data: Mapping[str, Any], found: Mapping[str, Any], gpu: GpuSpec, at: tuple[Format, float], notes: tuple[str, ...]
) -> Choice:
    kind, rate = at
    values = {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
    elsewhere, band = float(data["residual_elsewhere"]["p90"]), spread(found.get("residual", data["residual"]))
    fitted_on = found.get("gpus", (gpu.name,))
    basis: Basis = "assumed" if notes else data["source"]["basis"]
    if gpu.name not in fitted_on:
        values |= _at_power(values, gpu)
        notes = (*notes, f"coefficients of {', '.join(fitted_on)}")
        band = max(band, elsewhere)
        if _far(gpu, fitted_on, data["rule"]):
            basis, band, notes = "assumed", data["rule"]["doubtful_band"], (*notes, "a GPU of another size")
    if basis == "assumed":
        band = max(band, elsewhere)
    return Choice(values, kind, rate, gpu.memory_bandwidth, basis, band, elsewhere, found.get("valid", {}), notes)


def spread(residual: Mapping[str, Any]) -> float:
    """The range that holds 90 % of the rows: of all rows where an entry says so, else of those fitted."""
    return float(residual.get("range", residual["p90"]))


def _far(gpu: GpuSpec, fitted_on: Iterable[str], rule: Mapping[str, Any]) -> bool:
    """Whether no GPU fitted has a peak within the rule's factor of this one's."""
    known = [catalog.load("gpus", name).bf16 for name in fitted_on if name in catalog.names("gpus")]
    return bool(known) and all(max(peak / gpu.bf16, gpu.bf16 / peak) > rule["far"] for peak in known)


def _at_power(values: Mapping[str, float], gpu: GpuSpec) -> dict[str, float]:
    """Shares of peak moved from the GPUs fitted to another of their generation by the datasheet rule's exponent."""
    rule = catalog.calibration("kernel-gemm")["rule"]
    reference = values.get("watts_per_teraflop")
    factor = (watts(gpu) / reference) ** rule["exponent"] if reference and gpu.power else 1.0
    shares = {name: values[name] for name in ("compute", "forward", "backward") if name in values}
    return {name: float(min(share * factor, max(share, rule["limit"]))) for name, share in shares.items()}


def _from_datasheet(data: Mapping[str, Any], gpu: GpuSpec, at: tuple[Format, float], notes: tuple[str, ...]) -> Choice:
    kind, rate = at
    values = {name: float(value) for name, value in data["datasheet"][kind.coefficients].items()}
    values.setdefault("compute", datasheet_compute(gpu, kind))
    known = gpu.generation in data["rule"]["generations"] and gpu.power is not None
    why = f"by its datasheet alone: no {kind.name} kernel of {gpu.generation} was measured"
    if gpu.power is None:
        why += "; its power is not stated"
    doubtful = float(data["rule"]["doubtful_band"])
    far = max(spread(data["residual_datasheet"]), spread(data["residual_elsewhere"])) if known else doubtful
    basis: Basis = "datasheet" if known else "assumed"
    return Choice(values, kind, rate, gpu.memory_bandwidth, basis, far, doubtful, data["rule"]["valid"], (*notes, why))
