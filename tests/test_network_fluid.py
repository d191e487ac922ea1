"""Fluid flows: sharing by hand, max-min fairness on random networks, and rounds against the exact ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InfeasibleError, UserError
from moesim.network import fluid, fluid_twin
from moesim.network.fluid import Drained, Fluid, drain, rates

Ways = list[list[int]]


def csr(ways: Ways) -> tuple[np.ndarray, np.ndarray]:
    first = np.concatenate([[0], np.cumsum([len(way) for way in ways])]).astype(np.int64)
    return first, np.array([link for way in ways for link in way], np.int32)


def drained(capacity: list[float], ways: Ways, size: list[float], **more: Any) -> Drained:
    return drain(np.array(capacity), *csr(ways), np.array(size), **more)


def star(ranks: int, capacity: float = 1.0) -> tuple[np.ndarray, Ways]:
    """Every rank's port out and port in, and the ways of an all-to-all over them, source by source."""
    pairs = [(here, there) for here in range(ranks) for there in range(ranks) if here != there]
    return np.full(2 * ranks, capacity), [[here, ranks + there] for here, there in pairs]


def leaf_spine(ranks: int, oversubscription: float, leaf: int) -> tuple[np.ndarray, Ways]:
    """A star whose ranks share the uplinks of leaves of `leaf` ranks each."""
    capacity, ways = star(ranks)
    leaves, climbing = ranks // leaf, []
    for out, into in ways:
        here, there = out // leaf, (into - ranks) // leaf
        middle = [] if here == there else [2 * ranks + here, 2 * ranks + leaves + there]
        climbing.append([out, *middle, into])
    return np.concatenate([capacity, np.full(2 * leaves, leaf / oversubscription)]), climbing


# links, ways, sizes, begins, ends, all worked out on paper
BY_HAND: dict[str, tuple[list[float], Ways, list[float], list[float] | None, list[float]]] = {
    "two flows on a link": ([10.0], [[0], [0]], [10.0, 30.0], None, [2.0, 4.0]),
    "parking lot": ([10.0, 6.0], [[0, 1], [0], [1], [1]], [4.0, 16.0, 4.0, 4.0], None, [2.0, 2.0, 2.0, 2.0]),
    "three to one": ([3.0, 9.0, 9.0, 9.0], [[1, 0], [2, 0], [3, 0]], [1.0, 2.0, 6.0], None, [1.0, 5 / 3, 3.0]),
    "one begins later": ([1.0], [[0], [0]], [2.0, 1.0], [0.0, 1.0], [3.0, 3.0]),
    "all begin late": ([2.0], [[0], [0]], [2.0, 2.0], [5.0, 7.0], [6.0, 8.0]),
    "a chain of two links": ([2.0, 1.0], [[0], [0, 1], [1]], [3.0, 2.0, 1.0], None, [2.0, 3.0, 2.0]),
    # when the first ends, the second's rate rises from 0.5 to 1, and the third's falls from 1.5 to 1
    "a rate that falls": ([1.0, 2.0], [[0], [0, 1], [1]], [0.5, 2.0, 3.0], None, [1.0, 2.5, 2.5]),
    "equal all-to-all of 4": (*(part.tolist() if isinstance(part, np.ndarray) else part for part in star(4)),
                              [5.0] * 12, None, [15.0] * 12),
    "nothing to send, nowhere to go": ([1.0], [[0], [], [0]], [0.0, 7.0, 2.0], [1.0, 3.0, 0.0], [1.0, 3.0, 2.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("twin", [False, True])
def test_by_hand(name: str, twin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if twin:
        monkeypatch.setattr(fluid, "kernels", lambda: fluid_twin)
    capacity, ways, size, begin, end = BY_HAND[name]
    found = drained(capacity, ways, size, begin=None if begin is None else np.array(begin))
    assert found.end == pytest.approx(end, rel=1e-12)
    assert found.seconds == pytest.approx(max(end), rel=1e-12)
    assert found.carried == pytest.approx(asked(capacity, ways, size), rel=1e-12)


def test_rates_of_the_parking_lot() -> None:
    first, passed = csr([[0, 1], [0], [1], [1], []])
    capacity = np.array([10.0, 6.0])
    assert rates(capacity, first, passed) == pytest.approx([2.0, 8.0, 2.0, 2.0, np.inf])
    some = np.array([True, True, False, False, False])
    assert rates(capacity, first, passed, np.zeros(5, bool)) == pytest.approx(np.zeros(5))
    assert rates(capacity, first, passed, some) == pytest.approx([5.0, 5.0, 0.0, 0.0, 0.0])


def asked(capacity: Any, ways: Ways, size: Any) -> np.ndarray:
    bytes_by_link = np.zeros(len(capacity))
    for way, amount in zip(ways, size, strict=True):
        bytes_by_link[way] += amount
    return bytes_by_link


@st.composite
def networks(draw: st.DrawFn) -> tuple[np.ndarray, Ways, np.ndarray, np.ndarray]:
    """A few links of very different capacities, ways over any of them, sizes and begins with ties among them."""
    count = draw(st.integers(1, 6))
    capacity = draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, 7.5, 100.0]), min_size=count, max_size=count))
    way = st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True)
    ways = draw(st.lists(way, min_size=1, max_size=14))
    size = [draw(st.sampled_from([0.5, 1.0, 2.0]) | st.floats(0.01, 1e3)) for _ in ways]
    begin = [draw(st.just(0.0) | st.floats(0.0, 50.0)) for _ in ways]
    return np.array(capacity), ways, np.array(size), np.array(begin)


