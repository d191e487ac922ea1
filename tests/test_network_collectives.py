"""Collectives of tensor, data, context and pipeline parallelism: by hand and in their limits."""

from __future__ import annotations

from math import log2, sqrt

import numpy as np
import pytest
from nccl_numbers import AMPERE, BASE, ETA, ETA_SMALL, HOP, ROOT, SWITCH
from test_network_topology import GROUPS, NIC, RAILS_TWO_TO_ONE, TWO_TO_ONE, UP, cluster

from moesim.network.collectives import (
    all_gather,
    all_reduce,
    all_to_all,
    custom_all_reduce,
    point_to_point,
    reduce_scatter,
    ring_bandwidth,
)
from moesim.network.demand import Demand
from moesim.network.dispatchers import Payload, dispatcher
from moesim.network.topology import group

SIZE, US = 1e9, 1e-6


def test_tensor_parallel_in_a_step_by_hand() -> None:
    """(tp-1)/tp x bytes / (NVLink x 0.67) + 15 us, for the reduce-scatter and for the all-gather of its shards."""
    expected = 7 / 8 * SIZE / (UP * 0.67) + 15 * US
    assert reduce_scatter(GROUPS["one-node"], SIZE) == pytest.approx(expected)
    assert all_gather(GROUPS["one-node"], SIZE / 8) == pytest.approx(expected)
    assert all_reduce(GROUPS["one-node"], SIZE) == pytest.approx(2 * expected - 15 * US)


def test_a_ring_across_domains_has_all_members_nics() -> None:
    assert ring_bandwidth(GROUPS["four-nodes"]) == pytest.approx(8 * NIC)
    assert ring_bandwidth(GROUPS["every-second-gpu"]) == pytest.approx(4 * NIC)
    assert ring_bandwidth(GROUPS["one-rank-a-node"]) == pytest.approx(NIC)
    assert ring_bandwidth(GROUPS["shared-nics"]) == pytest.approx(4 * NIC)
    assert ring_bandwidth(group(cluster(16, nic_bandwidth=200e9), 16)) == pytest.approx(UP)
    wire = 31 / 32 * SIZE / (8 * NIC)
    assert reduce_scatter(GROUPS["four-nodes"], SIZE) == pytest.approx(wire / 0.67 + 89 * US)
    assert reduce_scatter(GROUPS["four-nodes"], SIZE, "fsdp") == pytest.approx(wire / 0.59 + 89 * US)


def test_uplinks_bind_a_ring_only_beyond_the_domains_below_them() -> None:
    """A ring leaves a leaf of 2 domains with one domain's flow: 2:1 is just enough, 4:1 halves it."""
    for fabric in (TWO_TO_ONE, RAILS_TWO_TO_ONE):
        assert ring_bandwidth(group(cluster(32, fabric=fabric), 32)) == pytest.approx(8 * NIC)
        assert ring_bandwidth(group(cluster(32, fabric=fabric, oversubscription=4.0), 32)) == pytest.approx(4 * NIC)


def test_a_torus_rings_along_all_its_dimensions() -> None:
    assert ring_bandwidth(GROUPS["torus-2d"]) == pytest.approx(4 * 50e9)
    open_mesh = {"kind": "torus", "torus_wraps": False}
    card = cluster(16, 16, fabric=open_mesh, generation="tpu", scale_up_kind="torus", scale_up_bandwidth=50e9)
    assert ring_bandwidth(group(card, 16)) == pytest.approx(2 * 50e9)


def test_part_of_a_mesh_has_part_of_its_links() -> None:
    assert ring_bandwidth(group(cluster(8, scale_up_kind="xgmi"), 2)) == pytest.approx(UP / 7)
    assert ring_bandwidth(group(cluster(8, scale_up_kind="xgmi"), 8)) == pytest.approx(UP)


def test_alone_in_a_domain_by_hand() -> None:
    alpha, wire = (BASE + 2 * HOP * 7) * US, 2 * 7 / 8 * SIZE / (ETA / (1 + ETA_SMALL / 7) * UP * SWITCH)
    assert all_reduce(GROUPS["one-node"], SIZE, "alone") == pytest.approx(alpha + wire + ROOT * sqrt(alpha * wire))


def test_a_message_takes_scale_up_links_inside_a_domain() -> None:
    near, far = group(cluster(16), 2), group(cluster(16), 2, stride=8)
    assert point_to_point(near, SIZE) == pytest.approx(15 * US + SIZE / (ETA * UP))
    assert point_to_point(far, SIZE) == pytest.approx(42 * US + SIZE / (0.91 * NIC))


@pytest.mark.parametrize("place", list(GROUPS))
def test_collectives_are_monotone_and_free_when_empty(place: str) -> None:
    network, sizes = GROUPS[place], np.array([0.0, 1.0, 1e6, 1e9])
    for operation in (all_gather, reduce_scatter, all_reduce):
        for use in ("step", "fsdp", "alone"):
            seconds = operation(network, sizes, use)  # type: ignore[arg-type]
            assert seconds.shape == (4,)
            assert seconds[0] == 0.0
            assert (np.diff(seconds) > 0).all() == (network.ranks > 1)
            assert operation(network, 1e6, use) == pytest.approx(seconds[2])  # type: ignore[arg-type]
    assert isinstance(point_to_point(network, 1e6), float)
    assert point_to_point(network, 0.0) == 0.0


