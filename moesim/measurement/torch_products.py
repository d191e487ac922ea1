"""Matrix products in each number format, by the calls that torch has for them here, each proven before it is timed.

m rows, n columns, k the summed length; E experts, M rows of all experts together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from moesim.errors import UserError
from moesim.measurement.torch_door import Tensor, functional, torch

PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP8 = torch.float8_e4m3fn
BLOCK = 128
"""Elements of a scaled block along k, and weights' also along n (DeepSeek-V3 report, section 3.3)."""
_NEAR = 0.05
_SMALL = ((48, 256, 512), (3, 0, 29, 8))
"""Sizes (m, n, k) and rows of experts (the last rows of m are no expert's) on which a way of multiplying is proven."""


class CannotTimeError(UserError):
    """A case that this device or this torch cannot compute, with the reason."""


@dataclass(frozen=True)
class Dense:
    """Products x [m, k] w [n, k]^T in one format: how x and w are brought into it, and the call that multiplies.

    `scales(m, n, k)` are the call's last arguments: with them (`casts`) the product is divided by sqrt(k), as weights
    of a real layer would. `kernel` says what runs.
    """

    kernel: str
    cast: Callable[[Tensor], Tensor]
    scales: Callable[[int, int, int], tuple[Tensor, ...]]
    multiply: Callable[..., Tensor]
    casts: bool


@dataclass(frozen=True)
class Grouped:
    """Products of sorted rows x [M, k] with w [E, n, k]^T, expert by expert, in one format.

    `multiply(x, w, rows, ends, *scales)` takes the rows of each expert as numbers, and their ends as a tensor on the
    device; x may have more rows at its end, which belong to none. `scales(M, E, n, k)` are as in `Dense`.
    """

    kernel: str
    cast: Callable[[Tensor], Tensor]
    scales: Callable[[int, int, int, int], tuple[Tensor, ...]]
    multiply: Callable[..., Tensor]
    casts: bool


def high(dtype: str) -> torch.dtype:
    """The format of activations outside products, for products in `dtype`."""
    return PLAIN.get(dtype, torch.bfloat16)


@cache
def dense(dtype: str, device: torch.device) -> Dense:
    """The way to multiply in this format on this device; raises `CannotTimeError` where there is none that is right."""
    if dtype in PLAIN:
        way = Dense("torch mm", _same, lambda m, n, k: (), lambda x, w: torch.mm(x, w.t()), casts=False)
    elif dtype == "fp8":
        way = Dense("torch scaled_mm", _to_fp8, lambda m, n, k: _scales(device, k, (), ()), _scaled, casts=True)
    elif dtype == "fp8-block":
        way = Dense("torch scaled_mm 1x128 by 128x128", _to_fp8, _block_scales(device), _scaled, casts=True)
    else:
        raise CannotTimeError(f"no product in {dtype} is known")
    _prove(dtype, device, way)
    return way


@cache
def grouped(dtype: str, device: torch.device) -> Grouped:
    """The way to multiply rows of all experts: one grouped call where it is there and right, else one after another."""
    found: list[str] = []
    for way in _grouped_ways(dtype, device):
        try:
            _prove_grouped(dtype, device, way)
        except CannotTimeError as error:
            found.append(str(error))
            continue
        return way
    raise CannotTimeError("; ".join(found) or f"no grouped product in {dtype} is known")


def ends_of(rows: list[int], device: torch.device) -> Tensor:
    """The end of each expert's rows [E]."""
    return torch.tensor(rows).cumsum(0).to(torch.int32).to(device)


def _to_fp8(x: Tensor) -> Tensor:
    return x.to(FP8)


