"""Torus links: exact loads against a loop that walks every message link by link."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from math import prod

import numpy as np
import pytest
from test_network_topology import TPU, cluster

from moesim.network.topology import group
from moesim.network.torus import Torus, factorisations, pair_loads, sub_torus

Link = tuple[tuple[int, ...], int, int]

CASES = [
    Torus((4,), (True,)),
    Torus((5,), (False,)),
    Torus((4, 4), (True, True)),
    Torus((3, 5), (True, False)),
    Torus((2, 6), (True, True)),
    Torus((2, 3, 4), (True, True, True)),
    Torus((3, 2, 2), (False, False, True)),
]


def walks(torus: Torus, start: tuple[int, ...], stop: tuple[int, ...]) -> Iterator[tuple[Link, Fraction]]:
    """Every link on the way, (chip, dimension, step), with the share of the message that passes it."""
    at = list(start)
    for axis, (size, wraps) in enumerate(zip(torus.shape, torus.wraps, strict=True)):
        forward, backward = (stop[axis] - at[axis]) % size, (at[axis] - stop[axis]) % size
        if not wraps:
            ways = [(1, forward)] if stop[axis] > at[axis] else [(-1, backward)]
        elif forward == backward:
            ways = [(1, forward), (-1, backward)]
        else:
            ways = [(1, forward)] if forward < backward else [(-1, backward)]
        for step, hops in ways:
            for hop in range(hops):
                chip = (*at[:axis], (at[axis] + step * hop) % size, *at[axis + 1 :])
                yield (chip, axis, step), Fraction(1, len(ways))
        at[axis] = stop[axis]


@pytest.mark.parametrize("torus", CASES, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.2])
def test_every_pair_sees_the_busiest_link_on_its_way(torus: Torus, density: float) -> None:
    random = np.random.default_rng(5)
    chips = list(product(*(range(size) for size in torus.shape)))
    traffic = random.integers(1, 9, (len(chips),) * 2) * (random.random((len(chips),) * 2) < density)
    loads: dict[Link, float] = defaultdict(float)
    for (source, start), (sink, stop) in product(enumerate(chips), repeat=2):
        for link, share in walks(torus, start, stop):
            loads[link] += float(traffic[source, sink] * share)
    expected = [[max((loads[link] for link, _ in walks(torus, a, b)), default=0.0) for b in chips] for a in chips]
    assert pair_loads(traffic.astype(float), torus) == pytest.approx(np.array(expected))


def test_a_batch_is_its_samples() -> None:
    torus, random = CASES[5], np.random.default_rng(1)
    traffic = random.random((3, 2, 24, 24))
    together = pair_loads(traffic, torus)
    assert together[2, 1] == pytest.approx(pair_loads(traffic[2, 1], torus))


def test_uniform_all_to_all_loads_a_ring_by_an_eighth_of_its_square() -> None:
    """Theory: n chips, one unit a pair, n even: total distance n^2/4 a chip over 2 n links each way = n^2/8."""
    loads = pair_loads(np.ones((16, 16)), Torus((16,), (True,)))
    assert loads[~np.eye(16, dtype=bool)] == pytest.approx(16**2 / 8)
    line = pair_loads(np.ones((16, 16)), Torus((16,), (False,)))
    assert line.max() == pytest.approx(8 * 8)


def test_a_group_takes_the_most_nearly_cubic_box_and_wraps_where_it_spans() -> None:
    assert sub_torus(64, (16, 16, 16), True) == Torus((4, 4, 4), (False, False, False))
    assert sub_torus(2048, (16, 16, 16), True) == Torus((8, 16, 16), (False, True, True))
    assert sub_torus(64, (32, 2), True) == Torus((32, 2), (True, True))
    assert sub_torus(32, (32, 2), True) == Torus((16, 2), (False, True))
    assert sub_torus(24, (2, 3, 4), False) == Torus((2, 3, 4), (False, False, False))
    assert sub_torus(7, (4, 4), True) == Torus((7,), (False,))


@pytest.mark.parametrize("number", [1, 7, 24, 64, 2048])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_factorisations_are_complete(number: int, dimensions: int) -> None:
    small = range(1, min(number, 70) + 1)
    found = factorisations(number, dimensions)
    assert all(prod(shape) == number and list(shape) == sorted(shape) for shape in found)
    if number <= 64:
        brute = {tuple(sorted(shape)) for shape in product(small, repeat=dimensions) if prod(shape) == number}
        assert set(found) == brute


def test_the_machines_shape_is_the_fabrics_or_the_cubic_one() -> None:
    stated = cluster(16, 16, fabric={"kind": "torus", "torus_shape": (2, 8)}, torus_dimensions=2, **TPU)
    assert group(stated, 16).torus == Torus((2, 8), (True, True))
    bare = cluster(16, 16, torus_dimensions=2, **TPU)
    assert group(bare, 16).torus == Torus((4, 4), (True, True))
    open_mesh = cluster(16, 16, fabric={"kind": "torus", "torus_wraps": False}, torus_dimensions=2, **TPU)
    assert group(open_mesh, 16).torus == Torus((4, 4), (False, False))
