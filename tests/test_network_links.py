"""Links and ways: every flow runs from its source to its target, and each kind of network by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from test_network_topology import GROUPS, NIC, RAILS_TWO_TO_ONE, TPU, TWO_TO_ONE, UP, cluster, only

from moesim import catalog
from moesim.network.links import Flows, Links, flows, links
from moesim.network.portload import PortLoads, Traffic, busiest_port, tier_by_links
from moesim.network.rings import ring_out_rate
from moesim.network.topology import GroupNetwork, group

CORE = {"levels": 3, "leaf_ports": 1, "pod_leaves": 2, "oversubscription": 2.0, "upper_oversubscription": 3.0}
TREE3 = {"kind": "fat-tree", **CORE}
RAILS3 = {"kind": "rail-optimized", **CORE}
PLANES = {"kind": "dual-plane", "leaf_ports": 2, "oversubscription": 2.0}
PCIE: dict[str, Any] = {"scale_up_kind": "pcie", "scale_up_bandwidth": 32e9}
BARE: dict[str, Any] = {"scale_up_kind": "none", "scale_up_bandwidth": None}
TORUS: dict[str, Any] = {"torus_dimensions": 2, **TPU}
TORUS_3D = {"kind": "torus", "torus_shape": (2, 3, 4)}

SLOW = {"link": "nic", "gpu": 5, "share": 0.5}
DEAD = {"link": "nic", "gpu": 9, "share": 0.0}
ALSO_DEAD = {"link": "nic", "gpu": 10, "share": 0.0}
NARROW = {"link": "scale-up", "gpu": 3, "share": 0.8}
PAIR = {"between": ["gpu4", "gpu5"], "share": 0.25}
UPLINK = {"link": "uplink", "leaf": 1, "share": 0.5}


def wires(*spans: Any) -> dict[str, Any]:
    """A fabric of links written as (end, end, bandwidth) or (end, end, bandwidth, {...})."""
    keys = ("between", "bandwidth")
    return {
        "kind": "links",
        "links": [dict(zip(keys, ([one, two], rate), strict=True)) | dict(*more) for one, two, rate, *more in spans],
    }


LEAF_SPINE = wires(("gpu0-15", "leaf0", NIC), ("gpu16-31", "leaf1", NIC), ("leaf0-1", "spine0-3", NIC, {"count": 2}))
RAILS_ALONE = wires(("gpu0-31", "rail0-7", NIC, {"pairwise": True}))
RING = wires(("gpu0-6", "gpu1-7", NIC, {"pairwise": True}), ("gpu7", "gpu0", NIC))
ONE_WAY_RING = wires(
    ("gpu0-6", "gpu1-7", NIC, {"pairwise": True, "one_way": True}), ("gpu7", "gpu0", NIC, {"one_way": True})
)


def faulty(
    gpus: int, *degraded: dict[str, Any], ranks: int | None = None, stride: int = 1, **rest: Any
) -> GroupNetwork:
    return group(cluster(gpus, degraded=degraded, **rest), ranks or gpus // stride, stride)


WRITTEN: dict[str, GroupNetwork] = {
    "written-tree": faulty(32, fabric=LEAF_SPINE),
    "written-tree-flat": faulty(32, domain=1, fabric=LEAF_SPINE, **BARE),
    "written-tree-stride": faulty(32, stride=2, fabric=LEAF_SPINE),
    "written-tree-failed": faulty(
        32, {"link": "nic", "gpu": 5, "share": 0}, {"between": ["leaf0", "spine1"], "share": 0}, fabric=LEAF_SPINE
    ),
    "written-rails": faulty(32, fabric=RAILS_ALONE),
    "written-rails-failed": faulty(32, DEAD, fabric=RAILS_ALONE),
    "written-rails-a-node": faulty(32, stride=8, fabric=RAILS_ALONE),
    "written-ring": faulty(8, domain=1, fabric=RING, **BARE),
    "written-one-way": faulty(8, domain=1, fabric=ONE_WAY_RING, **BARE),
}
BUILT: dict[str, GroupNetwork] = {
    **GROUPS,
    "tree-3": faulty(64, fabric=TREE3),
    "rails-3-part": faulty(64, ranks=48, fabric=RAILS3),
    "planes": faulty(32, fabric=PLANES),
    "rack-between": faulty(288, domain=72, fabric=RAILS3 | {"nic_bandwidth": 100e9}, ranks=144),
    "nics": faulty(32, SLOW, DEAD, ALSO_DEAD, NARROW),
    "nics-tree": faulty(32, SLOW, DEAD, UPLINK, fabric=TWO_TO_ONE),
    "nics-rails": faulty(32, SLOW, DEAD, UPLINK, fabric=RAILS_TWO_TO_ONE),
    "nics-shared": faulty(32, SLOW, DEAD, nics_per_domain=4),
    "nics-pcie": faulty(32, DEAD, NARROW, UPLINK, fabric=RAILS_TWO_TO_ONE, **PCIE),
    "nics-stride": faulty(32, SLOW, DEAD, stride=2),
    "nics-a-node": faulty(64, SLOW, DEAD, stride=8, fabric=RAILS_TWO_TO_ONE),
    "uplink-nonblocking": faulty(32, UPLINK, fabric={"kind": "fat-tree", "leaf_ports": 2}),
    "pod": faulty(64, {"link": "uplink", "pod": 1, "share": 0.5}, DEAD, fabric=TREE3),
    "plane-slow": faulty(32, {"link": "plane", "plane": 1, "share": 0.5}, SLOW, fabric=PLANES),
    "plane-lost": faulty(32, {"link": "plane", "plane": 0, "share": 0}, UPLINK, fabric=PLANES),
    "mesh-slow": faulty(16, NARROW, PAIR, scale_up_kind="xgmi"),
    "torus-slow": faulty(16, NARROW, PAIR, domain=16, **TORUS),
    "torus-3d-slow": faulty(24, NARROW, PAIR, domain=24, fabric=TORUS_3D, **TORUS),
    "pods-slow": faulty(16, NARROW, DEAD, domain=8, ranks=12, **TORUS),
}
ALL = {**BUILT, **WRITTEN}


def by_links(load: Traffic, network: GroupNetwork) -> PortLoads:
    """The other road to `busiest_port`, for any network: from each link's capacity and each flow's way."""
    return PortLoads(*tier_by_links(load.up, network, False), *tier_by_links(load.out, network, True))


def traffic(network: GroupNetwork, seed: int, density: float = 1.0) -> Traffic:
    """Skewed random copies between all ranks, by tier."""
    random, ranks = np.random.default_rng(seed), network.ranks
    copies = random.lognormal(0, 1, (ranks, ranks)) * (random.random((ranks, ranks)) < density)
    np.fill_diagonal(copies, 0)
    same = network.domain[:, None] == network.domain[None, :]
    return Traffic(copies * same, copies * ~same)


def ways(network: GroupNetwork, found: Flows, made: Links) -> list[tuple[int, int, list[str]]]:
    """Source, target and named links of every flow."""
    return [
        (int(source), int(target), [made.names[q] for q in found.links[first:last]])
        for source, target, first, last in zip(found.source, found.target, found.first, found.first[1:], strict=False)
    ]


def gpus_of(name: str) -> list[int]:
    return [int(number) for number in name.removeprefix("gpu").split("+")]


def walk_fabric(network: GroupNetwork, source: int, target: int, names: list[str]) -> None:
    """Out of the source's NIC, up and down alike, in at the target's NIC, all on one plane."""
    words = [name.split() for name in names]
    assert network.gpu[source] in gpus_of(words[0][0])
    assert network.gpu[target] in gpus_of(words[-1][0])
    assert (words[0][-1], words[-1][-1]) == ("out", "in")
    climbing, falling = words[1 : len(words) // 2], words[len(words) // 2 : -1]
    assert all(word[-1] == "up" for word in climbing)
    assert all(word[-1] == "down" for word in falling)
    assert len({tuple(word[word.index("plane") :][:2]) if "plane" in word else () for word in words}) == 1
    for place, owner in (("leaf", network.leaf), ("pod", network.pod)):
        for way, rank in ((climbing, source), (falling, target)):
            passed = [word[0] for word in way if word[0].startswith(place)]
            assert passed in ([], [f"{place}{owner[rank]}" if owner is not None else ""])


def walk_chain(network: GroupNetwork, source: int, target: int, names: list[str]) -> None:
    """From node to node, out of the source or a neighbour that sends for it, to the target or one that takes for it."""
    hops = [name.split(" to ") for name in names]
    assert all(one[1] == two[0] for one, two in pairwise(hops))
    rank_of = {f"gpu{gpu}": rank for rank, gpu in enumerate(network.gpu)}
    assert network.domain[rank_of[hops[0][0]]] == network.domain[source]
    assert network.domain[rank_of[hops[-1][1]]] == network.domain[target]
    if not network.degraded and network.fabric.links != WRITTEN["written-rails"].fabric.links:
        assert (hops[0][0], hops[-1][1]) == (f"gpu{network.gpu[source]}", f"gpu{network.gpu[target]}")


def walk_torus(network: GroupNetwork, source: int, target: int, names: list[str]) -> None:
    assert network.torus is not None
    at = source
    first = network.domain[source] * network.ranks_per_domain
    for name in names:
        gpu, way = name.split()
        assert gpus_of(gpu) == [at]
        at = first + network.torus.neighbours[at - first, "xyz".index(way[0]), "+-".index(way[1])]
    assert at == target


def walk_up(network: GroupNetwork, source: int, target: int, names: list[str]) -> None:
    if network.torus is not None:
        walk_torus(network, source, target, names)
        return
    here, there = f"gpu{network.gpu[source]}", f"gpu{network.gpu[target]}"
    ports = [f"{here} scale-up out", f"{there} scale-up in"]
    assert names == ([f"{here} to {there}"] if network.kind == "xgmi" else ports)


@pytest.mark.parametrize("name", ALL)
def test_every_way_leads_from_its_source_to_its_target(name: str) -> None:
    network = ALL[name]
    load = traffic(network, 3, density=1.0 if network.ranks < 50 else 0.1)
    made, found = links(network), flows(load.up, load.out, network)
    assert np.all(made.capacity > 0)
    assert np.all(np.diff(found.first) > 0)
    assert len(made.names) == len(set(made.names)) == len(made.capacity) == len(made.scale_out)
    out = walk_chain if network.fabric.kind == "links" else walk_fabric
    for flow, (source, target, names) in enumerate(ways(network, found, made)):
        assert np.all(made.scale_out[found.links[found.first[flow] : found.first[flow + 1]]] == found.scale_out[flow])
        (out if found.scale_out[flow] else walk_up)(network, source, target, names)


@pytest.mark.parametrize("name", ALL)
def test_flows_add_up_to_the_traffic(name: str) -> None:
    network = ALL[name]
    load = traffic(network, 4, density=0.5)
    found = flows(load.up, load.out, network)
    for scale_out, matrix in ((False, load.up), (True, load.out)):
        mine = found.scale_out == scale_out
        total = np.zeros(matrix.shape)
        np.add.at(total, (found.source[mine], found.target[mine]), found.size[mine])
        assert total == pytest.approx(matrix, rel=1e-12)


def ratios(healthy: GroupNetwork, sick: GroupNetwork) -> dict[str, float]:
    """What is left of the links that changed, by name."""
    before, after = links(healthy), links(sick)
    assert before.names == after.names
    left = after.capacity / before.capacity
    return {name: float(share) for name, share in zip(after.names, left, strict=True) if share != 1}


@pytest.mark.parametrize(
    ("network", "spec", "expected"),
    [
        ("four-nodes", SLOW, {"gpu5 nic out": 0.5, "gpu5 nic in": 0.5}),
        ("every-second-gpu", SLOW, {"gpu4 nic out": 0.5, "gpu4 nic in": 0.5}),
        ("shared-nics", SLOW, {"gpu4+5 nic out": 0.5, "gpu4+5 nic in": 0.5}),
        ("one-node", NARROW, {"gpu3 scale-up out": 0.8, "gpu3 scale-up in": 0.8}),
        ("tree-2to1", UPLINK, {"leaf1 up": 0.5, "leaf1 down": 0.5}),
        ("rails-2to1", {**UPLINK, "leaf": 11}, {"leaf11 up": 0.5, "leaf11 down": 0.5}),
        ("mesh", PAIR, {"gpu4 to gpu5": 0.25, "gpu5 to gpu4": 0.25}),
        ("torus-2d", PAIR, {"gpu4 y+": 0.25, "gpu5 y-": 0.25}),
        (
            "written-tree",
            {"between": ["spine2", "leaf1"], "share": 0.5},
            {"leaf1 to spine2": 0.5, "spine2 to leaf1": 0.5},
        ),
        ("written-tree", SLOW, {"gpu5 to leaf0": 0.5, "leaf0 to gpu5": 0.5}),
        ("tree-3", {"link": "uplink", "pod": 1, "share": 0.5}, {"pod1 up": 0.5, "pod1 down": 0.5}),
    ],
)
def test_a_degraded_link_loses_exactly_its_share(
    network: str, spec: dict[str, Any], expected: dict[str, float]
) -> None:
    healthy = ALL[network]
    sick = replace(healthy, degraded=group(cluster(32, degraded=(spec,)), 1).degraded)
    assert ratios(healthy, sick) == pytest.approx(expected)


def test_a_slow_plane_is_slow_for_all_and_a_lost_one_has_no_links() -> None:
    healthy, slow, lost = (
        faulty(32, *faults, fabric=PLANES)
        for faults in (
            (),
            ({"link": "plane", "plane": 1, "share": 0.5},),
            ({"link": "plane", "plane": 1, "share": 0.0},),
        )
    )
    changed = ratios(healthy, slow)
    assert set(changed.values()) == {0.5}
    assert set(changed) == {name for name in links(healthy).names if "plane 1" in name}
    assert {name for name in links(lost).names if "plane 1" in name} == set()
    assert (slow.fair_nic_rate, lost.fair_nic_rate) == (NIC / 2, NIC / 2)


def nothing(ranks: int) -> np.ndarray:
    return np.zeros((ranks, ranks))


def test_a_failed_nics_gpu_shares_its_neighbours() -> None:
    network = faulty(16, {"link": "nic", "gpu": 3, "share": 0})
    crowd = busiest_port(Traffic(nothing(16), only(16, (3, 11), (2, 10), (5, 13))), network)
    assert crowd.out_send[[2, 3, 5]] == pytest.approx([2 / NIC, 2 / NIC, 1 / NIC])
    alone = busiest_port(Traffic(nothing(16), only(16, (3, 11))), network)
    assert alone.out_send[3] == pytest.approx(1 / NIC)
    assert (network.slowest_nic_share, network.fair_nic_rate) == (0.5, NIC / 2)


def test_two_failed_nics_burden_two_neighbours() -> None:
    network = faulty(16, *({"link": "nic", "gpu": gpu, "share": 0} for gpu in (3, 4)))
    everyone = np.zeros((16, 16))
    everyone[:8, 8:] = np.eye(8)
    loads = busiest_port(Traffic(nothing(16), everyone), network).out_send[:8]
    assert sorted(loads * NIC) == pytest.approx([1] * 4 + [2] * 4)
    assert network.slowest_nic_share == 0.5


def test_a_slow_nic_slows_its_own_gpu_and_every_ring() -> None:
    network = faulty(16, {"link": "nic", "gpu": 3, "share": 0.5})
    loads = busiest_port(Traffic(nothing(16), only(16, (3, 11), (2, 10))), network)
    assert loads.out_send[[2, 3]] == pytest.approx([1 / NIC, 2 / NIC])
    assert loads.out_receive[[10, 11]] == pytest.approx([1 / NIC, 1 / NIC])
    assert ring_out_rate(network) == pytest.approx(8 * NIC / 2)


def test_three_levels_by_hand() -> None:
    """A leaf above each node of 8, two leaves a pod: 4 NICs' rate out of a leaf, 16 / 6 out of a pod."""
    network = faulty(64, fabric=TREE3)
    near, far = only(64, (0, 8)), only(64, (0, 16))
    assert busiest_port(Traffic(nothing(64), near), network).out_send[0] == pytest.approx(1 / NIC)
    assert busiest_port(Traffic(nothing(64), far), network).out_send[0] == pytest.approx(1 / NIC)
    everyone = np.zeros((64, 64))
    everyone[:8, 8:16] = np.eye(8)
    assert busiest_port(Traffic(nothing(64), everyone), network).out_send[0] == pytest.approx(2 / NIC)
    climbing = np.zeros((64, 64))
    climbing[:16, 16:32] = np.eye(16)
    assert busiest_port(Traffic(nothing(64), climbing), network).out_send[:16] == pytest.approx(np.full(16, 6 / NIC))


