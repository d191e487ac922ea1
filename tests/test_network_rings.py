"""Rings across domains: by hand, link by link, group beside group, and next to faults of nothing."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_network_links import LEAF_SPINE, PAIR, PCIE, PLANES, RAILS3, TORUS, TREE3, faulty
from test_network_topology import NIC, RAILS_TWO_TO_ONE, TWO_TO_ONE

import moesim
from moesim.network.collectives import ring_bandwidth
from moesim.network.links import flows, links
from moesim.network.rings import ring_edges, ring_out_rate
from moesim.network.topology import GroupNetwork

SCENARIOS = Path(__file__).parents[1] / "scenarios"
HEALTHY_WAYS: list[dict[str, Any]] = [
    {"fabric": {"kind": "fat-tree"}},
    {"fabric": {"kind": "rail-optimized"}},
    {"fabric": {"kind": "rail-optimized"}, **PCIE},
    {"fabric": {"kind": "dual-plane"}},
    {"fabric": {"kind": "fat-tree", "levels": 3, "pod_leaves": 2, "upper_oversubscription": 3.0}},
    {"fabric": {"kind": "fat-tree"}, "nics_per_domain": 2},
]


def shaped(way: dict[str, Any], ports: int, ratio: float, ranks: int, stride: int) -> GroupNetwork:
    """A group that fills a cluster, or half of it where that is wished by half as many ranks."""
    fabric = {**way["fabric"], "leaf_ports": ports, "oversubscription": ratio}
    return faulty(96, ranks=ranks, stride=stride, **{**way, "fabric": fabric})


def link_by_link(network: GroupNetwork) -> float:
    """Bytes/s of all members' rings, from the busiest of the links that their edges pass."""
    ring = np.zeros((network.ranks, network.ranks))
    for here in range(network.ranks):
        first = (network.domain[here] + 1) % network.domains * network.ranks_per_domain
        ring[here, first + network.index[here]] = 1.0
    found, capacity = flows(np.zeros(ring.shape), ring, network), links(network).capacity
    load = np.bincount(found.links, np.repeat(found.size, np.diff(found.first)), minlength=len(capacity))
    return network.ranks_per_domain / float((load / capacity).max())


@pytest.mark.parametrize("way", HEALTHY_WAYS)
def test_a_ring_is_as_slow_as_the_busiest_of_its_links(way: dict[str, Any]) -> None:
    """Every kind by leaf ports, ratio, stride and size, whole leaves or not."""
    found = set()
    for ports, ratio, stride, parts in product((1, 2, 3, 4), (1.0, 2.0, 3.5), (1, 2, 4, 8, 16, 24), (1, 2, 3)):
        ranks = 96 // stride // parts
        network = shaped(way, ports, ratio, ranks, stride)
        if network.domains == 1 or ranks % network.ranks_per_domain:
            continue
        assert ring_out_rate(network) == pytest.approx(link_by_link(network), rel=1e-12)
        found.add(round(ring_out_rate(network) / network.ranks_per_domain / NIC, 6))
    assert len(found) > 3


