"""Where a group sits: domains, NICs, leaf switches; and the groups that the other network tests share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.errors import InfeasibleError, UserError
from moesim.network.demand import Demand
from moesim.network.portload import Traffic, busiest_port, own_port
from moesim.network.topology import GroupNetwork, group
from moesim.specs.cluster import ClusterSpec, FabricSpec
from moesim.specs.gpu import GpuSpec

UP, NIC = 450e9, 50e9


def gpu(**changes: Any) -> GpuSpec:
    base = {"generation": "hopper", "bf16": 989e12, "memory": 80e9, "memory_bandwidth": 3.35e12}
    return GpuSpec(**{**base, "scale_up_bandwidth": UP, "nic_bandwidth": NIC, **changes})


def cluster(gpus: int, domain: int = 8, fabric: dict[str, Any] | None = None, **changes: Any) -> ClusterSpec:
    card = {key: changes.pop(key) for key in list(changes) if key in GpuSpec.model_fields and key != "nic_bandwidth"}
    network = FabricSpec(**(fabric or {"kind": "rail-optimized"}))
    return ClusterSpec(gpu=gpu(**card), gpus=gpus, fabric=network, gpus_per_domain=domain, **changes)


TPU: dict[str, Any] = {"generation": "tpu", "scale_up_kind": "torus", "scale_up_bandwidth": 50e9}
TWO_TO_ONE = {"kind": "fat-tree", "leaf_ports": 2, "oversubscription": 2.0}
RAILS_TWO_TO_ONE = {"kind": "rail-optimized", "leaf_ports": 2, "oversubscription": 2.0}

GROUPS: dict[str, GroupNetwork] = {
    "one-rank": group(cluster(8), 1),
    "one-node": group(cluster(8), 8),
    "pair": group(cluster(8), 2),
    "four-nodes": group(cluster(32), 32),
    "last-node-partial": group(cluster(32), 20),
    "every-second-gpu": group(cluster(32), 16, stride=2),
    "one-rank-a-node": group(cluster(64), 8, stride=8),
    "rails-2to1": group(cluster(32, fabric=RAILS_TWO_TO_ONE), 32),
    "tree-2to1": group(cluster(32, fabric=TWO_TO_ONE), 32),
    "shared-nics": group(cluster(32, nics_per_domain=4), 32),
    "shared-nics-tree": group(cluster(32, nics_per_domain=2, fabric=TWO_TO_ONE), 32),
    "pcie": group(cluster(16, scale_up_kind="pcie", scale_up_bandwidth=32e9, fabric=RAILS_TWO_TO_ONE), 16),
    "mesh": group(cluster(16, scale_up_kind="xgmi"), 16),
    "rack": group(cluster(72, 72, generation="blackwell", scale_up_bandwidth=900e9), 64),
    "two-racks": group(cluster(144, 72, generation="blackwell", scale_up_bandwidth=900e9), 96),
    "torus-2d": group(cluster(16, 16, torus_dimensions=2, **TPU), 16),
    "torus-3d": group(
        cluster(24, 24, torus_dimensions=3, fabric={"kind": "torus", "torus_shape": (2, 3, 4)}, **TPU), 24
    ),
    "two-pods": group(cluster(16, 8, torus_dimensions=2, **TPU), 12),
    "no-scale-up": group(cluster(4, 1, scale_up_kind="none", scale_up_bandwidth=None), 4),
}


def routed(network: GroupNetwork, seed: int, tokens: int = 24, top_k: int = 4, batch: int = 2) -> Demand:
    """Random skewed routing of single tokens, counted one by one: every distinct place is a real one."""
    random, ranks, size = np.random.default_rng(seed), network.ranks, network.ranks_per_domain
    copies, distinct = np.zeros((batch, ranks, ranks)), np.zeros((batch, ranks, ranks))
    domains = np.zeros((batch, ranks, network.domains))
    popularity = random.dirichlet(np.full(ranks, 0.5))
    for sample, source in np.ndindex(batch, ranks):
        for _ in range(tokens):
            chosen = random.choice(ranks, size=top_k, p=popularity)
            np.add.at(copies[sample, source], chosen, 1)
            distinct[sample, source, np.unique(chosen)] += 1
            domains[sample, source, np.unique(chosen // size)] += 1
    return Demand(copies, distinct, domains, np.full(ranks, float(tokens)), size)


def only(ranks: int, *pairs: tuple[int, int]) -> np.ndarray:
    """One token copy on each pair."""
    matrix = np.zeros((ranks, ranks))
    for pair in pairs:
        matrix[pair] = 1.0
    return matrix


@pytest.mark.parametrize(
    ("name", "domains", "size"),
    [
        ("one-node", 1, 8),
        ("last-node-partial", 3, 8),
        ("every-second-gpu", 4, 4),
        ("one-rank-a-node", 8, 1),
        ("rack", 1, 64),
        ("two-racks", 2, 72),
        ("two-pods", 2, 8),
        ("no-scale-up", 4, 1),
    ],
)
def test_ranks_fall_into_domains(name: str, domains: int, size: int) -> None:
    assert (GROUPS[name].domains, GROUPS[name].ranks_per_domain) == (domains, size)


def test_the_cluster_overrides_the_fabric_and_the_fabric_the_gpu() -> None:
    fabric = {"kind": "single-switch", "nic_bandwidth": 25e9}
    assert group(cluster(16), 16).own_nic_rate == NIC
    assert group(cluster(16, fabric=fabric), 16).own_nic_rate == 25e9
    assert group(cluster(16, fabric=fabric, nic_bandwidth=100e9), 16).own_nic_rate == 100e9
    assert group(cluster(16, nics_per_domain=16), 16).own_nic_rate == 2 * NIC


def test_a_group_without_a_way_out_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="fabric is 'none'"):
        group(cluster(16, fabric={"kind": "none"}), 16)
    bare = ClusterSpec(gpu=gpu(nic_bandwidth=None), gpus=16, fabric=FabricSpec(kind="fat-tree"), gpus_per_domain=8)
    with pytest.raises(UserError, match="nic_bandwidth"):
        group(bare, 16)
    with pytest.raises(UserError, match="scale_up_bandwidth"):
        group(cluster(8, scale_up_bandwidth=None), 8)


def test_two_gpus_on_one_nic_halve_its_rate_and_one_alone_keeps_it() -> None:
    network = GROUPS["shared-nics"]
    crowd = Traffic(np.zeros((32, 32)), only(32, (0, 8), (1, 9)))
    alone = Traffic(np.zeros((32, 32)), only(32, (0, 8), (2, 10)))
    assert busiest_port(crowd, network).out_send[:3] == pytest.approx([2 / NIC, 2 / NIC, 0.0])
    assert busiest_port(alone, network).out_send[:3] == pytest.approx([1 / NIC, 0.0, 1 / NIC])
    assert own_port(crowd, network).out_send[:2] == pytest.approx([1 / NIC, 1 / NIC])


def test_a_nic_shared_with_another_group_counts_by_its_members() -> None:
    network = group(cluster(32, nics_per_domain=4), 16, stride=2)
    assert network.nic_capacity == pytest.approx(np.full(16, NIC / 2))


def test_uplinks_at_two_to_one_carry_half_of_what_climbs_them() -> None:
    everyone = np.ones((32, 32)) - np.eye(32)
    away = np.where(np.arange(32)[:, None] // 16 != np.arange(32)[None, :] // 16, everyone, 0.0)
    for name in ("tree-2to1", "rails-2to1"):
        loads = busiest_port(Traffic(np.zeros((32, 32)), away), GROUPS[name])
        assert loads.out_send == pytest.approx(np.full(32, 2 * 16 / NIC))
        flat = replace(GROUPS[name], oversubscription=1.0)
        assert busiest_port(Traffic(np.zeros((32, 32)), away), flat).out_send == pytest.approx(np.full(32, 16 / NIC))


def test_traffic_below_one_leaf_never_meets_its_uplinks() -> None:
    near = Traffic(np.zeros((32, 32)), only(32, (0, 8), (3, 11)))
    for name in ("tree-2to1", "rails-2to1"):
        assert busiest_port(near, GROUPS[name]).out_send[[0, 3]] == pytest.approx([1 / NIC, 1 / NIC])


def test_one_sender_has_a_leafs_uplinks_for_itself_but_a_rail_is_narrow() -> None:
    lone = Traffic(np.zeros((32, 32)), only(32, (0, 16)))
    assert busiest_port(lone, GROUPS["tree-2to1"]).out_send[0] == pytest.approx(1 / NIC)
    # 2 members of a rail under a leaf leave it 2 x NIC / 2 upward: exactly one NIC's rate.
    assert busiest_port(lone, GROUPS["rails-2to1"]).out_send[0] == pytest.approx(1 / NIC)
    both = Traffic(np.zeros((32, 32)), only(32, (0, 16), (8, 24)))
    assert busiest_port(both, GROUPS["rails-2to1"]).out_send[[0, 8]] == pytest.approx([2 / NIC, 2 / NIC])
    assert busiest_port(both, GROUPS["tree-2to1"]).out_send[[0, 8]] == pytest.approx([1 / NIC, 1 / NIC])


def test_changing_rails_climbs_the_uplinks_only_without_fast_links_in_the_node() -> None:
    assert not GROUPS["rails-2to1"].crosses_leaves[0, 9]
    assert GROUPS["pcie"].crosses_leaves[0, 9]
    assert not GROUPS["pcie"].crosses_leaves[0, 8]


def test_a_mesh_has_one_link_a_peer() -> None:
    one_peer = Traffic(only(16, (0, 1)), np.zeros((16, 16)))
    assert busiest_port(one_peer, GROUPS["mesh"]).up_send[0] == pytest.approx(7 / UP)
    all_peers = Traffic(only(16, *((0, peer) for peer in range(1, 8))), np.zeros((16, 16)))
    assert busiest_port(all_peers, GROUPS["mesh"]).up_send[0] == pytest.approx(7 / UP)


def test_the_fabric_loses_five_percent_a_doubling_beyond_eight_domains() -> None:
    states = [group(cluster(512), 8 * domains).fabric_state for domains in (2, 8, 16, 32)]
    assert states == pytest.approx([1.0, 1.0, 0.95, 0.95**2])
    degraded = group(cluster(512, fabric={"kind": "fat-tree", "efficiency": 0.36}), 64)
    assert degraded.fabric_state == pytest.approx(0.36)


def test_only_a_fabric_slower_than_the_fitted_one_adds_latency() -> None:
    added = [
        group(cluster(16, fabric={"kind": "fat-tree", "latency": late}), 16).added_latency for late in (1e-6, 15e-6)
    ]
    assert added == pytest.approx([0.0, 10e-6])