def test_a_mesh_and_a_torus_are_as_slow_as_the_link_on_the_way() -> None:
    mesh = ALL["mesh-slow"]
    loads = busiest_port(Traffic(only(16, (4, 5), (3, 0), (1, 2)), nothing(16)), mesh)
    assert loads.up_send[[4, 3, 1]] == pytest.approx([7 / UP / 0.25, 7 / UP / 0.8, 7 / UP])
    torus = ALL["torus-slow"]
    loads = busiest_port(Traffic(only(16, (4, 6), (12, 13)), nothing(16)), torus)
    # 4 to 6 is half-way round a ring of 4: half of it passes the slow link.
    assert loads.up_send[[4, 12]] == pytest.approx([0.5 / 50e9 / 0.25, 1 / 50e9])
    assert (mesh.slowest_up_share, torus.slowest_up_share) == (0.25, 0.25)


def test_a_slow_port_slows_a_domains_ring() -> None:
    network = faulty(72, NARROW, domain=72)
    assert network.scale_up_rate == pytest.approx(0.8 * UP)
    loads = busiest_port(Traffic(only(72, (3, 0), (1, 2)), nothing(72)), network)
    assert loads.up_send[[3, 1]] == pytest.approx([1 / UP / 0.8, 1 / UP])


def test_a_ring_of_gpus_passes_messages_on() -> None:
    """Every GPU sends to its opposite of 8: 4 hops, half each way: each of the 16 links carries 8 x 4 / 16 = 2."""
    network = WRITTEN["written-ring"]
    opposite = np.roll(np.eye(8), 4, axis=1)
    assert by_links(Traffic(nothing(8), opposite), network).out_send == pytest.approx(np.full(8, 2 / NIC))
    only_way = WRITTEN["written-one-way"]
    assert by_links(Traffic(nothing(8), opposite), only_way).out_send == pytest.approx(np.full(8, 4 / NIC))


