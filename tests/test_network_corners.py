"""Numbers of single groups that stand in the corner of a law: the last of two, the only one, a chip of number 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_network_links import LEAF_SPINE, RAILS_ALONE, TORUS, faulty, wires
from test_network_numbers import one_way, to_the_first
from test_network_topology import GROUPS, NIC, RAILS_TWO_TO_ONE, TPU, TWO_TO_ONE, UP, cluster, only

from moesim.errors import InfeasibleError
from moesim.network.coefficients import law
from moesim.network.collectives import all_reduce, custom_all_reduce
from moesim.network.crossing import Neighbours
from moesim.network.dispatchers import DISPATCHERS, Payload, choose, collective_trust, dispatcher
from moesim.network.dispatchers.base import message_seconds
from moesim.network.dispatchers.trust import trust
from moesim.network.handwritten import wires as wires_of
from moesim.network.links import flows
from moesim.network.portload import Traffic, busiest_port, own_port
from moesim.network.seating import Kind, nearest_size
from moesim.network.topology import group
from moesim.network.torus import Torus

TWO_NODES = group(cluster(16), 16)
PCIE: dict[str, Any] = {"scale_up_kind": "pcie", "scale_up_bandwidth": 32e9}


def slow(gpu: int, share: float = 0.5, link: str = "scale-up") -> dict[str, Any]:
    return {"link": link, "gpu": gpu, "share": share}


@pytest.mark.parametrize("place", [TWO_NODES, group(cluster(8, **PCIE), 8), GROUPS["mesh"], GROUPS["one-rank"]])
def test_where_a_framework_has_no_all_reduce_of_its_own(place: Any) -> None:
    sizes = np.array([1e4, 1e6])
    np.testing.assert_array_equal(custom_all_reduce(place, sizes), all_reduce(place, sizes, "alone"))


def test_a_custom_all_reduce_of_two() -> None:
    """One rank reads one buffer; the better of one and two shots."""
    laws, pair = law("custom-all-reduce"), group(cluster(8), 2)
    found = []
    for way, volume in (("one_shot", 1e4), ("two_shots", 1e4)):
        found.append(laws.value(way, "base") + laws.value(way, "hop") + volume / (UP * laws.value(way, "eta")))
    assert custom_all_reduce(pair, 1e4) == pytest.approx(min(*found, all_reduce(pair, 1e4, "alone")))


def test_collectives_borrow_trust_from_where_they_run() -> None:
    alone = collective_trust(GROUPS["one-rank"])
    assert (alone.basis, alone.relative, alone.notes) == ("derived", 0.0, ())
    for place, name in (
        (GROUPS["one-node"], "nccl-domain"),
        (TWO_NODES, "nccl-fabric"),
        (GROUPS["pcie"], "nccl-fabric"),
    ):
        assert collective_trust(place) == trust(place.law(name), place, Payload(0.0, 0.0), 0)
    assert collective_trust(GROUPS["one-node"]).relative != collective_trust(TWO_NODES).relative


def test_proxies_are_met_only_across_domains() -> None:
    driven = replace(law("deepep-normal"), valid={"proxied_interfaces": False}, band=0.1, band_elsewhere=0.2)
    fabric = {"kind": "rail-optimized", "message_seconds": 1e-6}
    one, two = (group(cluster(16, fabric=fabric), ranks) for ranks in (8, 16))
    assert trust(driven, one, Payload(1.0, 1.0), 24).relative == 0.1
    found = trust(driven, two, Payload(1.0, 1.0), 24)
    assert found.relative == max(0.2, law("proxied").band)
    assert "interfaces driven by a processor's proxy thread" in found.notes[0]
    assert trust(replace(driven, valid={}), two, Payload(1.0, 1.0), 24).relative == 0.1
    assert trust(driven, TWO_NODES, Payload(1.0, 1.0), 24).relative == 0.1


def test_messages_are_counted_where_they_are_sent() -> None:
    """Rank 0 sends 3 copies to rank 8 and 2 to rank 9: it posts 5 on the way there, they 3 and 2 on the way back."""
    network = group(cluster(16, fabric={"kind": "rail-optimized", "message_seconds": 2e-6}), 16)
    out = np.zeros((16, 16))
    out[0, 8], out[0, 9] = 3.0, 2.0
    sent = Traffic(np.ones((16, 16)), out)
    there, back = message_seconds(sent, network, "dispatch"), message_seconds(sent, network, "combine")
    assert (there[0], there[1:].max()) == (pytest.approx(10e-6), 0.0)
    assert (back[0], back[8], back[9]) == (0.0, pytest.approx(6e-6), pytest.approx(4e-6))
    assert not message_seconds(sent, TWO_NODES, "dispatch").any()


@pytest.mark.parametrize(("ranks", "stride", "runs"), [(2, 1, False), (8, 1, False), (2, 8, True)])
def test_low_latency_needs_nvlink_where_a_domain_has_two(ranks: int, stride: int, runs: bool) -> None:
    found = dispatcher("deepep-low-latency").runs_on(group(cluster(16, **PCIE), ranks, stride))
    assert (found is None) == runs
    if found:
        assert found == "deepep-low-latency needs NVLink between the GPUs of a domain, this group has pcie"


def test_two_sided_kernels_handle_what_a_rank_sends_and_what_it_gets() -> None:
    """4,096 tokens of each of 64 ranks, all to rank 0."""
    network, each = replace(GROUPS["rack"], scale_up_bandwidth=9e13), 4096.0
    laws, size = network.law("two-sided-nvl"), Payload(1000.0, 3000.0)
    found = dispatcher("two-sided-nvl").times(to_the_first(network, each), network, size, notify=False)
    tokens = 100.0
    for part, port, copy, (sends, takes) in (
        ("dispatch", found.dispatch, 1000.0, ("send", "receive")),
        ("combine", found.combine, 3000.0, ("receive", "send")),
    ):
        eta, own = laws.value(part, "eta"), tokens * laws.value(part, "token")
        for rank, moved, side, wire in (
            (1, each, sends, each),
            (0, 64 * each, takes, 63 * each),
            (0, each, sends, 0.0),
        ):
            busy = own + copy / laws.value("copy_rate") * moved
            assert getattr(port, side)[rank] == pytest.approx(max(busy, wire * copy / (9e13 * eta)), rel=1e-9)


def test_rates_of_ports_as_they_are() -> None:
    """Of a GPU behind a switch, on a mesh of 8 and on a torus of 16, whose links are as wide as their narrower ends."""
    switched = faulty(16, slow(3)).own_up_rates
    np.testing.assert_allclose(switched, np.where(np.arange(16) == 3, 0.5, 1.0) * UP)
    mesh = faulty(16, slow(3), scale_up_kind="xgmi").own_up_rates
    exact = np.full(16, 1 - 0.5 / 7)
    exact[3], exact[8:] = 0.5, 1.0
    np.testing.assert_allclose(mesh, exact * UP)
    torus = faulty(16, slow(0), domain=16, **TORUS).own_up_rates
    exact = np.ones(16)
    exact[[0, 1, 3, 4, 12]] = [0.5, *[1 - 0.5 / 4] * 4]
    np.testing.assert_allclose(torus, exact * 4 * TPU["scale_up_bandwidth"])


def test_links_of_a_torus_are_as_wide_as_their_narrower_end() -> None:
    """4 x 4, open: chip 0 has half its links' width, chip 5 three quarters, the link from 5 to 6 a quarter."""
    fabric = {"kind": "torus", "torus_shape": (4, 4), "torus_wraps": False}
    pair = {"between": ["gpu5", "gpu6"], "share": 0.25}
    shares = faulty(16, slow(0), slow(5, 0.75), pair, domain=16, fabric=fabric, **TORUS).up_shares[0]
    assert shares[0].tolist() == [[0.5, 1.0], [0.5, 1.0]]
    assert shares[4].tolist() == [[1.0, 0.5], [0.75, 1.0]]
    assert shares[1].tolist() == [[0.75, 1.0], [1.0, 0.5]]
    assert (shares[5].tolist(), shares[6, 1, 1]) == ([[0.75, 0.75], [0.25, 0.75]], 0.25)
    assert shares[15].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_leaves_are_of_trees_over_several_domains() -> None:
    for kind, found in (("single-switch", False), ("fat-tree", True), ("dual-plane", True), ("rail-optimized", True)):
        fabric = {"kind": kind, "oversubscription": 2.0}
        assert (group(cluster(16, fabric=fabric), 16).leaf is not None) == found
        assert group(cluster(16, fabric=fabric), 8).leaf is None
        assert group(cluster(16, fabric={"kind": kind}), 16).leaf is None
    lost = {"link": "uplink", "leaf": 0, "share": 0.5}
    assert faulty(32, lost, ranks=8, fabric=TWO_TO_ONE).leaf is None
    assert faulty(32, lost, fabric={**RAILS_TWO_TO_ONE, "oversubscription": 1.0}).leaf is not None


