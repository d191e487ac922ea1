"""Edges of the network's laws that ordinary clusters do not meet, each by hand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_network_links import BARE, LEAF_SPINE, PLANES, TREE3, faulty, wires
from test_network_topology import GROUPS, NIC, TWO_TO_ONE, UP, cluster, gpu, only
from test_network_torus import CASES, walks

from moesim.errors import InfeasibleError
from moesim.network import fluid
from moesim.network.coefficients import law
from moesim.network.collectives import ring_bandwidth, ring_law
from moesim.network.dispatchers import DISPATCHERS
from moesim.network.dispatchers.choice import Compared, selected
from moesim.network.faults import direct_pairs
from moesim.network.fluid import Fluid
from moesim.network.link_checks import problems
from moesim.network.links import flows
from moesim.network.portload import Traffic, busiest_port
from moesim.network.seating import Kind, straddling, told
from moesim.network.topology import degraded_note, group, pair
from moesim.network.torus import Torus, ways
from moesim.specs.cluster import ClusterSpec, FabricSpec
from moesim.specs.links import DegradedSpec


def one_link(flows: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(flows + 1, dtype=np.int64), np.zeros(flows, np.int32)


def compared(name: str, total: float, **changes: Any) -> Compared:
    row = Compared(name, total / 2, total / 2, total, 1.0, 1.0, 0, "fitted", 0.1)
    return replace(row, **changes)


def test_own_measured_rings_speed_a_steps_rings_by_as_much(tmp_path: Path) -> None:
    """Across domains by the ring alone, in a domain by what NCCL reaches there; "alone" takes what was measured."""
    ring, eta = law("collectives").value("ring", "alone"), law("nccl-domain").value("eta")
    path = tmp_path / "own.yaml"
    own = {"network-collectives": {"ring": {"alone": 0.8 * ring}}, "network-nccl-domain": {"eta": 0.9 * eta}}
    path.write_text(yaml.safe_dump(own))
    for name, share in (("four-nodes", 0.8), ("one-node", 0.9)):
        plain = GROUPS[name]
        measured = replace(plain, calibration=str(path))
        for use in ("step", "fsdp"):
            assert ring_law(measured, use).rate == pytest.approx(share * ring_law(plain, use).rate, rel=1e-12)
        assert ring_law(measured, "alone").rate == pytest.approx(share * ring_law(plain, "alone").rate, rel=1e-12)


def test_laws_of_two_domains_are_those_of_the_fabric() -> None:
    two, one = group(cluster(16), 16), GROUPS["one-node"]
    for name, near, far in (
        ("nccl-all-to-all", "nccl-domain", "nccl-fabric"),
        ("all-gather-reduce-scatter", "nccl-domain", "collectives"),
    ):
        found = DISPATCHERS[name]
        assert (found.calibration(one), found.calibration(two)) == (near, far)  # type: ignore[attr-defined]


def test_the_reason_of_a_choice_in_full() -> None:
    """Faster by 1 % within both ranges: the better known law answers; alone, first, or apart it is said so."""
    network = GROUPS["four-nodes"]
    first, other = compared("hybrid-ep", 1e-3), compared("deepep-normal", 1.01e-3, relative=0.05)
    chosen = selected(DISPATCHERS, [first, other], network)
    assert chosen.dispatcher.name == "deepep-normal"
    assert chosen.reason == (
        "deepep-normal 1.01 ms dispatch + combine at balanced routing against hybrid-ep 1 ms, within the range of both,"
        " and its law is better known here: fitted, 90 % within 5% against fitted, 90 % within 10%"
    )
    exact = compared("deepep-normal", 1e-3, relative=0.0)
    assert "90 % within 0% against" in selected(DISPATCHERS, [first, exact], network).reason
    alone = selected(DISPATCHERS, [first, compared("hierarchical", 1.0, why_not="it cannot")], network)
    start = "hybrid-ep 1 ms dispatch + combine at balanced routing is"
    assert alone.reason == f"{start} the only one that runs here and is meant for this; it cannot"
    apart = selected(DISPATCHERS, [first, compared("deepep-normal", 2e-3)], network)
    assert apart.reason == f"{start} the fastest that runs here, against deepep-normal 2 ms"
    near = selected(DISPATCHERS, [first, compared("deepep-normal", 1.09e-3)], network)
    assert near.reason == f"{start} the fastest that runs here, against deepep-normal 1.09 ms, within the range of both"
    worse = compared("deepep-normal", 1.01e-3, relative=0.05, basis="assumed")
    assert selected(DISPATCHERS, [first, worse], network).dispatcher.name == "hybrid-ep"
    told = compared("deepep-normal", 1.005e-3, relative=0.01, basis="paper")
    assert selected(DISPATCHERS, [first, told], network).dispatcher.name == "hybrid-ep"
    with pytest.raises(InfeasibleError, match="no known dispatcher"):
        selected(DISPATCHERS, [compared("hybrid-ep", 1.0, why_not="it cannot")], network)


def test_pairs_of_gpus_are_read_past_other_faults() -> None:
    specs = [
        {"link": "nic", "gpu": 5, "share": 0.5},
        {"between": ["gpu0-1", "gpu4"], "share": 0.25},
        {"between": ["gpu0", "leaf0"], "share": 0.75},
        {"between": ["gpu2", "gpu3-4"], "share": 0.0},
    ]
    found = list(direct_pairs(DegradedSpec.model_validate(spec) for spec in specs))
    assert found == [(0, 4, 0.25), (1, 4, 0.25), (2, 3, 0.0), (2, 4, 0.0)]


def test_more_nics_than_gpus_are_nobodys_to_share() -> None:
    network = group(cluster(16, nics_per_domain=16), 16)
    assert not network.shares_nics
    np.testing.assert_allclose(network.nic_capacity, np.full(16, 2 * NIC))
    assert network.nic.tolist() == list(range(16))


def test_two_levels_have_no_pods() -> None:
    assert faulty(64, {"link": "uplink", "pod": 0, "share": 0.5}, fabric=TWO_TO_ONE).pod is None
    assert faulty(64, {"link": "uplink", "pod": 0, "share": 0.5}, fabric=TREE3).pod is not None


@pytest.mark.parametrize("kind", ["nvlink", "xgmi"])
def test_two_neighbours_on_a_slow_link_are_slow(kind: str) -> None:
    spec = {"link": "scale-up", "gpu": 1, "share": 0.5}
    both, alone = (faulty(16, spec, ranks=2, stride=stride, scale_up_kind=kind) for stride in (1, 8))
    assert (both.slows_scale_up, both.slowest_up_share) == (True, 0.5)
    assert (alone.slows_scale_up, alone.slowest_up_share) == (False, 1.0)
    wire = UP / 7 if kind == "xgmi" else UP
    sent = Traffic(only(2, (0, 1)), np.zeros((2, 2)))
    assert busiest_port(sent, both).up_receive[1] == pytest.approx(2 / wire)
    assert not faulty(16, {"link": "nic", "gpu": 1, "share": 0.5}).slows_scale_up


def test_failed_planes_stop_nobody_inside_a_domain() -> None:
    lost = [{"link": "plane", "plane": plane, "share": 0} for plane in (0, 1)]
    assert faulty(32, *lost, ranks=8, fabric=PLANES).domains == 1
    with pytest.raises(InfeasibleError, match="all 2 planes"):
        faulty(32, *lost, ranks=16, fabric=PLANES)


def test_a_ring_below_a_failed_uplink_never_climbs_it() -> None:
    spec = {"link": "uplink", "leaf": 0, "share": 0}
    assert ring_bandwidth(faulty(32, spec, ranks=16, fabric=TWO_TO_ONE)) == pytest.approx(8 * NIC)


def test_a_note_names_four_faults_and_counts_the_rest() -> None:
    specs = [{"link": "nic", "gpu": gpu, "share": 0.5} for gpu in range(6)]
    said = "degraded: nic of gpu 0 at 50%, nic of gpu 1 at 50%, nic of gpu 2 at 50%, nic of gpu 3 at 50%"
    for count, more in ((4, ""), (5, " and 1 more"), (6, " and 2 more")):
        note = degraded_note(faulty(16, *specs[:count]))
        assert note == f"{said}{more}; the group simulated is taken to be the one that holds them"


def test_a_bandwidth_counts_in_the_basis_where_it_is_used() -> None:
    sheet, guess = {"basis": "datasheet", "where": "a sheet"}, {"basis": "assumed", "where": "a guess"}

    def found(up: Any, nic: Any, ranks: int, **changes: Any) -> str:
        card = gpu(sources={"scale_up_bandwidth": up, "nic_bandwidth": nic})
        fabric = FabricSpec(kind="single-switch")
        return group(ClusterSpec(gpu=card, gpus=16, fabric=fabric, gpus_per_domain=8, **changes), ranks).basis

    assert found(sheet, guess, 8) == found(sheet, sheet, 16) == "datasheet"
    assert found(sheet, guess, 16) == found(guess, sheet, 16) == found(guess, sheet, 2) == "assumed"
    assert found(sheet, guess, 16, nic_bandwidth=1e9) == "datasheet"
    assert found(guess, sheet, 16, scale_up_bandwidth=1e9) == "datasheet"
    stated = FabricSpec(kind="single-switch", nic_bandwidth=25e9, sources={"nic_bandwidth": guess})
    card = gpu(sources={"": sheet})
    assert group(ClusterSpec(gpu=card, gpus=16, fabric=stated, gpus_per_domain=8), 16).basis == "assumed"


def test_a_mesh_joins_gpus_that_a_torus_would_not() -> None:
    for other in range(1, 8):
        spec = {"between": ["gpu0", f"gpu{other}"], "share": 0.5}
        assert problems(cluster(16, scale_up_kind="xgmi", degraded=(spec,))) == []


@pytest.mark.parametrize(
    ("end", "nearest"), [("gpu0-16", "gpu0-15"), ("gpu16", "gpu15"), ("gpu15-17", "gpu15"), ("gpu14-17", "gpu14-15")]
)
def test_gpus_beyond_the_cluster_are_told_with_the_nearest(end: str, nearest: str) -> None:
    fabric = wires(("gpu0-15", "leaf0", NIC), (end, "leaf0", NIC))
    (found,) = problems(cluster(16, fabric=fabric))
    assert found.where == "cluster.fabric.links.1.between"
    assert found.what == f"{end}: the cluster has 16 GPUs; allowed: gpu0-15; nearest: {nearest}"


def test_a_group_over_many_domains_is_told_in_short() -> None:
    """15 GPUs in domains of 4 from the fourth place on: 1, 4, 4, 4, 2; 8 in domains of 3 from the last: 1, 3, 3, 1."""
    assert [(each.members, each.groups) for each in straddling(Kind(60, 4, 15, 1))] == [((4, 4, 4, 2, 1), 2)]
    assert "2 of 4 expert (at worst 4 + 4 + ... + 1 ranks)" in str(told({"expert": Kind(60, 4, 15, 1)}))
    assert "1 of 3 data (at worst 3 + 3 + 1 + 1 ranks)" in str(told({"data": Kind(24, 3, 8, 1)}))


def test_flows_that_begin_later_begin_when_they_are_due() -> None:
    """In rounds begins are gathered, but not while nothing is under way: the first flow ends a second after it."""
    flows = Fluid(np.array([1.0]), exact=0)
    begin = np.concatenate([[5.0], np.linspace(100.0, 110.0, 300)])
    flows.add(*one_link(301), np.ones(301), begin)
    flows.advance()
    assert flows.end[0] == pytest.approx(6.0, rel=1e-12)
    assert flows.end.max() == pytest.approx(400.0, rel=1e-9)
    # One begin after the other would be 300 rounds.
    assert flows.rounds < 200


def test_rounds_after_single_ends_take_fresh_rates() -> None:
    """Ten flows end one by one; when many more come, rounds begin with rates of their own."""
    flows = Fluid(np.array([10.0]), exact=0)
    flows.add(*one_link(10), np.arange(10.0, 20.0))
    flows.advance(1.0)
    assert flows.carried[0] == pytest.approx(10.0)
    flows.add(*one_link(300), np.ones(300), np.full(300, 5.0))
    flows.advance()
    assert flows.carried[0] == pytest.approx(145.0 + 300.0)
    assert flows.end.max() == pytest.approx(44.5, rel=1e-9)
    assert np.all(flows.end[10:] >= 5.0)


def test_equal_flows_are_one_round() -> None:
    flows = Fluid(np.array([2.0]), exact=0)
    flows.add(*one_link(300), np.full(300, 4.0))
    flows.advance()
    assert flows.rounds == 1
    np.testing.assert_allclose(flows.end, 600.0)


def test_a_sample_of_flows_that_have_all_ended_judges_no_round() -> None:
    """Every fourth of 24,000 flows is small and ends in the first round; the next round's sample is just those."""
    size = np.where(np.arange(24000) % 4 == 0, 1.0, np.random.default_rng(0).uniform(10.0, 20.0, 24000))
    flows = Fluid(np.array([1e3]), 0.24, exact=0)
    flows.add(*one_link(24000), size)
    flows.advance()
    assert flows.end.max() == pytest.approx(size.sum() / 1e3, rel=1e-9)
    assert flows.rounds < 60
    assert fluid.SAMPLE * 4 <= 18000 < fluid.SAMPLE * 5