@settings(max_examples=200, deadline=None)
@given(networks())
def test_rates_are_max_min_fair(network: tuple[np.ndarray, Ways, np.ndarray, np.ndarray]) -> None:
    """No link above its capacity; every flow has a full link on which no other flow is faster."""
    capacity, ways, _, _ = network
    found = rates(capacity, *csr(ways))
    load = asked(capacity, ways, found)
    assert np.all(load <= capacity * (1 + 1e-12))
    fastest = np.zeros(len(load))
    for way, rate in zip(ways, found, strict=True):
        fastest[way] = np.maximum(fastest[way], rate)
    for way, rate in zip(ways, found, strict=True):
        assert any(load[q] >= capacity[q] * (1 - 1e-9) and rate >= fastest[q] * (1 - 1e-9) for q in way)


@settings(max_examples=100, deadline=None)
@given(networks())
def test_drain_keeps_the_laws(network: tuple[np.ndarray, Ways, np.ndarray, np.ndarray]) -> None:
    """Bytes arrive; no link and no flow is faster than it can be."""
    capacity, ways, size, begin = network
    found = drained(capacity, ways, size, begin=begin)
    assert found.carried == pytest.approx(asked(capacity, ways, size), rel=1e-9)
    for way, amount, since, end in zip(ways, size, begin, found.end, strict=True):
        assert end >= (since + amount / capacity[way].min()) * (1 - 1e-9)
    for q in range(len(capacity)):
        users = [f for f, way in enumerate(ways) if q in way]
        if users:
            busy = found.end[users].max() - begin[users].min()
            assert busy >= size[users].sum() / capacity[q] * (1 - 1e-9) - 1e-9


@settings(max_examples=60, deadline=None)
@given(networks(), st.floats(0.0, 60.0))
def test_the_compiled_road_agrees_with_numpy(
    network: tuple[np.ndarray, Ways, np.ndarray, np.ndarray], seconds: float
) -> None:
    capacity, ways, size, _ = network
    first, passed = csr(ways)
    chosen = np.arange(len(ways))[::2]
    for mine, other in zip(fluid.kernels().gather(first, passed, chosen), fluid_twin.gather(first, passed, chosen),
                           strict=True):  # fmt: skip
        np.testing.assert_array_equal(mine, other)
    results = []
    for road in (fluid.kernels(), fluid_twin):
        start, members = road.by_link(first, passed, capacity.size)
        net = road.Net(capacity, first, passed, start, members, np.flatnonzero(np.diff(start)))
        lives = [
            road.Live(size.copy(), np.arange(size.size) % 5 == 4, np.full(size.size, np.nan), np.diff(start))
            for _ in range(3)
        ]
        for live in lives:
            live.members[:] -= np.bincount(road.gather(first, passed, np.flatnonzero(live.ended))[1],
                                           minlength=capacity.size)  # fmt: skip
        carried = np.zeros((2, capacity.size))
        sent, state = road.fill(net, lives[0], size, seconds)
        living, moved = road.one_round(net, lives[1], 1.0, 1.1 + seconds, carried[0])
        now, left, happened = road.events(net, lives[2], 0.0, seconds, carried[1])
        arrays = (start, members, sent, state[:, :3], moved, carried)
        results.append((*arrays, *lives[1], *lives[2], living, now, left, happened))
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)


SIZES = {
    "balanced": lambda random, n: tokens(random, np.ones(n)),
    "lognormal experts": lambda random, n: tokens(random, random.lognormal(0, 0.8, n)),
    "hot destination": lambda random, n: tokens(random, np.where(np.arange(n) == 3, 8.0, 1.0)),
    "uneven sources too": lambda random, n: random.lognormal(0, 0.7, n) * random.lognormal(0, 0.7, (n, n)),
    "uniform": lambda random, n: random.uniform(0, 1, (n, n)),
    "heavy-tailed": lambda random, n: 1 + random.pareto(1.2, (n, n)),
}


