"""The compiled kernels of the fluid network, small enough to run as plain Python: by hand, and as their numpy twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.network import _fluid_kernels as kernels
from moesim.network import fluid, fluid_twin
from moesim.network.fluid import Fluid

Ways = list[list[int]]


def csr(ways: Ways) -> tuple[np.ndarray, np.ndarray]:
    first = np.concatenate([[0], np.cumsum([len(way) for way in ways])]).astype(np.int64)
    return first, np.array([link for way in ways for link in way], np.int32)


def net_of(road: Any, capacity: np.ndarray, ways: Ways) -> Any:
    first, passed = csr(ways)
    start, members = road.by_link(first, passed, capacity.size)
    return road.Net(capacity, first, passed, start, members, np.flatnonzero(np.diff(start)))


def live_of(road: Any, net: Any, left: np.ndarray, ended: np.ndarray) -> Any:
    gone = np.bincount(fluid_twin.gather(net.first, net.links, np.flatnonzero(ended))[1], minlength=net.capacity.size)
    return road.Live(left.copy(), ended.copy(), np.where(ended, 0.5, np.nan), np.diff(net.start) - gone)


def random_network(seed: int) -> tuple[np.ndarray, Ways, np.ndarray, np.ndarray]:
    """A few links, up to 14 flows over any of them, sizes with ties; every fifth flow has ended in half of them."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 7))
    capacity = random.choice([1.0, 2.0, 3.0, 7.5, 100.0], count)
    ways = [
        random.permutation(count)[: random.integers(1, count + 1)].tolist() for _ in range(int(random.integers(1, 15)))
    ]
    size = random.choice([0.5, 1.0, 2.0, 17.0, 300.0], len(ways)) * random.choice([1.0, random.random()], len(ways))
    ended = (np.arange(len(ways)) % 5 == 4) & (seed % 2 == 1)
    return capacity, ways, np.where(ended, 0.0, size), ended


def both(seed: int) -> list[tuple[Any, Any, Any]]:
    capacity, ways, size, ended = random_network(seed)
    found = []
    for road in (kernels, fluid_twin):
        net = net_of(road, capacity, ways)
        found.append((road, net, live_of(road, net, size, ended)))
    return found


def same(mine: Any, other: Any) -> None:
    for one, two in zip(mine, other, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(24))
def test_the_twin_fills_alike(seed: int) -> None:
    for seconds, limited in ((1.0, False), (0.3, True), (5.0, True), (400.0, True)):
        results = []
        for road, net, live in both(seed):
            left = live.left if limited else np.full(live.left.size, np.inf)
            sent, state = road.fill(net, live, left, seconds)
            results.append((sent, state[:, : kernels.LEAST], *live))
        same(*results)


@pytest.mark.parametrize("seed", range(24))
def test_the_twin_rounds_alike(seed: int) -> None:
    """Round after round to the last end; bytes arrive."""
    capacity, ways, size, _ = random_network(seed)
    asked = np.zeros(capacity.size)
    for way, amount in zip(ways, size, strict=True):
        asked[way] += amount
    results = []
    for road, net, live in both(seed):
        carried, told, now = np.zeros(capacity.size), [], 2.0
        for step in (0.1, 0.5, 3.0, 20.0, 1e4):
            living, sent = road.one_round(net, live, now, now + step, carried)
            told += [np.array(living), sent, live.left.copy(), live.end.copy(), live.members.copy(), carried.copy()]
            now += step
        assert live.ended.all()
        np.testing.assert_allclose(carried, asked, rtol=1e-9)
        results.append(told)
    same(*results)


@pytest.mark.parametrize("seed", range(24))
def test_the_twin_ends_flows_alike(seed: int) -> None:
    """To a moment between ends, on to the next halves, and to the last."""
    results = []
    for road, net, live in both(seed):
        carried, told, now, happened = np.zeros(net.capacity.size), [], 1.0, 0
        for until in (1.25, 3.0, *[np.inf] * 5):
            now, living, more = road.events(net, live, now, until, carried)
            happened += more
            told += [np.array((now, living, happened)), live.left.copy(), live.end.copy(), carried.copy()]
        assert live.ended.all()
        results.append(told)
    same(*results)


def test_paths_of_some_flows() -> None:
    first, passed = csr([[3, 1], [], [2], [0, 1, 2]])
    where, found = kernels.gather(first, passed, np.array([3, 1, 0]))
    assert (where.tolist(), found.tolist()) == ([0, 3, 3, 5], [0, 1, 2, 3, 1])
    start, flows = kernels.by_link(first, passed, 5)
    assert (start.tolist(), flows.tolist()) == ([0, 1, 3, 5, 6, 6], [3, 0, 3, 2, 3, 0])


def test_flows_of_a_link_that_are_open_and_those_that_are_small() -> None:
    net, found = net_of(kernels, np.ones(2), [[0], [0, 1], [1], [0]]), np.zeros(5, np.int32)
    sent = np.array([-1.0, 0.0, -1.0, -1.0])
    assert kernels.open_flows(net, 0, sent, found) == 2
    assert found[:2].tolist() == [0, 3]
    assert kernels.open_flows(net, 1, sent, found) == 1
    assert found[0] == 2
    left, some = np.array([3.0, 1.0, 9.0, 2.0]), np.array([0, 3, 2, 1], np.int32)
    assert kernels.small_flows(left, 2.0, some, found) == (2, 3.0)
    assert found[:2].tolist() == [3, 1]
    assert kernels.small_flows(left, 0.5, some, found) == (0, 1.0)
    assert kernels.small_flows(left, 9.0, some, found) == (4, np.inf)


