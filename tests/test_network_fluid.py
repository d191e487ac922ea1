"""Fluid flows: sharing by hand, max-min fairness on random networks, the bounds, and contention on simpy's clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network_topology import GROUPS, cluster, routed

from moesim.engine.fluid import FluidNetwork
from moesim.errors import InfeasibleError, InternalError, UserError
from moesim.network import fluid, fluid_twin
from moesim.network.fluid import Drained, Fluid, drain, max_min, rates
from moesim.network.links import flows, links
from moesim.network.portload import PortLoads, Traffic, busiest_port, own_port
from moesim.network.topology import GroupNetwork, group

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


def tiers(loads: PortLoads) -> dict[str, np.ndarray]:
    return {name: getattr(loads, name) for name in ("up_send", "up_receive", "out_send", "out_receive")}


def traffic(network: GroupNetwork, seed: int, batch: int = 2) -> Traffic:
    copies = routed(network, seed, batch=batch).copies
    near = network.domain[:, None] == network.domain[None, :]
    return Traffic(copies * (near & ~np.eye(network.ranks, dtype=bool)), copies * ~near)


@pytest.mark.parametrize("name", GROUPS)
def test_ideal_and_port_load_are_lower_bounds(name: str) -> None:
    """Rank by rank for its own ports, and for the last rank where links are shared."""
    network = GROUPS[name]
    demand = traffic(network, 5)
    found, ideal, port = (tiers(model(demand, network)) for model in (max_min, own_port, busiest_port))
    for tier, seconds in found.items():
        assert seconds.shape == port[tier].shape
        assert np.all(seconds >= ideal[tier] * (1 - 1e-9))
        assert np.all(seconds.max(axis=-1) >= port[tier].max(axis=-1) * (1 - 1e-9))
        assert np.all((seconds > 0) == (port[tier] > 0))


@pytest.mark.parametrize("kind", [kind for kind in SIZES if kind not in ("uniform", "heavy-tailed")])
@pytest.mark.parametrize("seed", range(3))
def test_non_blocking_fabrics_within_one_percent(kind: str, seed: int) -> None:
    """64 ranks in 8 nodes on a non-blocking fabric: the port load is all there is."""
    network = group(cluster(64), 64)
    matrix = np.asarray(SIZES[kind](np.random.default_rng(seed), 64), np.float64)
    near = network.domain[:, None] == network.domain[None, :]
    demand = Traffic(matrix * (near & ~np.eye(64, dtype=bool)), matrix * ~near)
    found, port = tiers(max_min(demand, network)), tiers(busiest_port(demand, network))
    total, bound = (max(loads["out_send"].max(), loads["out_receive"].max()) for loads in (found, port))
    assert bound * (1 - 1e-9) <= total <= bound * 1.01


def test_max_min_takes_seconds_of_its_flows() -> None:
    """A batch of two: the loads are the last ends of the flows of each rank and tier."""
    network = GROUPS["tree-2to1"]
    demand = traffic(network, 9)
    loads = max_min(demand, network)
    for sample in range(2):
        moved = flows(demand.up[sample], demand.out[sample], network)
        found = Fluid(links(network).capacity, fluid.RESOLUTION, 0)
        found.add(moved.first, moved.links, moved.size)
        found.advance()
        chosen = moved.scale_out & (moved.target == 4)
        assert loads.out_receive[sample, 4] == found.end[chosen].max(initial=0.0)
        chosen = ~moved.scale_out & (moved.source == 7)
        assert loads.up_send[sample, 7] == found.end[chosen].max(initial=0.0)


def run(env: simpy.Environment, network: FluidNetwork, plan: list[tuple[float, Ways, np.ndarray]]) -> list[np.ndarray]:
    """Starts each transfer at its time; the ends of its flows, which the clock must show when its event happens."""
    ends: list[np.ndarray] = [np.zeros(0)] * len(plan)

    def follow(number: int, at: float, ways: Ways, size: np.ndarray) -> Any:
        yield env.timeout(at)
        ends[number] = yield network.start(*csr(ways), size)
        assert env.now == pytest.approx(max(ends[number].max(initial=0.0), at), rel=1e-12)

    for number, (at, ways, size) in enumerate(plan):
        env.process(follow(number, at, ways, size))
    env.run()
    network.check()
    return ends


@pytest.mark.parametrize("resolution", [0.0, fluid.RESOLUTION])
def test_one_transfer_is_a_drain(resolution: float) -> None:
    capacity, ways = leaf_spine(24, 2.0, 8)
    size = unequal("lognormal experts", 24)
    env = simpy.Environment()
    network = FluidNetwork(env, capacity, resolution)
    (end,) = run(env, network, [(3.0, ways, size)])
    alone = drain(capacity, *csr(ways), size, resolution=resolution)
    np.testing.assert_allclose(end - 3.0, alone.end, rtol=1e-9)
    np.testing.assert_allclose(network.carried(), alone.carried, rtol=1e-9)
    np.testing.assert_allclose(network.utilisation(), alone.carried / capacity / env.now, rtol=1e-9)


def test_dispatch_against_gradient_reduce_scatter() -> None:
    """Two ranks, NICs of 10 bytes/s. A dispatch of 20 bytes each way, and at 1 s a reduce-scatter of 40: the dispatch
    has 10 left, at half the rate ends at 3 s, not 2; the reduce-scatter then has 30 left and ends at 6 s, not 5."""
    env = simpy.Environment()
    network = FluidNetwork(env, np.full(4, 10.0))
    both_ways = [[0, 3], [1, 2]]
    dispatch, reduce = run(env, network, [(0.0, both_ways, np.full(2, 20.0)), (1.0, both_ways, np.full(2, 40.0))])
    assert dispatch == pytest.approx([3.0, 3.0])
    assert reduce == pytest.approx([6.0, 6.0])
    assert network.carried() == pytest.approx([60.0] * 4)
    assert network.utilisation() == pytest.approx([1.0] * 4)


def test_a_pause_and_a_tie() -> None:
    """Two transfers in turn, and a third that starts at the moment the second ends; carried counts up to now."""
    env = simpy.Environment()
    network = FluidNetwork(env, np.array([2.0]))
    seen = []

    def look() -> Any:
        yield env.timeout(4.5)
        seen.append(network.carried()[0])

    env.process(look())
    one, two, three = run(env, network, [(at, [[0]], np.array([2.0])) for at in (0.0, 4.0, 5.0)])
    assert [*one, *two, *three] == pytest.approx([1.0, 5.0, 6.0])
    assert seen == pytest.approx([3.0])
    assert network.utilisation() == pytest.approx([0.5])


def test_an_empty_transfer_ends_at_once_and_late_flows_wait() -> None:
    env = simpy.Environment()
    network = FluidNetwork(env, np.array([2.0]))
    assert run(env, network, [(1.5, [], np.zeros(0))])[0].size == 0
    late = network.start(*csr([[0], [0]]), np.array([2.0, 2.0]), begin=np.array([0.0, 4.0]))
    assert env.run(late) == pytest.approx([2.5, 5.0])


@pytest.mark.parametrize("exact", [0, fluid.EXACT_FLOWS])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["balanced", "lognormal experts", "hot destination"])
def test_contention_lies_between_the_longer_and_the_sum(kind: str, share: float, exact: int) -> None:
    """A dispatch, and a ring reduce-scatter that starts while it runs, on the same NICs."""
    ranks = 24
    capacity, ways = star(ranks)
    size = unequal(kind, ranks)
    ring, piece = [[rank, ranks + (rank + 1) % ranks] for rank in range(ranks)], np.full(ranks, 3000.0)
    alone = [drain(capacity, *csr(w), s).seconds for w, s in ((ways, size), (ring, piece))]
    env = simpy.Environment()
    begin = share * alone[0]
    ends = run(env, FluidNetwork(env, capacity, exact=exact), [(0.0, ways, size), (begin, ring, piece)])
    for number, since in enumerate((0.0, begin)):
        assert ends[number].max() - since >= alone[number] * (1 - 1e-9)
    assert max(end.max() for end in ends) <= sum(alone) * (1 + 1e-9)


def test_a_transfer_that_never_ended_is_told() -> None:
    env = simpy.Environment()
    network = FluidNetwork(env, np.array([2.0]))
    network.start(*csr([[0]]), np.array([2.0]))
    with pytest.raises(InternalError, match="1 transfers never ended"):
        network.check()