def tokens(random: np.random.Generator, popularity: np.ndarray) -> np.ndarray:
    """4,096 tokens from every rank, by the popularity of the destinations."""
    return random.multinomial(4096, popularity / popularity.sum(), size=popularity.size)


def unequal(kind: str, ranks: int, seed: int = 0) -> np.ndarray:
    matrix = np.asarray(SIZES[kind](np.random.default_rng(seed), ranks), np.float64)
    return matrix[~np.eye(ranks, dtype=bool)]


def in_rounds(capacity: np.ndarray, ways: Ways, size: np.ndarray, resolution: float = fluid.RESOLUTION) -> Fluid:
    found = Fluid(capacity, resolution, exact=0)
    found.add(*csr(ways), size)
    found.advance()
    return found


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("oversubscription", [1.0, 2.0])
def test_rounds_stay_near_the_exact_ends(kind: str, oversubscription: float) -> None:
    """40 ranks: total within 0.2 %, a rank's last flow within 2.5 % of the total; finer rounds come nearer; and never
    below a port's load."""
    ranks = 40
    capacity, ways = leaf_spine(ranks, oversubscription, 8)
    size = unequal(kind, ranks)
    exact = drain(capacity, *csr(ways), size, resolution=0)
    error = {}
    for resolution in (fluid.RESOLUTION, 0.05):
        found = in_rounds(capacity, ways, size, resolution)
        assert found.rounds < exact.rounds / 4
        assert found.end.max() == pytest.approx(exact.seconds, rel=2e-3)
        assert found.end.max() >= (asked(capacity, ways, size) / capacity).max() * (1 - 1e-12)
        assert found.carried == pytest.approx(exact.carried, rel=1e-9)
        last = np.abs(found.end - exact.end).reshape(ranks, ranks - 1).max(axis=1)
        rows = np.abs(found.end.reshape(ranks, -1).max(axis=1) - exact.end.reshape(ranks, -1).max(axis=1))
        error[resolution] = float(np.sqrt((last**2).mean()))
        assert rows.max() <= 0.025 * exact.seconds
    assert error[0.05] < error[fluid.RESOLUTION]


def test_rounds_on_one_link_are_exact() -> None:
    """Whatever the resolution: nothing but the order among links is lost."""
    size = np.random.default_rng(1).pareto(1.5, 1000) + 0.1
    exact = drain(np.array([3.0]), *csr([[0]] * 1000), size, resolution=0)
    coarse = in_rounds(np.array([3.0]), [[0]] * 1000, size, 0.5)
    assert coarse.end.max() == pytest.approx(exact.seconds, rel=1e-12)
    assert np.abs(coarse.end - exact.end).max() < 0.02 * exact.seconds


def test_many_begins() -> None:
    """Every rank of 40 begins at a time of its own: gathered begins cost little, and nobody ends before it can."""
    ranks = 40
    capacity, ways = star(ranks)
    size = unequal("lognormal experts", ranks)
    begin = np.repeat(np.random.default_rng(2).uniform(0, 0.2 * size.sum() / ranks, ranks), ranks - 1)
    exact = drain(capacity, *csr(ways), size, begin, resolution=0)
    found = Fluid(capacity, fluid.RESOLUTION, exact=0)
    found.add(*csr(ways), size, begin)
    found.advance()
    assert np.all(found.end >= begin + size)
    assert found.end.max() == pytest.approx(exact.seconds, rel=0.01)
    assert found.carried == pytest.approx(exact.carried, rel=1e-9)


def test_same_bytes_again_and_in_any_unit() -> None:
    capacity, ways = leaf_spine(32, 2.0, 8)
    size = unequal("uniform", 32)
    one, two = (in_rounds(capacity, ways, size).end for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(in_rounds(capacity * 5e10, ways, size * 5e10).end, one, rtol=1e-9)


def test_arguments_stay_as_they_are() -> None:
    capacity, ways = star(16)
    size = unequal("uniform", 16)
    before = size.copy()
    in_rounds(capacity, ways, size)
    drain(capacity, *csr(ways), size)
    np.testing.assert_array_equal(size, before)


def test_what_can_not_be() -> None:
    with pytest.raises(InfeasibleError, match="link 1, whose capacity is 0"):
        drained([1.0, 0.0], [[0], [0, 1]], [1.0, 1.0])
    with pytest.raises(UserError, match="not negative"):
        drained([1.0], [[0]], [-1.0])
    with pytest.raises(UserError, match="finite"):
        drained([1.0], [[0]], [1.0], begin=np.array([np.inf]))
    with pytest.raises(UserError, match="from 0"):
        drained([1.0], [[0]], [1.0], resolution=2.0)
    assert drained([1.0, 0.0], [], []).seconds == 0.0
