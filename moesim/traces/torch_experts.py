"""The experts of a layer, computed on rows sorted by expert: one product an expert, or one grouped product for all.

T tokens, K choices, d width, f hidden width, E experts, M rows of the sorted buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.traces.torch_door import Tensor, functional, torch

ALIGNED = 8
"""Rows of a group in a grouped product: a multiple of 16 bytes in bf16."""


@dataclass(frozen=True)
class Experts:
    """A way to compute all experts: `grouped` (a GPU's grouped product in bf16), or one product after another."""

    grouped: bool = False

    def __call__(self, x: Tensor, experts: Tensor, kept: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        """Outputs [T, K, d] of the chosen `experts` [T, K] for tokens x [T, d]; zero where a copy is not `kept`.

        `weights` are [E, d, 2 f] (gate and up) and [E, f, d].
        """
        T, K = experts.shape
        E, d = weights[0].shape[:2]
        lost = ~kept.reshape(-1, 1)
        place, ends = sort_rows(experts, kept, E, ALIGNED if self.grouped else 1)
        x = x.to(torch.bfloat16) if self.grouped else x
        rows = x.unsqueeze(1).expand(T, K, d).reshape(T * K, d).masked_fill(lost, 0.0)
        size = T * K + 1 + (E * ALIGNED if self.grouped else 0)
        size += -size % ALIGNED if self.grouped else 0
        sorted_rows = rows.new_zeros(size, d).index_copy(0, place, rows)
        compute = _grouped if self.grouped else _one_by_one
        # Rows that belong to no expert may hold anything: they are masked on both sides.
        return compute(sorted_rows, ends, weights)[place].masked_fill(lost, 0.0).reshape(T, K, d)


def engine(device: torch.device, precision: str) -> Experts:
    """The grouped way where this device has it and it gives the same numbers, else one expert after another."""
    if device.type != "cuda" or precision != "bf16" or _product() is None:
        return Experts()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 64, generator=generator).to(device)
    experts = torch.randint(0, 4, (96, 2), generator=generator).to(device)
    weights = tuple(torch.randn(shape, generator=generator).to(device) / 8 for shape in ((4, 64, 64), (4, 32, 64)))
    found = []
    try:
        for way in (Experts(), Experts(grouped=True)):
            inputs = [tensor.clone().requires_grad_() for tensor in (x, *weights)]
            with torch.autocast(device.type, dtype=torch.bfloat16):
                output = way(inputs[0], experts, experts != 3, (inputs[1], inputs[2]))
            found.append([output.detach(), *torch.autograd.grad(output.float().square().sum(), inputs)])
    except (RuntimeError, TypeError, ValueError):
        return Experts()
    near = all(_near(one.float(), other.float()) for one, other in zip(*found, strict=True))
    return Experts(grouped=near)


def sort_rows(experts: Tensor, kept: Tensor, count: int, multiple: int) -> tuple[Tensor, Tensor]:
    """The row of each copy [T K] when copies are sorted by expert, and the end of each expert's rows [E].

    An expert's rows are rounded up to a `multiple`; copies that are not kept share the first row after all experts.
    """
    expert = torch.where(kept, experts, count).reshape(-1)
    order = expert.argsort(stable=True)
    counts = torch.zeros(count + 1, dtype=torch.int64, device=expert.device)
    counts.scatter_add_(0, expert, torch.ones_like(expert))
    starts = counts.cumsum(0) - counts
    ends = ((counts[:count] + multiple - 1) // multiple * multiple).cumsum(0)
    moved = torch.cat([ends.new_zeros(1), ends])
    place = torch.empty_like(expert)
    place[order] = torch.arange(expert.numel(), device=expert.device)
    place = place - starts[expert] + moved[expert]
    return torch.where(expert == count, moved[-1], place), ends


def _one_by_one(rows: Tensor, ends: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    outputs, start = [], 0
    for end, one, two in zip(ends.tolist(), *(weight.unbind() for weight in weights), strict=True):
        if end > start:
            outputs.append(gated(rows[start:end] @ one) @ two)
        start = end
    rest = rows[start:] if not outputs else rows[start:].to(outputs[0].dtype)
    return torch.cat([*outputs, rest])


def _grouped(rows: Tensor, ends: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    product, offsets = _product(), ends.to(torch.int32)
    one, two = (weight.to(torch.bfloat16) for weight in weights)
    hidden = gated(product(rows.to(torch.bfloat16), one, offs=offsets))
    outputs: Tensor = product(hidden, two, offs=offsets)
    return outputs


def gated(hidden: Tensor) -> Tensor:
    """SwiGLU of [..., 2 f], the gate's half first."""
    gate, up = hidden.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _product() -> Any:
    return getattr(functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def _near(one: Tensor, other: Tensor) -> bool:
    scale = float(one.abs().max())
    return bool(torch.isfinite(other).all()) and float((one - other).abs().max()) <= 0.05 * scale