@pytest.mark.parametrize(("count", "exact"), [(fluid.EXACT_REST, 0.0), (1000, 1000)])
def test_so_many_flows_end_one_by_one(count: int, exact: float) -> None:
    """On one link of flows of sizes 1 to n the i-th ends when those before have sent theirs and the others i each."""
    for more in (0, 1):
        size = np.arange(1.0, count + more + 1)
        flows = Fluid(np.array([1.0]), exact=exact)
        flows.add(*one_link(len(size)), size)
        flows.advance()
        np.testing.assert_allclose(
            flows.end, np.cumsum(np.arange(len(size), 0.0, -1.0)), rtol=1e-9 if not more else 0.5
        )
        assert (flows.rounds == count) == (not more)


@pytest.mark.parametrize(("spines", "parts"), [(3, 3), (16, 16), (20, 16)])
def test_equal_routes_are_so_many_parts(spines: int, parts: int) -> None:
    """No more than 16 of them for a pair of ranks; other pairs begin at others, so that all are used."""
    spine = wires(("gpu0-7", "leaf0", NIC), ("gpu8-15", "leaf1", NIC), ("leaf0-1", f"spine0-{spines - 1}", NIC))
    network = faulty(16, fabric=spine)
    found = flows(np.zeros((16, 16)), only(16, (0, 8)), network)
    np.testing.assert_allclose(found.size, np.full(parts, 1 / parts))
    every = flows(np.zeros((16, 16)), np.where(network.domain[:, None] != network.domain, 1.0, 0.0), network)
    used = np.bincount(every.links, weights=np.repeat(every.size, np.diff(every.first)))[2 * 16 :]  # behind the ports
    assert len(used) == 2 * 16 + 2 * 2 * spines
    assert used.min() > 0


