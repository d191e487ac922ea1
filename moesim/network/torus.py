"""Torus links: which sub-torus a group takes, and the exact load of every link under dimension-ordered routing.

R ranks in row-major order of the shape. A message corrects its first coordinate first, by the shorter way round; at
exactly half-way it is split over both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Torus:
    """A box of chips; `wraps[i]` where the links of dimension i close to a ring.

    `machine` is the shape of the torus that boxes of this one fill, itself where it is empty.
    """

    shape: tuple[int, ...]
    wraps: tuple[bool, ...]
    machine: tuple[int, ...] = field(default=(), compare=False)

    @property
    def chips(self) -> int:
        """R."""
        return prod(self.shape)

    @property
    def places(self) -> Ints:
        """Coordinates [R, dimensions] of each chip."""
        return np.stack(np.unravel_index(np.arange(self.chips), self.shape), axis=-1).astype(np.int64)

    @property
    def neighbours(self) -> Ints:
        """The chip [R, dimensions, 2] next to each, up and down each dimension; -1 where there is no link."""
        found = np.full((self.chips, len(self.shape), 2), -1)
        for axis, (size, wraps) in enumerate(zip(self.shape, self.wraps, strict=True)):
            for way, step in enumerate((1, -1)):
                there = self.places
                there[:, axis] += step
                inside = (there[:, axis] >= 0) & (there[:, axis] < size)
                if wraps:
                    there[:, axis] %= size
                    inside[:] = size > 1
                at = there[inside].T
                found[inside, axis, way] = np.ravel_multi_index(tuple(at), self.shape)
        return found

    def seat(self, chip: int) -> tuple[tuple[int, ...], int]:
        """Which box of this shape holds a chip of the machine, and which chip of that box it is."""
        machine = self.machine or self.shape
        if len(machine) != len(self.shape):
            box, place = divmod(chip, self.chips)
            return (box,), place
        at = [int(place) for place in np.unravel_index(chip % prod(machine), machine)]
        inside = tuple(place % size for place, size in zip(at, self.shape, strict=True))
        box_at = tuple(place // size for place, size in zip(at, self.shape, strict=True))
        return box_at, int(np.ravel_multi_index(inside, self.shape))

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
        return Torus((ranks,), (False,), machine)
    shape = [1] * len(machine)
    for axis, size in zip(order, found, strict=True):
        shape[axis] = size
    spans = tuple(closes and size > 1 and size == whole for size, whole in zip(shape, machine, strict=True))
    return Torus(tuple(shape), spans, machine)


def pair_loads(traffic: Floats, torus: Torus, shares: Floats | None = None) -> Floats:
    """Load of the busiest link on each pair's path, [..., R, R], in the unit of `traffic` [..., R, R].

    The diagonal of `traffic` is ignored. `shares` [R, dimensions, 2] is what is left of the links that leave each chip,
    up and down each dimension; a link of half its width counts its load twice.
    """
    shape, dims = torus.shape, len(torus.shape)
    batch, ranks = traffic.shape[:-2], traffic.shape[-1]
    flows = traffic.reshape(*batch, *shape, *shape)
    busiest: Floats = np.zeros((*batch, *shape, *shape))
    for axis in range(dims):
        # On dimension `axis` a message has reached its destination in the dimensions before, and left none after.
        gone = tuple(range(-2 * dims, -2 * dims + axis)) + tuple(range(axis + 1 - dims, 0))
        lines = np.moveaxis(flows.sum(axis=gone), len(batch), -2)
        widths = None if shares is None else _line_widths(shares, torus, axis)
        path = np.moveaxis(_line_paths(lines, torus.wraps[axis], widths), -2, len(batch))
        path = np.expand_dims(path, tuple(len(batch) + place for place in range(axis)))
        path = path.reshape(*path.shape, *(1,) * (dims - 1 - axis))
        np.maximum(busiest, path, out=busiest)
    return busiest.reshape(*batch, ranks, ranks)


def _line_widths(shares: Floats, torus: Torus, axis: int) -> Floats:
    """Share [after, before, 2 * size] left of the links of each line along `axis`, in the order of `_link_shares`."""
    dims = len(torus.shape)
    order = (*range(axis + 1, dims), *range(axis), dims, axis)
    grid = shares[:, axis, :].reshape(*torus.shape, 2).transpose(order)
    return grid.reshape(*grid.shape[:-2], -1)


def _line_paths(lines: Floats, wraps: bool, widths: Floats | None) -> Floats:
    """Busiest link on the way from place s to place t of each line: [..., s, t] from flows [..., s, t]."""
    size = lines.shape[-1]
    shares = _link_shares(size, wraps)
    pairs = lines.reshape(*lines.shape[:-2], size * size)
    loads = pairs @ shares if widths is None else (pairs @ shares) / widths
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


@dataclass(frozen=True)
class Way:
    """The same way from many chips: `source`, `target` and `share` of each flow; `links` [F, hops] numbers the links as
    (chip, dimension, up or down)."""

    source: Ints
    target: Ints
    share: float
    links: NDArray[np.int32]


def ways(traffic: Floats, torus: Torus) -> Iterator[Way]:
    """Every link on the way of each nonzero entry of `traffic` [R, R], chips at the same distance together."""
    dims, moved = len(torus.shape), _moved(torus)
    places, chips = torus.places, np.arange(torus.chips)
    spans = [range(size) if wraps else range(1 - size, size) for size, wraps in _spans(torus)]
    for offset in product(*spans):
        if not any(offset):
            continue
        reached = places + np.array(offset)
        inside = np.logical_and.reduce(((reached >= 0) & (reached < torus.shape)) | np.array(torus.wraps), axis=1)
        target = moved[_ravel(offset, torus)]
        source = np.flatnonzero(inside & (traffic[chips, target] != 0))
        if not len(source):
            continue
        moves = [_moves(step, size, wraps) for step, (size, wraps) in zip(offset, _spans(torus), strict=True)]
        share = 1.0 / prod(len(choices) for choices in moves)
        for chosen in product(*moves):
            at, codes = _hops(chosen, torus)
            links = moved[np.array(at)[:, None], source].T * (2 * dims) + codes
            yield Way(source, target[source].astype(np.int64), share, links.astype(np.int32))


def _spans(torus: Torus) -> list[tuple[int, bool]]:
    return list(zip(torus.shape, torus.wraps, strict=True))


def _moved(torus: Torus) -> NDArray[np.int32]:
    """The chip [R, R] that each chip (column) comes to by each offset (row), round the ends."""
    axes = [(np.arange(size)[:, None] + np.arange(size)[None, :]) % size for size in torus.shape]
    dims, found = len(axes), np.zeros((1,) * (2 * len(axes)), dtype=np.int32)
    for axis, (size, table) in enumerate(zip(torus.shape, axes, strict=True)):
        shape = [1] * (2 * dims)
        shape[axis], shape[dims + axis] = size, size
        found = found * size + table.reshape(shape).astype(np.int32)
    return found.reshape(torus.chips, torus.chips)


def _ravel(offset: tuple[int, ...], torus: Torus) -> int:
    number = 0
    for step, size in zip(offset, torus.shape, strict=True):
        number = number * size + step % size
    return number


def _moves(step: int, size: int, wraps: bool) -> list[int]:
    """Signed numbers of links along one dimension: the shorter way, or both where they are equal."""
    if not wraps or step == 0:
        return [step]
    if 2 * step == size:
        return [step, -step]
    return [step if 2 * step < size else step - size]


def _hops(moves: tuple[int, ...], torus: Torus) -> tuple[list[int], list[int]]:
    """The offset that each link on the way starts at, and which of its chip's links it is."""
    at, codes, done = [], [], [0] * len(moves)
    for axis, move in enumerate(moves):
        way = 0 if move > 0 else 1
        for hop in range(abs(move)):
            done[axis] = hop if move > 0 else -hop
            at.append(_ravel(tuple(done), torus))
            codes.append(2 * axis + way)
        done[axis] = move
    return at, codes