def test_what_is_settled_loads_its_links() -> None:
    net, state = net_of(kernels, np.ones(3), [[0], [0, 1], [1, 2]]), np.zeros((3, 4))
    state[:, kernels.OPEN] = [2, 2, 1]
    kernels.take(net, np.array([1, 0], np.int32), np.array([2.0, 5.0, 7.0]), state)
    assert state[:, kernels.LOAD].tolist() == [7.0, 5.0, 0.0]
    assert state[:, kernels.OPEN].tolist() == [0.0, 1.0, 1.0]
    assert state[:, kernels.MOST].tolist() == [5.0, 5.0, 0.0]


def test_paces_of_links() -> None:
    """Two flows of 3 and 1 at 2 a second: all has passed after 2 s, and first bytes at 1 a second each."""
    net = net_of(kernels, np.array([2.0, 2.0, 2.0]), [[0], [0], [1]])
    live = live_of(kernels, net, np.array([3.0, 1.0, 4.0]), np.array([False, False, True]))
    _, state = kernels.fill(net, live, live.left, 10.0)
    pace, bend = kernels.paces(net, live, state)
    assert pace.tolist() == [1.0, 0.0, 0.0]
    assert bend[0] == pytest.approx(2 / 4 - 1 / 3)
    assert pace[0] * 3 / (1 + bend[0] * 3) == pytest.approx(2.0)
    assert bend[1] == 0.0


@pytest.mark.parametrize("road", [kernels, fluid_twin])
def test_a_round_by_hand(road: Any) -> None:
    """A link of 2 a second for 3 s: the flow of 1 ends, the others send 2.5 each; a tie ends with the round."""
    net = net_of(road, np.array([2.0]), [[0], [0], [0]])
    live = live_of(road, net, np.array([1.0, 4.0, 2.5]), np.zeros(3, bool))
    carried = np.full(1, 10.0)
    living, sent = road.one_round(net, live, 7.0, 10.0, carried)
    assert (living, sent.tolist(), carried.tolist()) == (1, [1.0, 2.5, 2.5], [16.0])
    assert live.left.tolist() == [0.0, 1.5, 0.0]
    assert live.ended.tolist() == [True, False, True]
    assert live.end[2] == pytest.approx(10.0)
    # Bytes of a flow that sends x have passed after 3 x / (2 (1 + bend x)), bend = 3 / 6 - 1 / 2.5.
    assert live.end[0] == pytest.approx(7 + 1.5 / (1 + 3 / 6 - 1 / 2.5))
    assert live.members.tolist() == [1]


@pytest.mark.parametrize("road", [kernels, fluid_twin])
def test_events_by_hand(road: Any) -> None:
    """Four flows of 1, 2, 3 and 4 on a link of 4: to 9.5 s nothing ends; to the half of them at 10 and 10.75 s."""
    net = net_of(road, np.array([4.0]), [[0]] * 4)
    live = live_of(road, net, np.arange(1.0, 5.0), np.zeros(4, bool))
    carried = np.zeros(1)
    assert road.events(net, live, 9.0, 9.5, carried) == (9.5, 4, 1)
    assert live.left.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert carried.tolist() == [2.0]
    assert road.events(net, live, 9.5, np.inf, carried) == (10.75, 2, 2)
    np.testing.assert_allclose(live.end, [10.0, 10.75, np.nan, np.nan])
    assert live.members.tolist() == [2]
    assert road.events(net, live, 10.75, np.inf, carried)[1:] == (1, 1)
    assert road.events(net, live, 11.25, np.inf, carried) == (11.5, 0, 1)
    assert carried.tolist() == [10.0]


@pytest.mark.parametrize("road", [kernels, fluid_twin])
@pytest.mark.parametrize(("apart", "events"), [(0.0, 1), (1e-14, 1), (1e-9, 2)])
def test_flows_that_end_within_a_trillionth_end_together(road: Any, apart: float, events: int) -> None:
    net = net_of(road, np.array([2.0]), [[0], [0], [0]])
    live = live_of(road, net, np.array([1.0, 1.0 + apart, 5.0]), np.zeros(3, bool))
    assert road.events(net, live, 0.0, np.inf, np.zeros(1))[1:] == (1, events)
    assert live.ended.tolist() == [True, True, False]


def test_both_roads_drain_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that ends one by one, and one in rounds."""
    for seed in range(4):
        capacity, ways, size, _ = random_network(seed)
        ends = []
        for road in (kernels, fluid_twin):
            monkeypatch.setattr(fluid, "kernels", lambda road=road: road)
            exact = fluid.drain(capacity, *csr(ways), size)
            monkeypatch.setattr(fluid, "EXACT_REST", 0)
            coarse = Fluid(capacity, 0.4, exact=0)
            coarse.add(*csr(ways), size)
            coarse.advance()
            ends.append((exact.end, exact.carried, coarse.end, coarse.carried))
        same(*ends)
