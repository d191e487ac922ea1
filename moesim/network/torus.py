"""Torus links: which sub-torus a group takes, and the exact load of every link under dimension-ordered routing.

R ranks in row-major order of the shape. A message corrects its first coordinate first, by the shorter way round; at
exactly half-way it is split over both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Torus:
    """A box of chips; `wraps[i]` where the links of dimension i close to a ring."""

    shape: tuple[int, ...]
    wraps: tuple[bool, ...]

    @property
    def diameter(self) -> int:
        """Most links a message passes."""
        return sum(size // 2 if wrap else size - 1 for size, wrap in zip(self.shape, self.wraps, strict=True))

    @property
    def ring_links(self) -> int:
        """Links of a chip that rings along every dimension at once can fill: both ways where a dimension closes."""
        spans = zip(self.shape, self.wraps, strict=True)
        return max(1, sum(2 if wrap else 1 for size, wrap in spans if size > 1))


def factorisations(number: int, dimensions: int) -> list[tuple[int, ...]]:
    """All ascending tuples of `dimensions` factors whose product is `number`."""
    if dimensions == 1:
        return [(number,)]
    found = []
    for first in range(1, round(number ** (1 / dimensions)) + 2):
        if number % first == 0:
            rest = factorisations(number // first, dimensions - 1)
            found += [(first, *tail) for tail in rest if tail[0] >= first]
    return found


def most_cubic(number: int, dimensions: int, within: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
    """The factorisation nearest a square or cube, ascending, of those that fit in the box `within` (ascending)."""
    shapes = factorisations(number, dimensions)
    if within is not None:
        shapes = [shape for shape in shapes if all(a <= b for a, b in zip(shape, within, strict=True))]
    return min(shapes, key=lambda shape: (max(shape), -min(shape)), default=None)


def sub_torus(ranks: int, machine: tuple[int, ...], closes: bool) -> Torus:
    """The contiguous part of `machine` that a group of `ranks` chips takes; it wraps where it spans a whole dimension.

    Where no box of that many chips fits, the ranks are laid out as an open line.
    """
    if ranks == prod(machine):
        return Torus(machine, tuple(closes and size > 1 for size in machine))
    order = sorted(range(len(machine)), key=lambda axis: machine[axis])
    found = most_cubic(ranks, len(machine), tuple(machine[axis] for axis in order))
    if found is None:
        return Torus((ranks,), (False,))
    shape = [1] * len(machine)
    for axis, size in zip(order, found, strict=True):
        shape[axis] = size
    spans = tuple(closes and size > 1 and size == whole for size, whole in zip(shape, machine, strict=True))
    return Torus(tuple(shape), spans)


def pair_loads(traffic: Floats, torus: Torus) -> Floats:
    """Load of the busiest link on each pair's path, [..., R, R], in the unit of `traffic` [..., R, R].

    The diagonal of `traffic` is ignored.
    """
    shape, dims = torus.shape, len(torus.shape)
    batch, ranks = traffic.shape[:-2], traffic.shape[-1]
    flows = traffic.reshape(*batch, *shape, *shape)
    busiest: Floats = np.zeros((*batch, *shape, *shape))
    for axis in range(dims):
        # On dimension `axis` a message has reached its destination in the dimensions before, and left none after.
        gone = tuple(range(-2 * dims, -2 * dims + axis)) + tuple(range(axis + 1 - dims, 0))
        lines = np.moveaxis(flows.sum(axis=gone), len(batch), -2)
        path = np.moveaxis(_line_paths(lines, torus.wraps[axis]), -2, len(batch))
        path = np.expand_dims(path, tuple(len(batch) + place for place in range(axis)))
        path = path.reshape(*path.shape, *(1,) * (dims - 1 - axis))
        np.maximum(busiest, path, out=busiest)
    return busiest.reshape(*batch, ranks, ranks)


def _line_paths(lines: Floats, wraps: bool) -> Floats:
    """Busiest link on the way from place s to place t of each line: [..., s, t] from flows [..., s, t]."""
    size = lines.shape[-1]
    shares = _link_shares(size, wraps)
    pairs = lines.reshape(*lines.shape[:-2], size * size)
    loads = pairs @ shares
    worst: Floats = np.zeros_like(pairs, dtype=np.float64)
    for link in range(shares.shape[1]):
        crossing = np.flatnonzero(shares[:, link])
        if len(crossing):
            worst[..., crossing] = np.maximum(worst[..., crossing], loads[..., link, None])
    return worst.reshape(lines.shape)


@lru_cache(maxsize=64)
def _link_shares(size: int, wraps: bool) -> Floats:
    """Share of a flow s -> t that passes each link, [s * t, 2 * size]: links p -> p+1, then p -> p-1."""
    start, stop, link = np.ogrid[:size, :size, :size]
    up, down = (stop - start) % size, (start - stop) % size
    shorter_way = np.where(2 * up < size, 1.0, np.where(2 * up == size, 0.5, 0.0))
    upward = shorter_way if wraps else (stop > start) * 1.0
    ascending = upward * ((link - start) % size < up)
    descending = (1.0 - upward) * ((start - link) % size < down)
    return np.concatenate([ascending, descending], axis=-1).reshape(size * size, 2 * size)