def leaf_loads(ports: int, stride: int, ranks: int) -> np.ndarray:
    """Edges of the rings of all groups of 96 GPUs that leave each leaf, counted one by one."""
    edges = np.zeros(-(-12 // ports))
    for begin in (block + step for block in range(0, 96, ranks * stride) for step in range(stride)):
        members = np.arange(begin, begin + ranks * stride, stride)
        each = max(1, 8 // stride)
        for place, gpu in enumerate(members):
            after = members[(place + each) % ranks]
            edges[gpu // 8 // ports] += gpu // 8 // ports != after // 8 // ports
    return edges


@pytest.mark.parametrize("ports", [2, 3, 4])
@pytest.mark.parametrize("ratio", [2.0, 3.0])
@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 24])
def test_all_groups_rings_at_once_fill_the_uplinks(ports: int, ratio: float, stride: int) -> None:
    """One group after another over the whole cluster: what all of them send through a leaf is what it can carry, and no
    more where groups are under some leaves with more members than under others."""
    for parts in (1, 2, 3):
        ranks = 96 // stride // parts
        network = shaped({"fabric": {"kind": "fat-tree"}}, ports, ratio, ranks, stride)
        if network.domains == 1 or ranks * stride % (8 * ports):
            continue
        busiest = leaf_loads(ports, stride, ranks).max() / (8 * ports * NIC / ratio)
        possible = network.ranks_per_domain / max(busiest, 1 / NIC)
        even = len(set(np.bincount(network.domain * max(1, stride // 8) // ports))) == 1
        assert ring_out_rate(network) <= possible * (1 + 1e-12)
        assert not even or ring_out_rate(network) == pytest.approx(possible, rel=1e-12)


def test_strided_groups_have_neighbours_under_other_leaves() -> None:
    """Two ranks, 16 GPUs apart, under leaves of 16 GPUs: 16 rings share 8 NICs' uplinks, 25 GB/s each."""
    network = faulty(32, ranks=2, stride=16, fabric=TWO_TO_ONE)
    assert ring_bandwidth(network) == pytest.approx(NIC / 2)
    slow = faulty(32, {"link": "nic", "gpu": 0, "share": 0.999999}, ranks=2, stride=16, fabric=TWO_TO_ONE)
    assert ring_bandwidth(slow) == pytest.approx(NIC / 2)


def test_who_else_is_under_the_leaf_has_its_uplinks_too() -> None:
    """The fourth node hangs at a leaf of three, 2 to 1: alone it has 12 NICs' uplinks for 8; beside two of another
    group, a third of them."""
    fabric = {"kind": "fat-tree", "leaf_ports": 3, "oversubscription": 2.0}
    assert ring_bandwidth(faulty(32, ranks=32, fabric=fabric)) == pytest.approx(8 * NIC)
    assert ring_bandwidth(faulty(96, ranks=32, fabric=fabric)) == pytest.approx(4 * NIC)
    assert faulty(32, fabric=fabric).uplink_capacity == pytest.approx([12 * NIC, 12 * NIC])
    assert faulty(96, ranks=32, fabric=fabric).uplink_capacity == pytest.approx([12 * NIC, 4 * NIC])


def test_a_smaller_last_domain_has_edges_into_its_members() -> None:
    """Five ranks over domains of two: the last domain has one, into which both members of the one before lead."""
    network = faulty(32, ranks=5, stride=4)
    source, target = ring_edges(network)
    assert list(zip(source.tolist(), target.tolist(), strict=True)) == [(0, 2), (1, 3), (2, 4), (3, 4), (4, 0)]
    assert ring_out_rate(network) == pytest.approx(2 * NIC)


def test_a_ring_of_many_ranks_needs_no_matrix() -> None:
    """32,768 ranks, whose matrix alone would take 8 GB."""
    network = faulty(65536, ranks=32768, stride=2, fabric=TWO_TO_ONE)
    assert ring_out_rate(network) == pytest.approx(4 * NIC)
    assert not {"crosses_leaves", "links"} & (set(network.memo) | set(vars(network)))


WAYS: list[tuple[int, dict[str, Any], list[dict[str, Any]]]] = [
    (32, {"fabric": TWO_TO_ONE}, [{"link": "uplink", "leaf": 1}]),
    (32, {"fabric": {"kind": "fat-tree", "leaf_ports": 3}}, [{"link": "uplink", "leaf": 1}]),
    (32, {"fabric": RAILS_TWO_TO_ONE}, [{"link": "uplink", "leaf": 5}]),
    (64, {"fabric": TREE3}, [{"link": "uplink", "pod": 1}, {"link": "uplink", "leaf": 2}]),
    (64, {"fabric": RAILS3, **PCIE}, [{"link": "uplink", "pod": 0}]),
    (32, {"fabric": PLANES, "nics_per_domain": 3}, [{"link": "plane", "plane": 1}]),
    (32, {"fabric": LEAF_SPINE}, [{"between": ["leaf0", "spine2"]}]),
    (16, {"scale_up_kind": "xgmi"}, [PAIR]),
    (16, {"domain": 16, **TORUS}, [PAIR]),
]
EVERYWHERE: list[dict[str, Any]] = [{"link": "nic", "gpu": 9}, {"link": "scale-up", "gpu": 3}]


@pytest.mark.parametrize(("gpus", "way", "faults"), WAYS)
@pytest.mark.parametrize("stride", [1, 2, 8])
def test_a_fault_of_nothing_changes_nothing(
    gpus: int, way: dict[str, Any], faults: list[dict[str, Any]], stride: int
) -> None:
    """The same group at a share of 1; next to it at a share of nearly 1."""
    healthy = faulty(gpus, stride=stride, **way)
    for fault in faults + EVERYWHERE:
        assert faulty(gpus, {**fault, "share": 1.0}, stride=stride, **way) == healthy
        nearly = faulty(gpus, {**fault, "share": 1 - 1e-9}, stride=stride, **way)
        assert ring_bandwidth(nearly) == pytest.approx(ring_bandwidth(healthy), rel=1e-6)


@pytest.mark.parametrize("fault", ["{link: nic, gpu: 3, share: 1.0}", "{link: uplink, leaf: 0, share: 1.0}"])
def test_a_fault_of_nothing_changes_no_answer(fault: str) -> None:
    """Expert groups of 32 in 128 GPUs at 2 to 1: gradients cross leaves of 32, a rank under each."""
    path = SCENARIOS / "pinned-experts-qwen3-30b-32-h100.yaml"
    changes = ["cluster.gpus=128", "cluster.fabric=fat-tree-2to1"]
    plain, faulted = (
        moesim.estimate(moesim.load(path, [*changes, *more])).summary for more in ([], [f"cluster.degraded=[{fault}]"])
    )
    assert plain["data_parallel_time"].value > 0
    assert {name: found.value for name, found in plain.items()} == {name: f.value for name, f in faulted.items()}