def test_a_shared_switch_is_shared_with_other_groups_in_proportion() -> None:
    """Every second GPU is the other group's: half of each spine link is left."""
    whole, half = WRITTEN["written-tree"], WRITTEN["written-tree-stride"]
    rates, all_of_it = (dict(zip(links(net).names, links(net).capacity, strict=True)) for net in (half, whole))
    assert rates["leaf0 to spine0"] == pytest.approx(NIC)
    assert rates["gpu2 to leaf0"] == pytest.approx(NIC)
    assert all_of_it["leaf0 to spine0"] == pytest.approx(2 * NIC)


def test_equal_routes_share_evenly_and_failed_ones_are_avoided() -> None:
    load = only(32, (0, 16))
    found = flows(nothing(32), load, WRITTEN["written-tree"])
    assert sorted(found.size) == pytest.approx([0.25] * 4)
    network = faulty(32, {"between": ["leaf0", "spine0-1"], "share": 0}, fabric=LEAF_SPINE)
    found = flows(nothing(32), load, network)
    assert sorted(found.size) == pytest.approx([0.5, 0.5])
    assert {names[1] for *_, names in ways(network, found, links(network))} == {"leaf0 to spine2", "leaf0 to spine3"}


def test_on_rails_alone_a_neighbour_sends_what_must_change_rails() -> None:
    network = WRITTEN["written-rails"]
    found = flows(nothing(32), only(32, (0, 9)), network)
    passed = sorted(names for *_, names in ways(network, found, links(network)))
    assert passed == [["gpu1 to rail1", "rail1 to gpu9"]]


