"""One contract for every dispatcher on every topology."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from test_network_topology import GROUPS, routed

from moesim.errors import InfeasibleError, UnknownNameError
from moesim.network.demand import Demand, reverse
from moesim.network.dispatchers import (
    DISPATCHERS,
    ExchangeTimes,
    Payload,
    PortTimes,
    choose,
    dispatcher,
)
from moesim.network.dispatchers.base import direct_traffic
from moesim.network.dispatchers.hierarchical import handled_copies, proxies, two_hop_traffic
from moesim.network.dispatchers.two_level import two_level_traffic

COPY = Payload(dispatch=7464.0, combine=14368.0)


def pairs(places: Iterable[str], without: str = "") -> list[tuple[str, str]]:
    """(dispatcher, topology) wherever it runs."""
    every = ((name, place) for name in DISPATCHERS if name != without for place in places)
    return [(name, place) for name, place in every if DISPATCHERS[name].runs_on(GROUPS[place]) is None]


on_all = pytest.mark.parametrize(("name", "place"), pairs(GROUPS))
ROUTED = {place: routed(network, seed=7) for place, network in GROUPS.items()}


def scaled(demand: Demand, factor: float) -> Demand:
    arrays = {key: getattr(demand, key) * factor for key in ("copies", "rank_tokens", "domain_tokens", "tokens")}
    return replace(demand, **arrays)


def parts(times: ExchangeTimes) -> tuple[PortTimes, PortTimes]:
    return times.dispatch, times.combine


def seconds(port: PortTimes) -> np.ndarray:
    return np.stack([port.latency + port.send, port.latency + port.receive])


@on_all
def test_times_and_bytes_are_finite_and_of_the_demands_shape(name: str, place: str) -> None:
    demand = ROUTED[place]
    times = dispatcher(name).times(demand, GROUPS[place], COPY)
    for port in parts(times):
        for array in (port.send, port.receive, port.bytes_up, port.bytes_out):
            assert array.shape == demand.copies.shape[:-1]
            assert np.isfinite(array).all()
            assert (array >= 0).all()
        assert (port.latency > 0) == (GROUPS[place].ranks > 1)
    assert times.relative >= 0
    assert (times.multiprocessors > 0) == (name != "deepep-low-latency")


@on_all
def test_nothing_to_send_takes_no_time(name: str, place: str) -> None:
    for port in parts(dispatcher(name).times(scaled(ROUTED[place], 0.0), GROUPS[place], COPY)):
        assert not port.send.any()
        assert not port.receive.any()
        assert not port.bytes_up.any()
        assert not port.bytes_out.any()


@on_all
def test_more_bytes_never_take_less_time(name: str, place: str) -> None:
    demand, network = ROUTED[place], GROUPS[place]
    less = dispatcher(name).times(demand, network, COPY)
    fatter = dispatcher(name).times(demand, network, Payload(2 * COPY.dispatch, 2 * COPY.combine))
    longer = dispatcher(name).times(scaled(demand, 2.0), network, COPY)
    for more in (fatter, longer):
        for small, large in zip(parts(less), parts(more), strict=True):
            assert (seconds(large) >= seconds(small)).all()
            assert large.bytes_up == pytest.approx(2 * small.bytes_up)


@on_all
def test_faster_links_never_take_more_time(name: str, place: str) -> None:
    network = GROUPS[place]
    slow = dispatcher(name).times(ROUTED[place], network, COPY)
    for field in ("scale_up_bandwidth", "nic_bandwidth"):
        quicker = replace(network, **{field: 3 * getattr(network, field)})
        fast = dispatcher(name).times(ROUTED[place], quicker, COPY)
        for before, after in zip(parts(slow), parts(fast), strict=True):
            assert (seconds(after) <= seconds(before) * (1 + 1e-12)).all()


@on_all
@pytest.mark.parametrize("seed", range(3))
def test_the_ideal_network_is_never_slower(name: str, place: str, seed: int) -> None:
    network = GROUPS[place]
    demand = routed(network, seed, tokens=4)
    ideal = dispatcher(name).times(demand, network, COPY, network="ideal")
    real = dispatcher(name).times(demand, network, COPY)
    for low, high in zip(parts(ideal), parts(real), strict=True):
        assert (seconds(low) <= seconds(high) * (1 + 1e-12)).all()
        assert np.array_equal(low.bytes_up, high.bytes_up)
        assert np.array_equal(low.bytes_out, high.bytes_out)


@on_all
def test_what_is_dispatched_is_combined(name: str, place: str) -> None:
    """The same token copies cross each tier both ways."""
    there, back = parts(dispatcher(name).times(ROUTED[place], GROUPS[place], COPY))
    for tier in ("bytes_up", "bytes_out"):
        if (name, tier) == ("hierarchical", "bytes_up") and np.ptp(np.bincount(GROUPS[place].domain)):
            continue  # domains of two sizes have other places in common there than back
        copies = [getattr(port, tier).sum() / size for port, size in ((there, COPY.dispatch), (back, COPY.combine))]
        assert copies[0] == pytest.approx(copies[1])


@on_all
def test_only_what_leaves_a_domain_meets_a_nic(name: str, place: str) -> None:
    port = dispatcher(name).times(ROUTED[place], GROUPS[place], COPY).dispatch
    assert port.bytes_out.any() == (GROUPS[place].domains > 1)
    assert port.bytes_up.any() == (GROUPS[place].ranks_per_domain > 1 or name == "all-gather-reduce-scatter") or (
        GROUPS[place].ranks == 1
    )


@on_all
def test_a_batch_is_its_samples(name: str, place: str) -> None:
    demand, network = ROUTED[place], GROUPS[place]
    one = Demand(
        demand.copies[1], demand.rank_tokens[1], demand.domain_tokens[1], demand.tokens, demand.ranks_per_domain
    )
    whole = dispatcher(name).times(demand, network, COPY)
    single = dispatcher(name).times(one, network, COPY)
    for many, alone in zip(parts(whole), parts(single), strict=True):
        assert seconds(many)[:, 1] == pytest.approx(seconds(alone))


@pytest.mark.parametrize(
    ("name", "place"), pairs(["one-node", "four-nodes", "rack"], without="all-gather-reduce-scatter")
)
def test_copies_to_oneself_cost_nothing_on_the_wire(name: str, place: str) -> None:
    network = GROUPS[place]
    own = np.diag(np.full(network.ranks, 5.0))
    inside = np.equal(network.domain[:, None], np.arange(network.domains)[None, :]) * 5.0
    demand = Demand(own, own, inside, np.zeros(network.ranks), network.ranks_per_domain)
    for port in parts(dispatcher(name).times(demand, network, COPY)):
        assert not port.bytes_up.any()
        assert not port.bytes_out.any()
        assert name in ("deepep-normal", "two-sided-nvl") or not port.send.any()


@pytest.mark.parametrize(("name", "place"), pairs(["one-node", "four-nodes", "mesh", "rack"]))
def test_renaming_ranks_alike_in_every_domain_renames_the_answer(name: str, place: str) -> None:
    network, demand = GROUPS[place], ROUTED[place]
    size = network.ranks_per_domain
    inside = np.random.default_rng(2).permutation(size)
    order = (np.arange(network.ranks) // size) * size + np.tile(inside, network.domains)
    renamed = Demand(
        demand.copies[:, order][:, :, order],
        demand.rank_tokens[:, order][:, :, order],
        demand.domain_tokens[:, order],
        demand.tokens[order],
        size,
    )
    before, after = (dispatcher(name).times(each, network, COPY) for each in (demand, renamed))
    for old, new in zip(parts(before), parts(after), strict=True):
        assert seconds(new) == pytest.approx(seconds(old)[..., order])
        assert new.bytes_up == pytest.approx(old.bytes_up[..., order])


@pytest.mark.parametrize("place", ["four-nodes", "last-node-partial", "two-racks", "every-second-gpu"])
def test_deduplication_never_sends_more(place: str) -> None:
    """Per rank on its NIC; inside one domain, per rank on NVLink."""
    plain, tight = (
        dispatcher(name).times(ROUTED[place], GROUPS[place], COPY) for name in ("nccl-all-to-all", "hybrid-ep")
    )
    assert (tight.dispatch.bytes_out <= plain.dispatch.bytes_out).all()
    assert tight.dispatch.bytes_out.sum() < plain.dispatch.bytes_out.sum()
    demand, rack = ROUTED["rack"], GROUPS["rack"]
    for name in ("deepep-normal", "one-sided-nvl"):
        port = dispatcher(name).times(demand, rack, COPY).dispatch
        assert (port.bytes_up <= dispatcher("nccl-all-to-all").times(demand, rack, COPY).dispatch.bytes_up).all()


@pytest.mark.parametrize("place", ["four-nodes", "last-node-partial", "every-second-gpu", "two-racks", "one-node"])
def test_two_hops_match_a_walk_of_single_tokens(place: str) -> None:
    network, random = GROUPS[place], np.random.default_rng(11)
    ranks, size = network.ranks, network.ranks_per_domain
    up, out, distinct = (np.zeros((ranks, ranks)) for _ in range(3))
    domains, handled, arrived = np.zeros((ranks, network.domains)), np.zeros(ranks), np.zeros(ranks)
    for source in np.repeat(np.arange(ranks), 5):
        goals = np.unique(random.integers(0, ranks, 4))
        for domain in np.unique(goals // size):
            members = min(size, ranks - domain * size)
            first = domain * size + source % size % members
            domains[source, domain] += 1
            handled[source] += network.domains > 1
            arrived[first] += network.domains > 1
            if source // size != domain:
                out[source, first] += 1
            else:
                first = source
            for goal in goals[goals // size == domain]:
                distinct[source, goal] += 1
                handled[source] += 1
                arrived[goal] += 1
                up[first, goal] += first != goal
    demand = Demand(distinct, distinct, domains, np.full(ranks, 5.0), size)
    found = two_hop_traffic(demand, network)
    assert np.array_equal(found.up, up)
    assert np.array_equal(found.out, out)
    home, away = handled_copies(demand, network)
    assert np.array_equal(home, handled)
    assert np.array_equal(away, arrived)
    assert proxies(network).shape == (ranks, network.domains)


@pytest.mark.parametrize("place", ["four-nodes", "last-node-partial", "every-second-gpu", "two-racks"])
def test_two_levels_match_a_walk_of_single_copies(place: str) -> None:
    """Over scale-up links to the place of the receiver in the sender's domain, then over the NIC of that rank."""
    network, random = GROUPS[place], np.random.default_rng(5)
    ranks, size = network.ranks, network.ranks_per_domain
    copies, up, out = (np.zeros((ranks, ranks)) for _ in range(3))
    for source, goal in random.integers(0, ranks, (400, 2)):
        copies[source, goal] += 1
        members = min(size, ranks - source // size * size)
        via = source // size * size + goal % size % members
        up[source, via] += via != source
        out[via, goal] += source // size != goal // size
    found = two_level_traffic(np.stack([copies, 2 * copies]), network)
    assert np.array_equal(found.up, np.stack([up, 2 * up]))
    assert np.array_equal(found.out, np.stack([out, 2 * out]))


def test_two_levels_spread_what_a_hot_rank_sends_over_its_domains_nics() -> None:
    """All tokens go to rank 3: its own NIC takes them in, but on the way back they leave through all eight."""
    network = GROUPS["four-nodes"]
    copies = np.zeros((32, 32))
    copies[:, 3] = 100.0
    demand = Demand(copies, copies, np.tile([100.0, 0, 0, 0], (32, 1)), np.full(32, 100.0), 8)
    times = dispatcher("hierarchical").times(demand, network, Payload(1.0, 1.0))
    assert times.dispatch.received_out[3] == times.dispatch.received_out.sum() == 2400
    assert times.combine.bytes_out[:8] == pytest.approx(np.full(8, 300.0))


@pytest.mark.parametrize("place", ["four-nodes", "torus-3d", "mesh", "tree-2to1"])
def test_the_plain_way_back_is_the_reversed_demand(place: str) -> None:
    network, demand = GROUPS[place], ROUTED[place]
    forward, backward = (direct_traffic(each, network, distinct=False) for each in (demand, reverse(demand)))
    assert np.array_equal(forward.reversed().up, backward.up)
    same = Payload(1000.0, 1000.0)
    combine = dispatcher("nccl-all-to-all").times(demand, network, same).combine
    dispatch = dispatcher("nccl-all-to-all").times(reverse(demand), network, same).dispatch
    assert combine.send == pytest.approx(dispatch.send)


def test_the_hot_rank_is_late_and_so_are_those_that_send_to_it() -> None:
    network = GROUPS["one-node"]
    copies = np.full((8, 8), 1000.0)
    copies[:, 3] = 10_000.0
    demand = Demand(copies, copies, copies.sum(axis=1, keepdims=True), np.full(8, 17_000.0), 8)
    port = dispatcher("nccl-all-to-all").times(demand, network, COPY).dispatch
    assert port.receive.argmax() == 3
    assert port.receive[3] > 5 * port.receive[0]
    assert port.busiest == pytest.approx(port.latency + port.receive[3])


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("deepep-normal", "pcie", "NVLink"),
        ("deepep-normal", "one-rank-a-node", "at least 2 ranks"),
        ("hybrid-ep", "torus-2d", "NVLink"),
        ("one-sided-nvl", "four-nodes", "one NVLink domain"),
        ("one-sided-nvl", "mesh", "one NVLink domain"),
        ("two-sided-nvl", "four-nodes", "one NVLink domain"),
        ("deepep-low-latency", "pcie", "NVLink"),
        ("hierarchical", "rack", "several domains"),
        ("hierarchical", "one-rank-a-node", "several ranks"),
    ],
)
def test_a_dispatcher_says_why_it_cannot_run(name: str, place: str, reason: str) -> None:
    found = DISPATCHERS[name].runs_on(GROUPS[place])
    assert found is not None
    assert reason in found
    with pytest.raises(InfeasibleError, match=reason):
        dispatcher(name).times(ROUTED[place], GROUPS[place], COPY)


def test_unknown_names_are_named() -> None:
    with pytest.raises(UnknownNameError, match="deepep-normal"):
        dispatcher("deep-ep-normal")
    with pytest.raises(UnknownNameError, match="ideal"):
        dispatcher("hybrid-ep").times(ROUTED["pair"], GROUPS["pair"], COPY, network="idle")


def test_two_hop_kernels_on_xgmi_are_assumed_and_never_chosen() -> None:
    group, demand = GROUPS["mesh"], ROUTED["mesh"]
    times = dispatcher("hybrid-ep").times(demand, group, COPY)
    assert times.basis == "assumed"
    assert times.relative >= group.law("hybrid-ep").band_elsewhere
    assert any("xgmi" in note for note in times.notes)
    assert choose(demand, group, COPY).dispatcher.name != "hybrid-ep"
    with pytest.raises(InfeasibleError, match="needs NVLink"):
        dispatcher("deepep-normal").times(demand, group, COPY)
