"""How a profile's arrays lie in its file: as few bytes as half a megabyte asks for, and what must hold of them.

Letters of the shapes as in `profile`; J is K + 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# what the numbers may take, the rest is the header's
BUDGET = 440_000
# a weight this far below a row's largest (in logarithms) counts as this far below
LOG_RANGE = 14.0
SHAPES = {
    "affinity": "LWE", "basis": "LRE", "tilt": "SR", "share": "SPW", "stay": "W", "residual": "LE", "repeat": "L",
    "lag": "LM", "sharpness": "L", "order_bias": "LE", "width": "LJ", "domain": "S", "step": "S", "length": "S",
}  # fmt: skip
_TABLES = ("affinity", "basis")
_COUNTS = ("domain", "step", "length")
_SHARES = ("share", "stay", "lag", "width")
_POSITIVE = ("residual", "repeat", "sharpness")


def stored_bytes(shapes: Mapping[str, tuple[int, ...]], fine: bool = False) -> int:
    """Bytes that arrays of these shapes take in a file; `fine`: the large tables as 16-bit floats."""
    total = 0
    for name, shape in shapes.items():
        number = math.prod(shape)
        if name in _TABLES and not fine:
            total += number + 4 * math.prod(shape[:-1])
        else:
            total += number * (4 if name in _COUNTS else 2)
    return total


def fine_enough(arrays: Mapping[str, Array]) -> bool:
    """Whether all tables may be 16-bit floats."""
    return stored_bytes({name: value.shape for name, value in arrays.items()}, fine=True) <= BUDGET


def pack(name: str, value: Array, fine: bool) -> list[tuple[str, Array]]:
    """Numbers as 16-bit floats; large tables as bytes with a scale for each row where they have to be smaller."""
    if name in _COUNTS:
        return [(name, np.ascontiguousarray(value, np.int32))]
    if fine or name not in _TABLES or not value.size:
        return [(name, np.ascontiguousarray(value, np.float16))]
    top = value.max(axis=-1, keepdims=True)
    bottom = np.maximum(value.min(axis=-1, keepdims=True), top - LOG_RANGE)
    limits = np.concatenate([(top - bottom) / 254, (top + bottom) / 2], axis=-1).astype(np.float16)
    scale, middle = limits[..., :1].astype(np.float64), limits[..., 1:].astype(np.float64)
    steps = np.clip(np.rint((value - middle) / np.where(scale > 0.0, scale, 1.0)), -127, 127)
    return [(name, steps.astype(np.int8)), (f"{name}.scale", limits)]


def unpack(name: str, stored: Mapping[str, Array]) -> Array:
    """An array from what `pack` made of it; raises `ValueError` or `KeyError` where it is something else."""
    value = stored[name]
    if value.ndim != len(SHAPES[name]):
        raise ValueError(f"{name} has {value.ndim} dimensions instead of {len(SHAPES[name])}")
    if name in _COUNTS:
        return np.asarray(value, np.int32)
    numbers = value.astype(np.float64)
    if value.dtype == np.int8:
        scale = stored[f"{name}.scale"].astype(np.float64)
        numbers = numbers * scale[..., :1] + scale[..., 1:]
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds a number that is not finite")
    if name in ("share", "lag", "width"):
        total = numbers.sum(axis=-1, keepdims=True)
        numbers = numbers / np.where(total > 0.0, total, 1.0)
    return np.asarray(numbers)


def contradiction(size: dict[str, int], domains: int, arrays: Mapping[str, Array]) -> str:
    """What is wrong with arrays that should belong together, given the sizes L, E, J and how many domains have names;
    empty where nothing is."""
    for name, letters in SHAPES.items():
        for letter, length in zip(letters, arrays[name].shape, strict=True):
            if size.setdefault(letter, length) != length:
                return f"{name} is {arrays[name].shape}, which does not go with the rest"
    if any(size[letter] < 1 for letter in "SLWEM"):
        return "it holds no sequence, layer or class"
    for name in (*_SHARES, *_POSITIVE):
        if (arrays[name] < 0.0).any() or (name in _SHARES and (arrays[name] > 1.0 + 1e-6).any()):
            return f"{name} is out of range"
    if (arrays["domain"] < 0).any() or (arrays["domain"] >= domains).any():
        return "a sequence has a domain that is not named"
    empty = [name for name in ("share", "lag", "width") if not (arrays[name].sum(axis=-1) > 0.0).all()]
    return f"{empty[0]} has a row of zeros" if empty else ""