def test_slow_written_links_slow_the_rank_behind_them() -> None:
    assert faulty(32, fabric=LEAF_SPINE).slowest_nic_share == 1.0
    assert faulty(32, slow(5, 0.5, "nic"), fabric=LEAF_SPINE).slowest_nic_share == 0.5
    assert faulty(32, slow(5, 0.5, "nic"), fabric=LEAF_SPINE).fair_nic_rate == NIC / 2
    # Rank 5 sends through a neighbour's link, which so has two.
    assert faulty(32, slow(5, 0.0, "nic"), fabric=LEAF_SPINE).slowest_nic_share == 0.5
    assert faulty(32, slow(5, 0.0, "nic"), ranks=8, fabric=LEAF_SPINE).slowest_nic_share == 1.0


def test_two_of_a_domain_stand_in_for_each_other() -> None:
    spine = wires(("gpu0-7", "leaf0", NIC))
    network = faulty(8, slow(3, 0.0, "nic"), domain=2, fabric=spine)
    assert network.crossing.out.tolist() == network.crossing.into.tolist() == [0, 1, 2, 2, 4, 5, 6, 7]
    rails = faulty(4, domain=2, fabric=wires(("gpu0-3", "rail0-1", NIC, {"pairwise": True})))
    assert set(rails.crossing.relays.values()) == {(0,), (1,), (2,), (3,)}
    assert len(faulty(32, fabric=RAILS_ALONE).crossing.relays) == 32 * 7