def test_in_switch_reduction_is_of_nvlink_from_hopper_on() -> None:
    """A fifth more of the wire, for large buffers; Ampere's switch does not add."""
    hopper, ampere = (group(cluster(8, generation=name), 8) for name in ("hopper", "ampere"))
    assert all_reduce(ampere, 1e12, "alone") / all_reduce(hopper, 1e12, "alone") == pytest.approx(1.2, rel=0.01)
    assert reduce_scatter(ampere, 1e12, "alone") == pytest.approx(reduce_scatter(hopper, 1e12, "alone"), rel=0.01)
    assert all_gather(ampere, 0.001, "alone") / all_gather(hopper, 0.001, "alone") == pytest.approx(AMPERE, rel=0.01)


def test_a_small_all_reduce_across_nodes_takes_the_tree_by_hand() -> None:
    """A chain in the node up and down, and two levels of 5 us up and down; 0.9 of the ring's bandwidth."""
    network, size = GROUPS["four-nodes"], 1e5
    alpha, wire = (BASE + 2 * HOP * 7 + 2 * log2(4) * 5) * US, 2 * size / (0.95 * 0.9 * 8 * NIC)
    assert all_reduce(network, size, "alone") == pytest.approx(alpha + wire + 0.34 * sqrt(alpha * wire))
    alpha, wire = 89 * US, 2 * 31 / 32 * SIZE / (0.95 * 8 * NIC)
    assert all_reduce(network, SIZE, "alone") == pytest.approx(alpha + wire + 0.34 * sqrt(alpha * wire))


def test_a_tree_grows_with_the_logarithm_of_the_domains_and_a_ring_with_their_number() -> None:
    small = {nodes: group(cluster(8 * nodes), 8 * nodes) for nodes in (16, 64, 256)}
    trees = [all_reduce(network, 1024.0, "alone") for network in small.values()]
    assert np.diff(trees) == pytest.approx([20 * US] * 2, rel=0.05)
    rings = [reduce_scatter(network, 1024.0, "alone") for network in small.values()]
    assert np.diff(rings) == pytest.approx([48 * 2.7 * US, 192 * 2.7 * US], rel=0.05)


def test_the_custom_all_reduce_by_hand() -> None:
    """One shot for a small buffer, two for a larger one, the library's for the largest."""
    network = GROUPS["one-node"]
    one = (3.385 + 0.082 * 7) * US + 1e4 * 7 / (0.5365 * UP)
    two = (6.667 + 0.595 * 7) * US + 4e6 * 2 * 7 / 8 / (0.5719 * UP)
    assert custom_all_reduce(network, 1e4) == pytest.approx(one)
    assert custom_all_reduce(network, 4e6) == pytest.approx(two)
    assert custom_all_reduce(network, SIZE) == all_reduce(network, SIZE, "alone")
    assert custom_all_reduce(network, np.array([1e4, 4e6])) == pytest.approx([one, two])
    assert custom_all_reduce(GROUPS["four-nodes"], 1e4) == all_reduce(GROUPS["four-nodes"], 1e4, "alone")


@pytest.mark.parametrize("place", list(GROUPS))
def test_the_plain_all_to_all_is_the_dispatchers(place: str) -> None:
    """On every topology the same seconds as a demand of equal copies; the own share stays at home."""
    network, size = GROUPS[place], 4096.0
    copies = np.full((network.ranks, network.ranks), size / network.ranks)
    by_domain = np.add.reduceat(copies, np.arange(0, network.ranks, network.ranks_per_domain), axis=1)
    demand = Demand(copies, copies, by_domain, np.full(network.ranks, size), network.ranks_per_domain)
    found = dispatcher("nccl-all-to-all").times(demand, network, Payload(1000.0, 1000.0))
    assert all_to_all(network, 1000 * size) == pytest.approx(float(found.dispatch.busiest))
    assert all_to_all(network, np.array([0.0, 1000 * size]))[1] == all_to_all(network, 1000 * size)
    assert all_to_all(network, 0.0) == 0.0


def test_an_unequal_all_to_all_waits_for_its_busiest_rank() -> None:
    """Rank 0 takes in twice the mean."""
    network = GROUPS["one-node"]
    copies = np.full((8, 8), 1e6)
    copies[:, 0] = 2e6
    demand = Demand(copies, copies, copies.sum(axis=1, keepdims=True), np.full(8, 9e6), 8)
    found = dispatcher("nccl-all-to-all").times(demand, network, Payload(1.0, 1.0))
    assert all_to_all(network, 8e6, imbalance=2.0) == pytest.approx(float(found.dispatch.busiest))
