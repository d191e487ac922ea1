"""Numbers of the network that no other test holds: far fabrics, one-sided demands, whose trust a law borrows."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from test_network_topology import GROUPS, NIC, UP, cluster

from moesim.network.coefficients import law
from moesim.network.collectives import RingLaw, point_to_point, ring_bandwidth, ring_law
from moesim.network.demand import Demand, reverse
from moesim.network.dispatchers import DISPATCHERS, Payload, dispatcher
from moesim.network.dispatchers.base import IDEAL, Kernel, exchange
from moesim.network.dispatchers.trust import trust
from moesim.network.fluid import Fluid
from moesim.network.links import links
from moesim.network.portload import Traffic
from moesim.network.topology import GroupNetwork, group
from moesim.network.torus import Torus
from moesim.specs.links import DegradedSpec

US = 1e-6
COPY = Payload(dispatch=1000.0, combine=3000.0)
SIXTEEN = group(cluster(128), 128)
STATE = 1 - law("common").value("fabric_loss_a_doubling")


def one_way(network: GroupNetwork, copies: np.ndarray) -> Demand:
    """Copies that each reach a rank of their own, so that every count is the same."""
    starts = np.arange(0, network.ranks, network.ranks_per_domain)
    domains = np.add.reduceat(copies, starts, axis=-1)
    return Demand(copies, copies, domains, np.full(network.ranks, 100.0), network.ranks_per_domain)


def to_the_first(network: GroupNetwork, tokens: float = 64.0) -> Demand:
    """Everybody's tokens go to rank 0."""
    copies = np.zeros((network.ranks, network.ranks))
    copies[:, 0] = tokens
    return one_way(network, copies)


def test_a_fabric_of_sixteen_domains_loses_one_doubling() -> None:
    assert SIXTEEN.fabric_state == pytest.approx(STATE)
    assert ring_bandwidth(SIXTEEN) == pytest.approx(8 * NIC * STATE)
    rate = NIC * STATE * law("nccl-fabric").value("eta_out")
    alpha = law("collectives").assumed("message_alpha_fabric")
    assert point_to_point(SIXTEEN, 1e8) == pytest.approx(alpha + 1e8 / rate, rel=1e-12)
    slow = group(cluster(128, fabric={"kind": "rail-optimized", "efficiency": 0.5, "latency": 12e-6}), 128)
    assert slow.fabric_state == pytest.approx(STATE / 2)
    assert point_to_point(slow, 1e8) == pytest.approx(alpha + 7 * US + 2e8 / rate, rel=1e-12)


def test_a_message_in_a_domain() -> None:
    alpha, eta = law("collectives").assumed("message_alpha"), law("nccl-domain").value("eta")
    assert point_to_point(GROUPS["one-node"], 1e6) == pytest.approx(alpha + 1e6 / (UP * eta), rel=1e-12)
    older = replace(GROUPS["one-node"], generation="ampere")
    assert point_to_point(older, 1e6) == pytest.approx(alpha * older.latency_factor + 1e6 / (UP * eta), rel=1e-12)
    np.testing.assert_array_equal(point_to_point(GROUPS["one-rank"], np.array([1.0, 5.0])), [0.0, 0.0])


def test_one_rank_has_no_ring() -> None:
    assert ring_law(GROUPS["one-rank"], "step") == RingLaw(0.0, 1.0, 0.0)


def test_a_torus_with_a_slow_link_rings_as_slowly() -> None:
    """The ring of 16 chips has four links a chip; the slowest holds it up."""
    tpu: dict[str, Any] = {"generation": "tpu", "scale_up_kind": "torus", "scale_up_bandwidth": 50e9}
    slow = (DegradedSpec(link="scale-up", gpu=3, share=0.25),)
    found = group(cluster(16, 16, torus_dimensions=2, degraded=slow, **tpu), 16)
    assert ring_bandwidth(found) == pytest.approx(0.25 * ring_bandwidth(GROUPS["torus-2d"]), rel=1e-12)


def test_the_ideal_kernel_adds_nothing() -> None:
    assert Kernel(0.0) == IDEAL
    assert [getattr(IDEAL, one.name) for one in fields(Kernel)] == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, False]


