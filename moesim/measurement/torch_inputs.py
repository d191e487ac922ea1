"""Random inputs of timed calls, from named streams, in as many sets as overflow the device's cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moesim.measurement.torch_device import Limits
from moesim.measurement.torch_door import Tensor, torch
from moesim.measurement.torch_products import CannotTimeError
from moesim.randomness import Streams

OVERFLOW = 3
"""What all sets together hold, in sizes of the last-level cache: none of it is still there when its turn comes."""


@dataclass(frozen=True)
class Prepared:
    """A case ready to be timed: one call a set of inputs, and what the row says beside the case.

    `graph`: whether the calls may be replayed from a CUDA graph; `products`: the matrix products alone.
    """

    calls: Sequence[Callable[[], Any]]
    columns: dict[str, Any] = field(default_factory=dict)
    graph: bool = True
    products: Sequence[Callable[[], Any]] = ()


class Inputs:
    """Draws the inputs of one case (its `label` names the streams) on a device, within its limits."""

    def __init__(self, label: str, device: torch.device, streams: Streams, limits: Limits) -> None:
        self.label, self.device, self.streams, self.limits = label, device, streams, limits

    def draw(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, gain: float = 1.0) -> Tensor:
        """Normal numbers with spread `gain`."""
        seed = self.streams.integer(f"measure/{self.label}/{name}") >> 1
        generator = torch.Generator(self.device).manual_seed(seed)
        tensor = torch.randn(shape, generator=generator, device=self.device, dtype=dtype)
        return tensor if gain == 1.0 else tensor.mul_(gain)

    def numbers(self, name: str) -> np.random.Generator:
        """A generator for what is drawn on the processor."""
        return self.streams.generator(f"measure/{self.label}/{name}")

    def on_device(self, array: Any) -> Tensor:
        """A numpy array as a tensor of the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def sets(self, touched: int, held: int | None = None) -> int:
        """How many sets of inputs there shall be, of which a call touches so many bytes each and which hold so many.

        Raises `CannotTimeError` where the memory does not hold one.
        """
        held = touched if held is None else held
        if held > self.limits.memory:
            raise CannotTimeError(f"it needs {held / 1e9:.1f} GB, and {self.limits.memory / 1e9:.1f} GB are free")
        wanted = math.ceil(OVERFLOW * self.limits.cache / max(touched, 1))
        return max(1, min(wanted, self.limits.most, self.limits.memory // max(held, 1)))
