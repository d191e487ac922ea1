"""Transfers that share links on simpy's clock: by hand, and within the bounds of contention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy
from test_network_fluid import Ways, csr, leaf_spine, star, unequal

from moesim.engine.fluid import FluidNetwork
from moesim.errors import InternalError
from moesim.network import fluid
from moesim.network.fluid import drain


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