def test_seats_of_the_groups_of_a_kind() -> None:
    groups = Neighbours(gpus=20, ranks=4, stride=2, size=4)
    assert (groups.span, list(groups.firsts())) == (8, [0, 1, 8, 9, 16, 17])
    seats = groups.seats(9)
    assert (seats.gpu.tolist(), seats.domain.tolist(), seats.hand_over) == ([9, 11, 13, 15], [0, 0, 1, 1], True)
    assert groups.seats(17).gpu.tolist() == [17, 19]
    alone = Neighbours(gpus=20, ranks=4, stride=2, size=1).seats(8)
    assert alone.domain.tolist() == [0, 1, 2, 3]
    assert [groups.holding(gpu) for gpu in (0, 3, 8, 15, 16, 19)] == [0, 1, 8, 9, 8, 9]


def test_a_groups_scratch_is_not_part_of_it() -> None:
    network = group(cluster(16), 16)
    network.memo["something"] = 1
    assert network == group(cluster(16), 16)
    assert "memo" not in repr(network)


def test_a_group_inside_one_domain_needs_no_nic() -> None:
    """Nor do its loads divide by the rate of none."""
    network = group(cluster(8, fabric={"kind": "none"}, nic_bandwidth=None).model_copy(), 8)
    bare = replace(network, nic_bandwidth=0.0)
    sent = Traffic(only(8, (0, 1)), np.zeros((8, 8)))
    for loads in (busiest_port(sent, bare), own_port(sent, bare)):
        assert loads.up_send[0] == pytest.approx(1 / UP)
        assert not loads.out_send.any()
        assert not loads.out_receive.any()


def test_ranks_own_nics_are_what_faults_leave_of_them() -> None:
    """The ideal network: at its own rate each, of the written ones as of the others."""
    sent = Traffic(np.zeros((32, 32)), only(32, (5, 8), (6, 9)))
    for fabric in ({"kind": "single-switch"}, LEAF_SPINE):
        loads = own_port(sent, faulty(32, slow(5, 0.5, "nic"), fabric=fabric))
        assert loads.out_send[[5, 6]] == pytest.approx([2 / NIC, 1 / NIC])
        assert loads.out_receive[[8, 9]] == pytest.approx([1 / NIC, 1 / NIC])


def test_the_nearest_domain_of_a_large_rack() -> None:
    """16 GPUs a group: of racks of 300 to racks of 288; 256 smaller ones are tried."""
    assert nearest_size([Kind(600, 300, 16, 1)]) == 288
    assert nearest_size([Kind(2400, 600, 299, 1)]) == 598
    assert nearest_size([Kind(3000, 756, 500, 1)]) == 500
    assert nearest_size([Kind(3000, 757, 500, 1)]) is None


