"""How the groups of one kind fall on scale-up domains: which of them straddle, and by how much.

Ranks are GPU numbers; domains are filled in that order. The groups of a kind part blocks of `ranks x stride` GPUs, each
takes every `stride`-th GPU of its block. A group straddles where it is spread over more domains than one that begins
with a domain, or has fewer members in one of them. K placements, N domains.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.specs.cluster import ClusterSpec

Ints = NDArray[np.int64]
_TRIED = 256
"""Smaller domains that are tried before none is proposed."""


class Kind(NamedTuple):
    """Groups of `ranks` GPUs, `stride` apart, that fill `gpus` GPUs in domains of `size`. `mirrored`: pipeline stages
    where one half of a group is in a stage, the other in its mirror image (first and last, ...); 0 where all of it is
    in one."""

    gpus: int
    size: int
    ranks: int
    stride: int
    mirrored: int = 0

    @property
    def inside(self) -> int:
        """Members in one domain of a group that begins with it."""
        return min(self.ranks, max(1, self.size // self.stride))

    @property
    def pieces(self) -> int:
        """Runs of evenly spaced GPUs that a group has."""
        return 2 if self.mirrored else 1

    @property
    def groups(self) -> int:
        """How many such groups there are whole."""
        return max(1, self.gpus // (self.ranks * self.stride)) * self.stride


class Placement(NamedTuple):
    """Members in each domain [N], most first, of `groups` groups that are placed alike."""

    members: tuple[int, ...]
    groups: int


def domain_size(cluster: ClusterSpec) -> int:
    """GPUs that scale-up links join: a torus joins all, a GPU without such links stands alone."""
    if cluster.fabric.kind == "torus":
        return cluster.gpus
    return 1 if cluster.gpu.scale_up_kind == "none" else cluster.gpus_per_domain


def kind_of(cluster: ClusterSpec, ranks: int, stride: int, mirrored: int = 0) -> Kind:
    """The groups of a cluster that have so many ranks so far apart."""
    return Kind(cluster.gpus, domain_size(cluster), ranks, stride, mirrored)


@lru_cache(maxsize=4096)
def straddling(kind: Kind) -> tuple[Placement, ...]:
    """How the groups that straddle are placed, those with the fewest members in a domain first; none as a rule."""
    if _aligned(kind):
        return ()
    table, groups = _halves(kind) if kind.mirrored else _windows(kind)
    table = -np.sort(-table, axis=1)
    domains = -(-kind.ranks // kind.inside)
    fewest = np.where(table > 0, table, kind.ranks).min(axis=1)
    worse = ((table > 0).sum(axis=1) > domains) | (fewest < kind.ranks - (domains - 1) * kind.inside)
    rows, which = np.unique(table[worse], axis=0, return_inverse=True)
    counts = np.bincount(which.ravel(), weights=groups[worse], minlength=len(rows)).astype(int).tolist()
    members = [tuple(number for number in row if number) for row in rows.tolist()]
    return tuple(sorted(map(Placement, members, counts), key=lambda found: (found.members[-1], found.members)))


def _aligned(kind: Kind) -> bool:
    """Whether it is plain that no group straddles."""
    size, stride, run = kind.size, kind.stride, kind.ranks // kind.pieces * kind.stride
    if kind.ranks == 1 or stride >= size or size >= kind.gpus:
        return True
    return (not kind.mirrored and size % run == 0) or (run % size == 0 and size % stride == 0)


def _windows(kind: Kind) -> tuple[Ints, Ints]:
    """Members [K, N] by first domain on, and groups [K], for each place in a domain where groups begin."""
    run, size = kind.ranks * kind.stride, kind.size
    blocks, period = max(1, kind.gpus // run), size // gcd(run, size)
    turn = np.arange(min(period, blocks))
    times = blocks // period + (turn < blocks % period)
    edges = np.zeros(2 * size + 1, dtype=np.int64)
    np.add.at(edges, turn * run % size, times)
    np.add.at(edges, turn * run % size + kind.stride, -times)
    opened = np.cumsum(edges)[:-1].reshape(2, size).sum(axis=0)
    first = np.flatnonzero(opened)
    return _members(kind, first, kind.ranks, -(-(size + run) // size)), opened[first]


def _halves(kind: Kind) -> tuple[Ints, Ints]:
    """The same for groups in two halves, by where both begin."""
    size, half = kind.size, kind.ranks // 2
    stage = np.arange(kind.mirrored // 2)[:, None]
    run, place = half * kind.stride, np.arange(kind.stride)
    first = (stage * run + place).ravel()
    second = ((kind.mirrored - 1 - stage) * run + place).ravel() - first // size * size
    first %= size
    # Only whether the halves share a domain counts, not how far apart they are.
    beyond = (first + (half - 1) * kind.stride) // size + 1
    second -= np.maximum(0, second // size - beyond) * size
    starts, groups = np.unique(np.stack([first, second], axis=1), axis=0, return_counts=True)
    domains = int(starts.max() + run) // size + 1
    both = _members(kind, starts[:, 0], half, domains) + _members(kind, starts[:, 1], half, domains)
    return both, groups.astype(np.int64)


def _members(kind: Kind, first: Ints, count: int, domains: int) -> Ints:
    """How many of `count` members from a GPU `first` [K] on are in each domain, [K, N]."""
    edges = np.arange(domains + 1) * kind.size - first[:, None]
    return np.asarray(np.diff(np.clip(-(-edges // kind.stride), 0, count), axis=1), dtype=np.int64)


def told(kinds: dict[str, Kind]) -> str | None:
    """Which groups of the kinds, by name, straddle, and the nearest domain that none would; None where none does."""
    found = {name: kind for name, kind in kinds.items() if straddling(kind)}
    if not found:
        return None
    size = next(iter(found.values())).size
    said = ", ".join(_counted(name, kind) for name, kind in found.items())
    nearest = nearest_size(kinds.values())
    remedy = f"; nearest: cluster.gpus_per_domain {nearest}" if nearest else ""
    return (
        f"groups straddle domains of {size} GPUs: {said}; a kind is priced as its worst-placed group, domains as small"
        f" as the smallest of that one{remedy}"
    )


def _counted(name: str, kind: Kind) -> str:
    found = straddling(kind)
    worst = found[0].members
    parts = [*map(str, worst)] if len(worst) <= 4 else [*map(str, worst[:2]), "...", str(worst[-1])]
    return f"{sum(each.groups for each in found):,} of {kind.groups:,} {name} (at worst {' + '.join(parts)} ranks)"


def nearest_size(kinds: Collection[Kind]) -> int | None:
    """The largest smaller domain of several GPUs that no group of the kinds straddles."""
    size = max(kind.size for kind in kinds)
    for smaller in range(size - 1, max(1, size - 1 - _TRIED), -1):
        if not any(straddling(kind._replace(size=smaller)) for kind in kinds):
            return smaller
    return None