@pytest.mark.parametrize("serial", [False, True])
def test_an_exchange_by_hand(serial: bool) -> None:
    """Two domains of eight; rank 1 sends 6 copies to rank 0 and 4 to rank 8, rank 9 sends 2 to rank 8."""
    network = group(cluster(16), 16)
    up, out = np.zeros((16, 16)), np.zeros((16, 16))
    up[1, 0], up[9, 8], out[1, 8] = 6.0, 2.0, 4.0
    kernel = Kernel(4e-6, eta_up=0.5, eta_out=0.25, root=0.5, tail=3e-6, stretch=2.0, serial=serial)
    there, back = exchange(Traffic(up, out), network, COPY, {"dispatch": kernel, "combine": kernel}, "port-load")
    near, far = 6000 / (UP * 0.5), 4000 / (NIC * 0.25)
    wire = near + far if serial else max(near, far)
    seconds = 2 * (wire + 0.5 * (4e-6 * wire) ** 0.5)
    assert there.latency == pytest.approx(2 * 4e-6 + 3e-6)
    assert there.send[1] == pytest.approx(seconds)
    assert there.busiest == pytest.approx(there.latency + seconds)
    taken = {0: near, 8: 2000 / (UP * 0.5) + far if serial else max(2000 / (UP * 0.5), far), 1: 0.0}
    for rank, wait in taken.items():
        assert there.receive[rank] == pytest.approx(2 * (wait + 0.5 * (4e-6 * wait) ** 0.5))
    for port, each, (sender, taker) in ((there, 1000.0, ("sent", "got")), (back, 3000.0, ("got", "sent"))):
        rows = {"sent": {1: (6.0, 4.0), 9: (2.0, 0.0)}, "got": {0: (6.0, 0.0), 8: (2.0, 4.0)}}
        for rank in range(16):
            sent, got = rows[sender].get(rank, (0.0, 0.0)), rows[taker].get(rank, (0.0, 0.0))
            assert (port.bytes_up[rank], port.bytes_out[rank]) == (sent[0] * each, sent[1] * each)
            assert (port.received_up[rank], port.received_out[rank]) == (got[0] * each, got[1] * each)
            assert port.up_send[rank] == pytest.approx(sent[0] * each / UP)
            assert port.out_send[rank] == pytest.approx(sent[1] * each / NIC)
            assert port.up_receive[rank] == pytest.approx(got[0] * each / UP)
            assert port.out_receive[rank] == pytest.approx(got[1] * each / NIC)
    floor = replace(kernel, send_floor=1.0, receive_floor=2.0, root=0.0)
    slow = exchange(Traffic(up, out), network, COPY, {"dispatch": floor, "combine": floor}, "port-load")[0]
    assert (slow.send.max(), slow.receive.max(), slow.own.max()) == (2.0, 4.0, 4.0)
    ideal = exchange(Traffic(up, out), network, COPY, {"dispatch": floor, "combine": floor}, "ideal")[0]
    assert ideal.latency == 0.0
    assert ideal.send[1] == pytest.approx(max(6000 / UP, 4000 / NIC))


def test_flows_that_share_links_end_later_than_the_busiest_port() -> None:
    """Rank 0 sends to 1 and 2, rank 3 to 2: 0's flows get half its port each until 3's has ended."""
    copies = np.zeros((8, 8))
    copies[0, 1], copies[0, 2], copies[3, 2] = 2.0, 1.0, 3.0
    traffic = Traffic(copies, np.zeros((8, 8)))
    kernels = {"dispatch": IDEAL, "combine": IDEAL}
    port, flow = (
        exchange(traffic, GROUPS["one-node"], Payload(UP, UP), kernels, name)[0]
        for name in ("port-load", "max-min")  # type: ignore[arg-type]
    )
    assert (port.send[0], port.send[3]) == (pytest.approx(3.0), pytest.approx(3.0))
    assert port.receive[2] == pytest.approx(4.0)
    assert flow.send[0] == pytest.approx(3.0)
    # 0's small flow takes half of the port into rank 2 for 2 s; then rank 3's has all of it.
    assert flow.send[3] == pytest.approx(4.0)
    assert flow.own[3] == port.own[3]


