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

from moesim.errors import InfeasibleError
from moesim.network.links import links
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


def slow_links(ranks: int, stride: int, *between: tuple[str, str], shape: tuple[int, ...] = (4, 4, 4)) -> set[str]:
    """The links that a group on a torus of 64 chips finds at half their width."""
    fabric = {"kind": "torus", "torus_shape": shape}
    degraded = tuple({"between": ends, "share": 0.5} for ends in between)
    network = group(cluster(64, fabric=fabric, degraded=degraded, torus_dimensions=3, **TPU), ranks, stride)
    made = links(network)
    assert set(made.capacity) <= {50e9, 25e9}
    return {name for name, rate in zip(made.names, made.capacity, strict=True) if rate == 25e9}


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_a_link_of_the_machine_is_the_one_at_its_place_in_a_groups_box(stride: int) -> None:
    """Groups of 8 are boxes of 2 x 2 x 2: chips 0 and 1 are side by side in one, 1 and 2 in two, 42 and 46 in one."""
    assert slow_links(8, stride, ("gpu0", "gpu1")) == {"gpu0 z+", "gpu1 z-"}
    assert slow_links(8, stride, ("gpu1", "gpu2")) == set()
    assert slow_links(8, stride, ("gpu0", "gpu3")) == set()
    # (2, 2, 2) and (2, 3, 2): the first chip of a box, and the next along y
    assert slow_links(8, stride, ("gpu42", "gpu46")) == {"gpu0 y+", "gpu2 y-"}


def test_links_round_the_ends_belong_to_groups_that_span_them() -> None:
    assert slow_links(64, 1, ("gpu0", "gpu3")) == {"gpu0 z-", "gpu3 z+"}
    assert slow_links(16, 4, ("gpu0", "gpu3")) == {"gpu0 z-", "gpu3 z+"}  # a box of 2 x 2 x 4
    assert slow_links(16, 4, ("gpu16", "gpu32")) == set()


def test_ranks_on_a_line_have_the_links_of_their_numbers() -> None:
    """Seven of 64 chips fill no box: they are an open line."""
    assert slow_links(7, 1, ("gpu8", "gpu9")) == {"gpu1 x+", "gpu2 x-"}
    assert slow_links(7, 1, ("gpu6", "gpu7")) == set()


def test_a_failed_link_stops_only_groups_that_use_it() -> None:
    fabric = {"kind": "torus", "torus_shape": (4, 4, 4)}
    degraded = ({"between": ("gpu1", "gpu2"), "share": 0.0},)
    machine = cluster(64, fabric=fabric, degraded=degraded, torus_dimensions=3, **TPU)
    assert group(machine, 8, stride=8).slowest_up_share == 1.0
    with pytest.raises(InfeasibleError, match="scale-up link"):
        group(machine, 64)


def test_a_link_of_a_mesh_belongs_to_the_group_that_has_both_its_ends() -> None:
    """Groups of 4 in a mesh of 8: the link from GPU 3 to 4 is in none, the one from 4 to 5 in the second."""
    for ranks, stride, between, expected in (
        (4, 1, ("gpu3", "gpu4"), None),
        (4, 1, ("gpu4", "gpu5"), (0, 1)),
        (4, 2, ("gpu0", "gpu1"), None),
        (4, 2, ("gpu1", "gpu5"), (0, 2)),
    ):
        degraded = ({"between": between, "share": 0.5},)
        shares = group(cluster(8, scale_up_kind="xgmi", degraded=degraded), ranks, stride).up_shares
        slow = {tuple(pair) for pair in np.argwhere(shares < 1)}
        assert slow == (set() if expected is None else {expected, expected[::-1]})