def _scales(device: torch.device, k: int, one: tuple[int, ...], two: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Ones for x, 1 / sqrt(k) for w."""
    return torch.ones(one, device=device), torch.full(two, k**-0.5, device=device)


def _scaled(x: Tensor, w: Tensor, *scales: Tensor) -> Tensor:
    one, two = scales
    # The fast sum is what serving uses; with block scales the sums are kept apart anyhow.
    fast = one.ndim == 0
    return torch._scaled_mm(x, w.t(), scale_a=one, scale_b=two, out_dtype=torch.bfloat16, use_fast_accum=fast)


def _block_scales(device: torch.device) -> Callable[[int, int, int], tuple[Tensor, ...]]:
    def scales(m: int, n: int, k: int) -> tuple[Tensor, ...]:
        # Rows run fastest in the first; k fastest in the second, in lines of a multiple of four: cuBLAS' layouts.
        along, across = -(-k // BLOCK), -(-n // BLOCK)
        one, two = _scales(device, k, (along, m), (across, along + -along % 4))
        return one.t(), two[:, :along].t()

    return scales


def _grouped_ways(dtype: str, device: torch.device) -> list[Grouped]:
    ways = []
    if dtype in PLAIN:
        call = getattr(functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
        if call is not None:
            ways.append(Grouped("torch grouped_mm", _same, _no_scales, _grouped_call(call), casts=False))
        ways.append(Grouped("torch mm, expert by expert", _same, _no_scales, _one_by_one, casts=False))
    if dtype == "fp8" and hasattr(torch, "_scaled_grouped_mm"):
        ways.append(Grouped("torch scaled_grouped_mm", _to_fp8, _row_scales(device), _scaled_grouped, casts=True))
    return ways


def _same(x: Tensor) -> Tensor:
    return x


def _no_scales(M: int, E: int, n: int, k: int) -> tuple[Tensor, ...]:
    return ()


def _row_scales(device: torch.device) -> Callable[[int, int, int, int], tuple[Tensor, ...]]:
    return lambda M, E, n, k: _scales(device, k, (M,), (E, n))


def _grouped_call(call: Any) -> Callable[[Tensor, Tensor, list[int], Tensor], Tensor]:
    def multiply(x: Tensor, w: Tensor, rows: list[int], ends: Tensor) -> Tensor:
        found: Tensor = call(x, w.transpose(1, 2), offs=ends)
        return found

    return multiply


def _scaled_grouped(x: Tensor, w: Tensor, rows: list[int], ends: Tensor, one: Tensor, two: Tensor) -> Tensor:
    return torch._scaled_grouped_mm(
        x, w.transpose(1, 2), one, two, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _one_by_one(x: Tensor, w: Tensor, rows: list[int], ends: Tensor) -> Tensor:
    output, start = x.new_empty(x.shape[0], w.shape[1]), 0
    for expert, count in enumerate(rows):
        if count:
            torch.mm(x[start : start + count], w[expert].t(), out=output[start : start + count])
        start += count
    return output


def _prove(dtype: str, device: torch.device, way: Dense) -> None:
    m, n, k = _SMALL[0]
    x, w = _drawn(device, dtype, (m, k), (n, k))

    def compute() -> tuple[Tensor, Tensor]:
        one, two = way.cast(x), way.cast(w)
        return way.multiply(one, two, *way.scales(m, n, k)), one.float() @ two.float().t()

    _compare(f"{dtype} by {way.kernel}", compute, k**-0.5 if way.casts else 1.0)


def _prove_grouped(dtype: str, device: torch.device, way: Grouped) -> None:
    (m, n, k), rows = _SMALL
    x, w = _drawn(device, dtype, (m, k), (len(rows), n, k))
    numbers, ends = list(rows), ends_of(list(rows), device)

    def compute() -> tuple[Tensor, Tensor]:
        one, two = way.cast(x), way.cast(w)
        found = way.multiply(one, two, numbers, ends, *way.scales(m, len(rows), n, k))
        parts = zip(one[: sum(rows)].float().split(numbers), two.float(), strict=True)
        return found[: sum(rows)], torch.cat([part @ weight.t() for part, weight in parts])

    _compare(f"{dtype} by {way.kernel}", compute, k**-0.5 if way.casts else 1.0)


def _drawn(device: torch.device, dtype: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=generator, device=device).to(high(dtype)) for shape in shapes]


def _compare(what: str, compute: Callable[[], tuple[Tensor, Tensor]], scale: float) -> None:
    """Raises `CannotTimeError` unless the product is near the expected one, relative to its largest element."""
    try:
        found, expected = compute()
        error = float((found.float() - expected * scale).abs().max())
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error_:
        reason = str(error_).strip().splitlines()[:1]
        raise CannotTimeError(f"{what} is not there: {' '.join(reason)[:160]}") from error_
    # Written so that a number that is none fails too.
    if not error <= _NEAR * scale * float(expected.abs().max()):
        raise CannotTimeError(f"{what} gives wrong numbers here")