@pytest.mark.parametrize("place", ["one-node", "four-nodes"])
def test_multiprocessors_wait_for_what_they_send_and_for_what_they_get(place: str) -> None:
    """Few SMs, everything to rank 0: the busiest receiver of the dispatch, and the busiest sender of the combine."""
    network = GROUPS[place]
    found = dispatcher("deepep-normal").times(to_the_first(network, 4096.0), network, COPY, 2)
    there, back = found.dispatch, found.combine
    assert there.receive.argmax() == 0
    assert there.receive[0] > 3 * there.send[1:].max()
    assert back.send.argmax() == 0
    assert back.send[0] > 3 * back.receive[1:].max()


def test_two_sided_kernels_wait_for_copies_both_ways() -> None:
    network = GROUPS["rack"]
    found = dispatcher("two-sided-nvl").times(to_the_first(network, 4096.0), network, COPY)
    assert (found.dispatch.receive.argmax(), found.combine.send.argmax()) == (0, 0)


def test_a_law_borrows_its_trust_from_the_fit_that_made_it() -> None:
    made = {
        "nccl-all-to-all": ("nccl-domain", "nccl-fabric"),
        "all-gather-reduce-scatter": ("nccl-domain", "collectives"),
        "deepep-normal": ("deepep-normal", "deepep-normal"),
        "hierarchical": ("hierarchical", "hierarchical"),
    }
    for name, (near, far) in made.items():
        one, four = GROUPS["one-node"], GROUPS["four-nodes"]
        found = DISPATCHERS[name]
        assert (found.calibration(one), found.calibration(four)) == (near, far)  # type: ignore[attr-defined]
        demand, fitted = to_the_first(four), law(far)
        times = found.times(demand, four, Payload(7464.0, 14368.0, 7168, 8, 256), 24)
        unfit = trust(fitted, four, Payload(7464.0, 14368.0, 7168, 8, 256), times.multiprocessors)
        assert (times.basis, times.relative) == (unfit.basis, unfit.relative)


@pytest.mark.parametrize(
    ("valid", "doubt"),
    [
        ({"generations": ["ampere"]}, "hopper GPUs"),
        ({"kinds": ["pcie"]}, "nvlink links"),
        ({"most_domains": 3}, "more than 3 domains"),
        ({"most_domains": 4}, None),
        ({"weak_domains": [4]}, "fall short"),
        ({"most_ranks": 31}, "more than 31 ranks"),
        ({"most_ranks": 32}, None),
        ({"domain_sizes": [4]}, "8 ranks a domain"),
        ({"domain_sizes": [8]}, None),
        ({"weak_domain_sizes": [8]}, "8 ranks a domain, where"),
        ({"least_multiprocessors": 21}, "fewer than 21 SMs"),
        ({"least_multiprocessors": 20}, None),
        ({"narrow": {"hidden": 3072, "top_k": 2}}, "hidden 3072 with top-2"),
        ({"narrow": {"hidden": 3071, "top_k": 2}}, None),
        ({"narrow": {"hidden": 3072, "top_k": 1}}, None),
    ],
)
def test_doubts_at_the_bounds_of_a_fit(valid: dict[str, Any], doubt: str | None) -> None:
    fitted = replace(law("deepep-normal"), valid=valid, band=0.1, band_elsewhere=0.4)
    found = trust(fitted, GROUPS["four-nodes"], Payload(1.0, 1.0, 3072, 2), 20)
    if doubt is None:
        assert (found.relative, found.notes) == (0.1, ())
    else:
        assert (found.basis, found.relative) == ("assumed", 0.4)
        assert doubt in found.notes[0]


def test_a_ring_of_gathered_tokens_in_the_ideal_network() -> None:
    """Everybody's 100 tokens pass every port; those of the other domain pass a NIC, an eighth of them each."""
    network = group(cluster(16), 16)
    found = dispatcher("all-gather-reduce-scatter").times(to_the_first(network), network, COPY, network="ideal")
    assert found.dispatch.latency == 0.0
    assert found.dispatch.send[0] == pytest.approx(max(1500 * 1000 / UP, 100 * 1000 / NIC))
    assert found.dispatch.bytes_up[0] == pytest.approx(1500 * 1000)
    assert found.dispatch.bytes_out[0] == pytest.approx(100 * 1000)
    assert found.combine.out_receive[0] == pytest.approx(100 * 3000 / NIC)