def test_large_groups_share_flows_over_fewer_routes() -> None:
    """A flow for every pair of 512 ranks and route fits in 2^20: four routes of eight."""
    spine = wires(("gpu0-255", "leaf0", NIC), ("gpu256-511", "leaf1", NIC), ("leaf0-1", "spine0-7", NIC))
    network = faulty(512, domain=256, fabric=spine)
    found = flows(np.zeros((512, 512)), only(512, (3, 300)), network)
    np.testing.assert_allclose(found.size, np.full(4, 1 / 4))
    assert len(set(found.links.tolist())) == 2 + 2 * 4


def test_a_group_of_one_has_nothing_to_choose() -> None:
    alone = choose(to_the_first(GROUPS["one-rank"]), GROUPS["one-rank"], Payload(1.0, 1.0))
    assert alone.reason == "one rank: nothing to exchange"


def test_a_fabric_is_taken_as_non_blocking_beyond_eight_domains() -> None:
    for domains, told in ((8, ()), (9, ("9 domains: fabric assumed non-blocking",))):
        network = group(cluster(128), 8 * domains)
        assert trust(replace(law("hybrid-ep"), valid={}), network, Payload(1.0, 1.0), 0).notes == told


@pytest.mark.parametrize("name", sorted(DISPATCHERS))
def test_half_a_fabric_takes_twice_as_long(name: str) -> None:
    """Gigabytes from every rank to its like in the next domain, past scale-up links that never bind."""
    copies, found = 4096.0 * np.roll(np.eye(32), 8, axis=1), []
    for share in (1.0, 0.5):
        fabric = {"kind": "rail-optimized", "efficiency": share}
        network = group(cluster(32, fabric=fabric, scale_up_bandwidth=1e15), 32)
        if dispatcher(name).runs_on(network) is None:
            times = dispatcher(name).times(one_way(network, copies), network, Payload(1e6, 1e6))
            found.append(float(times.dispatch.busiest - times.dispatch.latency))
    assert not found or found[1] == pytest.approx(2 * found[0], rel=0.03)


def test_numbers_of_the_first_groups_gpus() -> None:
    for name, gpus in (
        ("four-nodes", range(32)),
        ("every-second-gpu", range(0, 32, 2)),
        ("one-rank-a-node", range(0, 64, 8)),
    ):
        assert GROUPS[name].gpu.tolist() == list(gpus)
    assert group(cluster(64), 4, stride=16).gpu.tolist() == [0, 16, 32, 48]
    assert group(cluster(64, 7), 14).gpu.tolist() == list(range(14))


def test_a_leafs_uplinks_are_as_many_whoever_sends_through_it() -> None:
    """GPU 1 of a node rides on a neighbour's rail, whose leaf it does not widen: two nodes' NICs over two."""
    for dead in ((), (slow(1, 0.0, "nic"),), (slow(1, 0.0, "nic"), slow(9, 0.0, "nic"))):
        np.testing.assert_allclose(faulty(32, *dead, fabric=RAILS_TWO_TO_ONE).uplink_capacity, NIC)


def test_two_ranks_that_are_cut_apart_are_told() -> None:
    apart = wires(("gpu0", "leaf0", NIC), ("gpu1", "leaf1", NIC), ("leaf0", "spine", NIC), ("leaf1", "spine", NIC))
    assert faulty(2, domain=1, fabric=apart).domains == 2
    with pytest.raises(InfeasibleError, match="gpu0 has no way to gpu1 over the hand-written links"):
        faulty(2, {"between": ["leaf0", "spine"], "share": 0}, domain=1, fabric=apart)


def test_written_links_that_nobody_needs_may_fail() -> None:
    lost = [slow(gpu, 0.0, "nic") for gpu in range(8)]
    assert faulty(32, *lost, ranks=8, fabric=LEAF_SPINE).domains == 1
    with pytest.raises(InfeasibleError, match="no link left that leads out of it"):
        faulty(32, *lost, fabric=LEAF_SPINE)


def test_gpus_beyond_the_cluster_have_no_wires() -> None:
    links = cluster(32, fabric=LEAF_SPINE).fabric.links
    found = wires_of(links, (), 20)
    assert (found.names[0], found.names[19], found.names[20]) == ("gpu0", "gpu19", "leaf0")
    np.testing.assert_allclose(found.gpu_rates(found.healthy), np.full((20, 2), NIC))


def test_a_chip_is_not_its_own_neighbour() -> None:
    near = Torus((1, 3), (True, True)).neighbours
    assert near[:, 0].tolist() == [[-1, -1]] * 3
    assert near[:, 1].tolist() == [[1, 2], [2, 0], [0, 1]]