def test_a_pair_has_both_its_places() -> None:
    assert (pair(cluster(16), 8, True).domains, pair(cluster(16), 1, False).domains) == (2, 1)
    assert faulty(32, domain=1, fabric=LEAF_SPINE, **BARE).domains == 32


def test_a_slow_wire_inside_binds_before_a_nic_outside() -> None:
    """Six in one node take 5/6 over 40 GB/s, in parts of two 4/6 over 50 GB/s."""
    assert group(cluster(48, 8, scale_up_bandwidth=40e9), 6).domains == 1
    assert group(cluster(48, 8, scale_up_bandwidth=70e9), 6).domains == 3


def test_only_slow_nics_are_moved() -> None:
    assert GROUPS["four-nodes"].moves_nics is False
    assert faulty(32, {"link": "scale-up", "gpu": 1, "share": 0.5}).moves_nics is False
    assert faulty(32, {"link": "nic", "gpu": 1, "share": 0.5}).moves_nics is True
    assert faulty(32, {"link": "nic", "gpu": 1, "share": 0.5}, ranks=8).moves_nics is False
    assert faulty(32, {"link": "nic", "gpu": 1, "share": 0.5}, fabric=LEAF_SPINE).moves_nics is False


@pytest.mark.parametrize("torus", [*CASES, Torus((3, 4), (False, False))], ids=str)
@pytest.mark.parametrize("density", [1.0, 0.05])
def test_ways_pass_the_links_of_a_walk(torus: Torus, density: float) -> None:
    """Load of every link (chip, dimension, up or down) by flows and by walking all messages; all of each arrives."""
    dims, chips = len(torus.shape), torus.chips
    random = np.random.default_rng(2)
    traffic = random.integers(1, 9, (chips, chips)) * (random.random((chips, chips)) < density) * 1.0
    np.fill_diagonal(traffic, 0.0)
    loads, walked, moved = np.zeros(chips * 2 * dims), defaultdict[int, float](float), np.zeros((chips, chips))
    for way in ways(traffic, torus):
        size = traffic[way.source, way.target] * way.share
        np.add.at(moved, (way.source, way.target), size)
        for hop in way.links.T:
            np.add.at(loads, hop, size)
    places = [tuple(place) for place in torus.places.tolist()]
    for source, target in np.argwhere(traffic):
        for (chip, axis, step), share in walks(torus, places[source], places[target]):
            number = int(np.ravel_multi_index(chip, torus.shape)) * 2 * dims + 2 * axis + (step < 0)
            walked[number] += float(traffic[source, target] * share)
    np.testing.assert_allclose(moved, traffic)
    np.testing.assert_allclose(loads, [walked[number] for number in range(len(loads))])