def test_riders_of_failed_nics_go_where_the_least_load_is_for_a_share() -> None:
    """NICs 0 and 1 of four have failed, 3 has 0.7 of its rate: with one more GPU each, 2 / 1 is less than 2 / 0.7, and
    that less than 3 / 1."""
    broken = [DegradedSpec(link="nic", gpu=gpu, share=share) for gpu, share in ((0, 0.0), (1, 0.0), (3, 0.7))]
    found = group(cluster(8, 4, degraded=tuple(broken)), 8)
    assert (found.nic[0], found.nic[1]) == (found.nic[2], found.nic[3])
    assert len(set(found.nic.tolist())) == 6


def test_rounds_and_time_begin_at_nothing() -> None:
    flows = Fluid(np.array([1.0]))
    assert (flows.now, flows.rounds, flows.living) == (0.0, 0, 0)
    flows.advance(3.0)
    assert (flows.now, flows.rounds) == (3.0, 0)
    first, links = np.array([0, 1], np.int64), np.array([0], np.int32)
    flows.add(first, links, np.array([2.0]))
    assert flows.living == 1
    flows.advance(4.0)
    assert (flows.now, flows.living) == (4.0, 1)
    flows.advance()
    assert (flows.now, flows.living) == (5.0, 0)
    assert flows.end.tolist() == [5.0]


def test_a_torus_of_gpus_without_links_of_their_own_has_nics_for_links() -> None:
    """Unless the cluster states the width of a link."""
    plain: dict[str, Any] = {"fabric": {"kind": "torus"}, "scale_up_kind": "none", "torus_dimensions": 2}
    for stated, width in ((None, NIC), (1e9, 1e9)):
        found = group(cluster(16, 16, **plain).model_copy(update={"scale_up_bandwidth": stated}), 16)
        assert (found.kind, found.scale_up_bandwidth, found.domains) == ("torus", width, 1)


@pytest.mark.parametrize(
    ("shape", "wraps", "diameter", "ring"),
    [
        ((5,), (True,), 2, 2),
        ((6, 3), (True, False), 3 + 2, 2 + 1),
        ((4, 4, 4), (True, True, True), 6, 6),
        ((2, 1), (True, False), 1, 2),
        ((2, 3), (False, False), 1 + 2, 2),
        ((1,), (False,), 0, 1),
    ],
)
def test_how_far_and_how_wide_a_torus_is(
    shape: tuple[int, ...], wraps: tuple[bool, ...], diameter: int, ring: int
) -> None:
    """Half of a closed row and all of an open one; two links of a closed row's chip and one of an open one's."""
    found = Torus(shape, wraps)
    assert (found.diameter, found.ring_links) == (diameter, ring)


def test_the_way_back_keeps_partial_results_apart() -> None:
    """Four ranks in domains of two: what came from ranks 0 and 1 to a rank goes back to their domain."""
    tokens = np.arange(16.0).reshape(4, 4)
    back = reverse(Demand(2 * tokens, tokens, np.zeros((4, 2)), np.full(4, 9.0), 2))
    np.testing.assert_array_equal(back.copies, 2 * tokens.T)
    np.testing.assert_array_equal(back.rank_tokens, tokens.T)
    np.testing.assert_array_equal(back.domain_tokens, [[4, 20], [6, 22], [8, 24], [10, 26]])
    np.testing.assert_array_equal(back.tokens, np.full(4, 9.0))


def test_a_mesh_links_the_ranks_of_a_domain_alone() -> None:
    made = links(group(cluster(4, 2, scale_up_kind="xgmi"), 4))
    assert made.names[:4] == ("gpu0 to gpu1", "gpu1 to gpu0", "gpu2 to gpu3", "gpu3 to gpu2")
    assert made.scale_out.tolist() == [False] * 4 + [True] * 8