def test_every_fabric_of_the_catalog_has_links() -> None:
    for name in catalog.names("fabrics"):
        fabric = catalog.load("fabrics", name)
        if fabric.kind in ("none", "torus"):
            continue
        network = group(cluster(64).model_copy(update={"fabric": fabric}), 64)
        load = traffic(network, 1, 0.2)
        assert flows(load.up, load.out, network).size.sum() == pytest.approx(load.up.sum() + load.out.sum())


@pytest.mark.parametrize("name", ["fat-tree-3level-2to1", "roce-3level-7to1"])
def test_a_large_tree_meets_its_core(name: str) -> None:
    """Half of the ranks in one pod, half in another, everyone sends to the other half."""
    fabric = catalog.load("fabrics", name)
    half = 8 * fabric.leaf_ports * fabric.pod_leaves
    network = group(cluster(2 * half).model_copy(update={"fabric": fabric}), 64, stride=half // 32)
    away = np.kron(1 - np.eye(2), np.ones((32, 32)))
    load = busiest_port(Traffic(nothing(64), away), network)
    assert load.out_send == pytest.approx(np.full(64, 32 * fabric.upper_oversubscription / network.own_nic_rate))


def test_flows_of_a_thousand_ranks_stay_small() -> None:
    """1,040,384 flows between domains and 7,168 inside them, at two links and 33 bytes each."""
    network = group(cluster(1024), 1024)
    everyone = np.ones((1024, 1024)) - np.eye(1024)
    same = network.domain[:, None] == network.domain[None, :]
    found = flows(everyone * same, everyone * ~same, network)
    assert len(found.size) == 1024 * 1023
    assert sum(getattr(found, part).nbytes for part in Flows.__dataclass_fields__) <= 34 * len(found.size)
