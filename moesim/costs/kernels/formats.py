"""Number formats of kernels: spellings, bytes an element, and the rate that a GPU's datasheet gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim import catalog
from moesim.errors import UnknownNameError, UserError
from moesim.specs.gpu import GpuSpec


@dataclass(frozen=True)
class Format:
    """A number format of matrix products.

    `weight`, `activation` bytes an element with scales; `quantized` where activations are converted before the product;
    `rate` names the datasheet field of its products; `coefficients` the format whose fitted numbers stand for it;
    `note` says where another format answers.
    """

    name: str
    weight: float
    activation: float
    quantized: bool
    rate: str
    coefficients: str
    note: str = ""


def number_format(text: str) -> Format:
    """The format that `text` spells: "bfloat16", "fp8_block", "torch.float16" ...; raises `UnknownNameError`."""
    data = _data()
    plain = str(text).strip().lower().removeprefix("torch.").replace("_", "-")
    name = data["spellings"].get(plain, plain)
    stands_in = data["nearest"].get(name)
    note = f"{name}: answered as {stands_in}" if stands_in else ""
    name = stands_in or name
    if name not in data["formats"]:
        raise UnknownNameError("number format", str(text), data["formats"])
    known = data["formats"][name]
    return Format(
        name,
        float(known["weight"]),
        float(known.get("activation", known["weight"])),
        bool(known.get("quantized", False)),
        str(known["rate"]),
        str(known.get("coefficients", name)),
        note,
    )


def peak(gpu: GpuSpec, kind: Format) -> tuple[float, tuple[str, ...]]:
    """Dense peak in FLOP/s and what had to be assumed for it; raises `UserError` where the GPU has no such units."""
    rate, notes = _rate(gpu, kind)
    return rate, (kind.note, *notes) if kind.note else notes


def _rate(gpu: GpuSpec, kind: Format) -> tuple[float, tuple[str, ...]]:
    if kind.rate == "int8":
        return _integer_peak(gpu, kind)
    rate = getattr(gpu, kind.rate)
    if rate is None:
        raise UserError(
            f"{gpu.name} has no {kind.rate} rate in its datasheet, so nothing is said of {kind.name} on it; "
            f"ask for bf16, or state `{kind.rate}` of this GPU in the catalog's overlay"
        )
    makers = _data()["makers"].get(kind.name)
    if makers is not None and gpu.generation not in makers:
        return float(rate), (f"{gpu.name} has no units known for {kind.name}: its {kind.rate} rate is taken",)
    return float(rate), ()


def _integer_peak(gpu: GpuSpec, kind: Format) -> tuple[float, tuple[str, ...]]:
    """8-bit integers run at the fp8 rate, at a multiple of bf16 where a generation has int8 units only."""
    if gpu.fp8 is not None:
        return float(gpu.fp8), (f"{kind.name}: the fp8 rate is taken for that of 8-bit integers",)
    multiple = _data()["integer_rate"].get(gpu.generation)
    if multiple is None:
        raise UserError(f"{gpu.name} has no rate known for {kind.name}; ask for bf16")
    return float(multiple) * gpu.bf16, ()


def _data() -> dict[str, Any]:
    return catalog.calibration("kernel-formats")
