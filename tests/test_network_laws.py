"""The laws: each against its formula worked out here, and the directions that must hold.

The hand formulas repeat the design's numbers on purpose: a changed coefficient must be changed in two places.
"""

from __future__ import annotations

from dataclasses import replace
from math import comb, log2, sqrt
from typing import Any

import numpy as np
import pytest
from nccl_numbers import A2A_BASE, A2A_HOP, AMPERE, BASE, ETA, ETA_SMALL, HOP, ROOT
from test_network_topology import GROUPS, NIC, UP, cluster

from moesim import catalog
from moesim.network.demand import Choices, Demand, balanced_demand
from moesim.network.dispatchers import DISPATCHERS, ExchangeTimes, Payload, dispatcher, payload
from moesim.network.topology import GroupNetwork, group

T, H, K, E = 4096, 7168, 8, 256
US = 1e-6


def places(count: int) -> float:
    return count * (1 - comb(E - E // count, K) / comb(E, K)) if count > 1 else 1.0


def law(alpha: float, wire: float, root: float) -> float:
    return alpha + wire + root * sqrt(alpha * wire)


def run(name: str, network: GroupNetwork, tokens: float = T, copy: Payload | None = None, **more: Any) -> ExchangeTimes:
    demand = balanced_demand(Choices(E, K), network.ranks, network.ranks_per_domain, tokens)
    return dispatcher(name).times(demand, network, copy or payload("fp8-block", "bf16", H, K), **more)


def both(times: ExchangeTimes) -> tuple[float, float]:
    return float(times.dispatch.busiest), float(times.combine.busiest)


FP8, BF16 = H * (1 + 4 / 128) + 8 * K + 8, 2 * H + 4 * K


def test_nccl_in_one_node_by_hand() -> None:
    alpha = A2A_BASE * BASE * US + A2A_HOP * HOP * US * 7
    rate = ETA / (1 + ETA_SMALL / 7) * UP
    expected = [law(alpha, T * K * copy * 7 / 8 / rate, ROOT) for copy in (FP8, BF16)]
    assert both(run("nccl-all-to-all", GROUPS["one-node"])) == pytest.approx(expected, rel=1e-12)


def test_nccl_latency_grows_with_the_generation_factor() -> None:
    older = replace(GROUPS["one-node"], generation="ampere")
    ratio = run("nccl-all-to-all", older).dispatch.latency / run("nccl-all-to-all", GROUPS["one-node"]).dispatch.latency
    assert ratio == pytest.approx(AMPERE)


def test_nccl_across_nodes_by_hand() -> None:
    expected = [law(89 * US, T * K * copy * 24 / 32 / (0.91 * NIC), 0.34) for copy in (FP8, BF16)]
    assert both(run("nccl-all-to-all", GROUPS["four-nodes"])) == pytest.approx(expected, rel=1e-12)


def test_a_fabric_can_state_its_own_share_for_plain_all_to_all() -> None:
    fabric = {"kind": "fat-tree", "all_to_all_efficiency": 0.27}
    expected = law(89 * US, T * K * FP8 * 24 / 32 / (0.27 * NIC), 0.34)
    assert both(run("nccl-all-to-all", group(cluster(32, fabric=fabric), 32)))[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("place", "nodes"), [("one-node", 1), ("four-nodes", 4)])
@pytest.mark.parametrize("sms", [4, 12, 24])
def test_deepep_by_hand(place: str, nodes: int, sms: int) -> None:
    ranks = 8 * nodes
    near, far = places(ranks), places(nodes)
    expected = []
    for way, copy in (("dispatch", FP8), ("combine", BF16)):
        rho = {("dispatch", 1): 22e9, ("combine", 1): 29e9, ("dispatch", 4): 19e9, ("combine", 4): 15.8e9}[way, nodes]
        handled = near + (far if nodes > 1 else 0) + (1.3 if way == "combine" else 0)
        wire = max(
            T * copy * far * (nodes - 1) / nodes / (0.948 * NIC),
            T * copy * near * 7 / 8 / (0.694 * UP),
            T * (0.33e-6 + handled * copy / rho) / sms,
        )
        alpha = {"dispatch": 24.4, "combine": 21.1 + copy / 1000 / 0.63}[way] * US + 4.9 * US * log2(nodes)
        expected.append(law(alpha, wire, 0.37))
    kernel = run("deepep-normal", GROUPS[place], multiprocessors=sms, notify=False)
    assert both(kernel) == pytest.approx(expected, rel=1e-9)
    on_stream = both(run("deepep-normal", GROUPS[place], multiprocessors=sms))
    notify = 26 * US * log2(nodes)
    assert on_stream[0] == pytest.approx(expected[0] + notify, rel=1e-9)
    assert on_stream[1] == pytest.approx(expected[1] * (1.018 if nodes > 1 else 1) + notify, rel=1e-9)


def test_the_generic_kernel_by_hand() -> None:
    wire = max(T * FP8 * places(4) * 3 / 4 / (0.88 * NIC), T * FP8 * places(32) * 7 / 8 / (0.73 * UP))
    assert both(run("hybrid-ep", GROUPS["four-nodes"]))[0] == pytest.approx(35 * US + wire, rel=1e-9)
    inside = T * BF16 * places(8) * 7 / 8 / (0.73 * UP)
    assert both(run("hybrid-ep", GROUPS["one-node"]))[1] == pytest.approx(15 * US + inside, rel=1e-9)


def test_one_sided_by_hand() -> None:
    found = both(run("one-sided-nvl", GROUPS["rack"]))
    wire = [T * copy * places(64) * 63 / 64 / (eta * 900e9) for copy, eta in ((FP8, 0.73), (BF16, 0.74))]
    assert found[0] == pytest.approx((11.7 + 1.8 * 6) * US + wire[0], rel=1e-9)
    assert found[1] == pytest.approx((12.4 + 2.9 * 6) * US + wire[1], rel=1e-9)
    tiny = both(run("one-sided-nvl", GROUPS["rack"], copy=Payload(8.0, 8.0)))
    assert tiny[0] == pytest.approx((11.7 + 1.8 * 6) * US + T * 10.3e-9, rel=1e-9)


@pytest.mark.parametrize(("place", "nodes"), [("one-node", 1), ("four-nodes", 4)])
@pytest.mark.parametrize("tokens", [2, 128])
def test_low_latency_by_hand(place: str, nodes: int, tokens: int) -> None:
    """256 experts on 132 SMs: two each, 128 SMs work."""
    far, copy = 1 - 1 / nodes, payload("fp8-block", "bf16", H, K, E)
    expected = []
    for size, a, e, a_far, up, out, s in (
        (FP8, 8.5, 0.016, 16.4, 0.566, 0.958, 1 / 1.858e9),
        (BF16, 10.5, 0.005, 21.7, 0.487, 0.925, 1 / 28e9),
    ):
        wire = max(
            tokens * K * size * far / (out * NIC),
            tokens * K * size / nodes * 7 / 8 / (up * UP),
            tokens * s * size / 128,
        )
        expected.append((a + e * E + a_far * far) * US + wire)
    found = run("deepep-low-latency", GROUPS[place], tokens=tokens, copy=copy)
    assert both(found) == pytest.approx(expected, rel=1e-9)
    assert found.multiprocessors == 0


def test_low_latency_has_few_sms_for_few_experts() -> None:
    """8 experts keep 8 SMs busy; 256 keep 128."""
    network, tokens = GROUPS["one-node"], 256.0
    demand = balanced_demand(Choices(8, 2), 8, 8, tokens)
    few = dispatcher("deepep-low-latency").times(demand, network, payload("fp8-block", "bf16", H, 2, 8))
    busy = tokens * (H * (1 + 4 / 128) + 8 * 2 + 8) / 1.858e9 / 8
    assert both(few)[0] == pytest.approx((8.5 + 0.016 * 8) * US + busy, rel=1e-9)


def test_a_proxy_threads_messages_bound_low_latency() -> None:
    """Every remote (token, expert) pair takes the proxy its time."""
    slow = group(cluster(32, fabric={"kind": "rail-optimized", "message_seconds": 5e-6}), 32)
    there, back = both(run("deepep-low-latency", slow, tokens=128))
    wire = 128 * K * 3 / 4 * 5e-6
    assert there == pytest.approx((8.5 + 0.016 * E + 16.4 * 3 / 4) * US + wire, rel=1e-9)
    assert back == pytest.approx((10.5 + 0.005 * E + 21.7 * 3 / 4) * US + wire, rel=1e-9)
    inside = group(cluster(32, fabric={"kind": "rail-optimized", "message_seconds": 5e-6}), 8)
    assert both(run("deepep-low-latency", inside)) == both(run("deepep-low-latency", GROUPS["one-node"]))


def test_two_hops_through_proxy_threads_by_hand() -> None:
    """1.6 ms a call and 0.54 of the NIC, or a message a (token, node) copy."""
    tokens = 1024
    for each, bound in (
        (0.1e-6, tokens * FP8 * places(4) * 3 / 4 / (0.54 * NIC)),
        (5e-6, tokens * places(4) * 3.75e-6),
    ):
        network = group(cluster(32, fabric={"kind": "rail-optimized", "message_seconds": each}), 32)
        found = run("hybrid-ep", network, tokens=tokens)
        assert both(found)[0] == pytest.approx(35 * US + 1.6e-3 + bound, rel=1e-9)


def test_two_levels_by_hand() -> None:
    """Over NVLink to the GPU in the receiver's place (7 of 8 copies), then over its NIC (3 of 4)."""
    alpha = (A2A_BASE * BASE + A2A_HOP * HOP * 7 + 89) * US
    expected = []
    for copy in (FP8, BF16):
        wire = T * K * copy * (7 / 8 / (ETA / (1 + ETA_SMALL / 7) * UP) + 3 / 4 / (0.91 * NIC))
        expected.append(law(alpha, wire, 0.34))
    assert both(run("hierarchical", GROUPS["four-nodes"])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tokens", [16, 4096])
def test_two_sided_by_hand(tokens: int) -> None:
    network, near = GROUPS["rack"], places(64)
    parts = {
        FP8: (8.9, 1.11, 28.0, 0.644, "fp8-block", "bf16", 0),
        BF16: (9.95, 1.17, 54.9, 0.576, "fp8-block", "bf16", 1),
        H * 9 / 16 + 4 * K: (12.3, 1.46, 125.9, 0.576, "fp8-block", "nvfp4", 1),
    }
    for size, (a, a1, token, eta, there, back, way) in parts.items():
        found = run("two-sided-nvl", network, tokens=tokens, copy=payload(there, back, H, K), notify=False)
        wire = max(tokens * size * near * 63 / 64 / (eta * 900e9), tokens * (token * 1e-9 + near * size / 1.077e12))
        assert both(found)[way] == pytest.approx((a + a1 * 6) * US + wire, rel=1e-9)
    whole, kernels = (both(run("two-sided-nvl", network, tokens=tokens, notify=flag)) for flag in (True, False))
    assert whole[0] - kernels[0] == pytest.approx((10.8 + 0.8 * 6) * US + tokens * 7e-9, rel=1e-9)
    assert whole[1] == kernels[1]


def test_gathering_by_hand() -> None:
    found = both(run("all-gather-reduce-scatter", GROUPS["one-node"]))
    wire = T * FP8 * 7 / (ETA / (1 + ETA_SMALL / 7) * UP)
    assert found[0] == pytest.approx(law((BASE + HOP * 7) * US, wire, ROOT), rel=1e-12)
    across = both(run("all-gather-reduce-scatter", GROUPS["four-nodes"]))
    assert across[1] == pytest.approx(law(89 * US, T * BF16 * 31 / (0.95 * 8 * NIC), 0.34), rel=1e-12)


def test_a_pcie_box_reaches_part_of_its_link() -> None:
    """A rank sends 2 copies of 1 GB; two GPUs share 0.75 of 32 GB/s."""
    network = group(cluster(2, 2, scale_up_kind="pcie", scale_up_bandwidth=32e9), 2)
    copies = np.array([[0.0, 2.0], [2.0, 0.0]])
    demand = Demand(copies, copies, np.full((2, 1), 2.0), np.full(2, 2.0), 2)
    alpha, wire = A2A_BASE * BASE * US + A2A_HOP * HOP * US, 2e9 / (ETA / (1 + ETA_SMALL) * 0.75 * 32e9)
    found = dispatcher("nccl-all-to-all").times(demand, network, Payload(1e9, 1e9))
    assert both(found)[0] == pytest.approx(law(alpha, wire, ROOT), rel=1e-12)
    assert found.basis == "assumed"


def test_a_torus_all_to_all_is_bound_by_its_rings() -> None:
    """4 x 4, wrapped: a ring of 4 carries n^2/8 = 2 a unit between its places, and 4 chips' worth of units each."""
    network = GROUPS["torus-2d"]
    copies = np.ones((16, 16))
    demand = Demand(copies, copies, np.full((16, 1), 16.0), np.full(16, 16.0), 16)
    wire = 4 * 4**2 / 8 * 1e6 / (ETA * 50e9)
    alpha = 1.3 * (A2A_BASE * BASE * US + A2A_HOP * HOP * US * 4)
    found = dispatcher("nccl-all-to-all").times(demand, network, Payload(1e6, 1e6))
    assert both(found) == pytest.approx([law(alpha, wire, ROOT)] * 2, rel=1e-12)


def test_deduplication_beats_plain_all_to_all_on_infiniband() -> None:
    """2.6 x at EP32 with group-limited routing (4 of 8 groups), the routing of the published tables."""
    network, copy = GROUPS["four-nodes"], payload("bf16", "bf16", H, K)
    demand = balanced_demand(Choices(E, K, groups=8, top_groups=4), 32, 8, T)
    plain = dispatcher("nccl-all-to-all").times(demand, network, copy)
    tight = dispatcher("deepep-normal").times(demand, network, copy)
    assert float(plain.dispatch.busiest / tight.dispatch.busiest) == pytest.approx(2.6, rel=0.08)
    two = group(cluster(16), 16)
    assert both(run("deepep-normal", two))[0] < both(run("nccl-all-to-all", two))[0]


@pytest.mark.parametrize("name", ["deepep-normal", "deepep-low-latency"])
@pytest.mark.parametrize("tokens", [128, 1024])
def test_plain_all_to_all_beats_deepep_where_proxy_threads_drive_the_nics(name: str, tokens: int) -> None:
    """1 us a message, between the known 0.4 and 5 us; where the GPU drives the NICs it is the other way round."""
    proxied = group(cluster(32, fabric={"kind": "fat-tree", "message_seconds": 1e-6}), 32)
    found = run(name, proxied, tokens=tokens)
    assert sum(both(found)) > sum(both(run("nccl-all-to-all", proxied, tokens=tokens)))
    assert found.basis == "assumed"
    assert found.relative > 1.0
    assert any("proxy" in note for note in found.notes)
    driven = GROUPS["four-nodes"]
    assert sum(both(run(name, driven, tokens=tokens))) < sum(both(run("nccl-all-to-all", driven, tokens=tokens)))


def test_deduplication_wins_more_the_more_experts_share_a_node() -> None:
    """Top-8 over 2 nodes saves more than half of the copies; top-1 has none to save."""
    network = group(cluster(16), 16)

    def gain(top_k: int) -> float:
        demand, copy = balanced_demand(Choices(E, top_k), 16, 8, T), payload("bf16", "bf16", H, top_k)
        plain, tight = (dispatcher(name).times(demand, network, copy) for name in ("nccl-all-to-all", "hybrid-ep"))
        return float(plain.dispatch.busiest / tight.dispatch.busiest)

    assert gain(8) > gain(4) > gain(2) > gain(1)
    assert gain(8) > 2
    assert gain(1) == pytest.approx(1.0, abs=0.2)


def test_fp8_dispatch_takes_half_of_bf16_combine_when_the_wire_binds() -> None:
    network = GROUPS["four-nodes"]
    there, back = both(run("deepep-normal", network, tokens=1 << 17, multiprocessors=132, notify=False))
    assert there / back == pytest.approx(0.52, abs=0.01)


def test_time_falls_with_sms_until_the_wire_binds() -> None:
    network = GROUPS["four-nodes"]
    times = [both(run("deepep-normal", network, tokens=1 << 17, multiprocessors=sms))[0] for sms in (2, 4, 64, 128)]
    assert times[0] / times[1] == pytest.approx(2.0, rel=0.05)
    assert times[2] == times[3]


@pytest.mark.parametrize("name", ["one-sided-nvl", "two-sided-nvl"])
def test_a_rack_is_flat_from_8_to_64_ranks(name: str) -> None:
    """Forced balance: a token goes to k distinct ranks whatever the size of the group."""
    card = cluster(72, 72, generation="blackwell", scale_up_bandwidth=900e9)

    def seconds(ranks: int) -> float:
        network = group(card, ranks)
        even = np.full((ranks, ranks), T * K / ranks)
        demand = Demand(even, even, np.full((ranks, 1), float(T)), np.full(ranks, float(T)), ranks)
        return sum(both(dispatcher(name).times(demand, network, payload("fp8-block", "bf16", H, K))))

    assert seconds(64) / seconds(8) == pytest.approx(1.0, abs=0.15)
    assert seconds(32) / seconds(8) == pytest.approx(1.0, abs=0.15)


def test_two_to_one_uplinks_double_an_all_to_all_that_they_bind() -> None:
    """4 nodes, 2 under a leaf, all traffic to the other leaf: NIC-bound before, twice that after."""
    away = np.where(np.arange(32)[:, None] // 16 != np.arange(32)[None, :] // 16, 1e3, 0.0)
    demand = Demand(away, away, np.add.reduceat(away, [0, 8, 16, 24], axis=1), np.full(32, 16e3), 8)
    narrow, wide = (
        dispatcher("nccl-all-to-all").times(demand, network, Payload(1e6, 1e6)).dispatch.busiest
        for network in (GROUPS["tree-2to1"], replace(GROUPS["tree-2to1"], oversubscription=1.0))
    )
    assert float(narrow / wide) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("deepep-normal", "every-second-gpu", "4 ranks a domain"),
        ("hybrid-ep", "two-racks", "2 domains"),
        ("one-sided-nvl", "one-node", "hopper GPUs"),
        ("two-sided-nvl", "one-node", "hopper GPUs"),
        ("deepep-low-latency", "every-second-gpu", "4 ranks a domain"),
        ("deepep-low-latency", "four-nodes", "meant for decoding"),
        ("hybrid-ep", "every-second-gpu", "4 ranks a domain"),
        ("nccl-all-to-all", "torus-2d", "torus links"),
        ("nccl-all-to-all", "pcie", "pcie links"),
    ],
)
def test_outside_its_fit_a_law_says_so_and_widens(name: str, place: str, reason: str) -> None:
    found = run(name, GROUPS[place])
    assert found.basis == "assumed"
    assert any(reason in note for note in found.notes)
    assert found.relative >= 0.22


def test_inside_its_fit_a_law_has_its_own_residual() -> None:
    card = catalog.load("gpus", "h100-sxm")
    found = run("deepep-normal", group(cluster(32).model_copy(update={"gpu": card}), 32))
    assert found.basis in ("fitted", "datasheet")
    assert (found.relative, found.notes) == (0.12, ())
    narrow = run("deepep-normal", GROUPS["four-nodes"], copy=payload("bf16", "bf16", 2048, 2))
    assert narrow.relative > found.relative
    assert run("deepep-normal", GROUPS["four-nodes"], multiprocessors=4).relative > found.relative
    assert any("fewer than 8 SMs" in note for note in run("hybrid-ep", GROUPS["four-nodes"], multiprocessors=4).notes)
    many = run("deepep-normal", group(cluster(128), 128))
    assert any("non-blocking" in note for note in many.notes)


def test_multiprocessors_are_the_librarys_unless_stated() -> None:
    assert run("deepep-normal", GROUPS["one-node"]).multiprocessors == 24
    assert run("deepep-normal", GROUPS["one-node"], multiprocessors=20).multiprocessors == 20


def test_every_coefficient_entry_has_a_source_and_a_residual() -> None:
    entries = [name for name in catalog.names("calibrations") if name.startswith("network-")]
    assert {f"network-{name}" for name in DISPATCHERS if "nccl" not in name and "gather" not in name} <= set(entries)
    for name in entries:
        entry = catalog.raw("calibrations", name)
        assert entry["source"]["where"]
        assert entry["source"]["basis"] in ("fitted", "assumed", "paper")
        assert {"median", "p90"} <= set(entry["residual"]) <= {"median", "p90", "bias"}
        for number in entry.get("assumed", {}).values():
            assert number["where"]
