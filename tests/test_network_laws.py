"""The laws: each against its formula worked out here, the directions that must hold, and published measurements.

The hand formulas repeat the design's numbers on purpose: a changed coefficient must be changed in two places.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from math import comb, log2, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_network_topology import GROUPS, NIC, UP, cluster

from moesim import catalog
from moesim.network.demand import Choices, Demand, balanced_demand
from moesim.network.dispatchers import DISPATCHERS, ExchangeTimes, Payload, dispatcher, payload
from moesim.network.topology import GroupNetwork, group

SHARED = Path(__file__).parents[1].parent / "shared" / "measurements"
needs_measurements = pytest.mark.skipif(
    not SHARED.is_dir(), reason="no folder of published measurements beside the checkout"
)
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
    alpha = 1.4 * 4.9 * US + 0.3 * 0.77 * US * 7
    rate = 0.89 / (1 + 0.5 / 7) * UP
    expected = [law(alpha, T * K * copy * 7 / 8 / rate, 1.2) for copy in (FP8, BF16)]
    assert both(run("nccl-all-to-all", GROUPS["one-node"])) == pytest.approx(expected, rel=1e-12)


def test_nccl_latency_grows_with_the_generation_factor() -> None:
    older = replace(GROUPS["one-node"], generation="ampere")
    ratio = run("nccl-all-to-all", older).dispatch.latency / run("nccl-all-to-all", GROUPS["one-node"]).dispatch.latency
    assert ratio == pytest.approx(1.7)


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


def test_gathering_by_hand() -> None:
    found = both(run("all-gather-reduce-scatter", GROUPS["one-node"]))
    wire = T * FP8 * 7 / (0.89 / (1 + 0.5 / 7) * UP)
    assert found[0] == pytest.approx(law((4.9 + 0.77 * 7) * US, wire, 1.2), rel=1e-12)
    across = both(run("all-gather-reduce-scatter", GROUPS["four-nodes"]))
    assert across[1] == pytest.approx(law(89 * US, T * BF16 * 31 / (0.95 * 8 * NIC), 0.34), rel=1e-12)


def test_a_pcie_box_reaches_part_of_its_link() -> None:
    """A rank sends 2 copies of 1 GB; two GPUs share 0.75 of 32 GB/s."""
    network = group(cluster(2, 2, scale_up_kind="pcie", scale_up_bandwidth=32e9), 2)
    copies = np.array([[0.0, 2.0], [2.0, 0.0]])
    demand = Demand(copies, copies, np.full((2, 1), 2.0), np.full(2, 2.0), 2)
    alpha, wire = 1.4 * 4.9 * US + 0.3 * 0.77 * US, 2e9 / (0.89 / 1.5 * 0.75 * 32e9)
    found = dispatcher("nccl-all-to-all").times(demand, network, Payload(1e9, 1e9))
    assert both(found)[0] == pytest.approx(law(alpha, wire, 1.2), rel=1e-12)
    assert found.basis == "assumed"


def test_a_torus_all_to_all_is_bound_by_its_rings() -> None:
    """4 x 4, wrapped: a ring of 4 carries n^2/8 = 2 a unit between its places, and 4 chips' worth of units each."""
    network = GROUPS["torus-2d"]
    copies = np.ones((16, 16))
    demand = Demand(copies, copies, np.full((16, 1), 16.0), np.full(16, 16.0), 16)
    wire = 4 * 4**2 / 8 * 1e6 / (0.89 * 50e9)
    alpha = 1.3 * (1.4 * 4.9 * US + 0.3 * 0.77 * US * 4)
    found = dispatcher("nccl-all-to-all").times(demand, network, Payload(1e6, 1e6))
    assert both(found) == pytest.approx([law(alpha, wire, 1.2)] * 2, rel=1e-12)


def test_deduplication_beats_plain_all_to_all_on_infiniband() -> None:
    """2.6 x at EP32 with group-limited routing (4 of 8 groups), the routing of the published tables."""
    network, copy = GROUPS["four-nodes"], payload("bf16", "bf16", H, K)
    demand = balanced_demand(Choices(E, K, groups=8, top_groups=4), 32, 8, T)
    plain = dispatcher("nccl-all-to-all").times(demand, network, copy)
    tight = dispatcher("deepep-normal").times(demand, network, copy)
    assert float(plain.dispatch.busiest / tight.dispatch.busiest) == pytest.approx(2.6, rel=0.08)
    two = group(cluster(16), 16)
    assert both(run("deepep-normal", two))[0] < both(run("nccl-all-to-all", two))[0]


def test_fp8_dispatch_takes_half_of_bf16_combine_when_the_wire_binds() -> None:
    network = GROUPS["four-nodes"]
    there, back = both(run("deepep-normal", network, tokens=1 << 17, multiprocessors=132, notify=False))
    assert there / back == pytest.approx(0.52, abs=0.01)


def test_time_falls_with_sms_until_the_wire_binds() -> None:
    network = GROUPS["four-nodes"]
    times = [both(run("deepep-normal", network, tokens=1 << 17, multiprocessors=sms))[0] for sms in (2, 4, 64, 128)]
    assert times[0] / times[1] == pytest.approx(2.0, rel=0.05)
    assert times[2] == times[3]


def test_a_rack_is_flat_from_8_to_64_ranks() -> None:
    """Forced balance: a token goes to k distinct ranks whatever the size of the group."""
    card = cluster(72, 72, generation="blackwell", scale_up_bandwidth=900e9)

    def seconds(ranks: int) -> float:
        network = group(card, ranks)
        even = np.full((ranks, ranks), T * K / ranks)
        demand = Demand(even, even, np.full((ranks, 1), float(T)), np.full(ranks, float(T)), ranks)
        return sum(both(dispatcher("one-sided-nvl").times(demand, network, payload("fp8-block", "bf16", H, K))))

    assert seconds(64) / seconds(8) == pytest.approx(1.0, abs=0.15)


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
        ("nccl-all-to-all", "torus-2d", "torus links"),
        ("nccl-all-to-all", "pcie", "pcie links"),
    ],
)
def test_outside_its_fit_a_law_says_so_and_widens(name: str, place: str, reason: str) -> None:
    found = run(name, GROUPS[place])
    assert found.basis == "assumed"
    assert any(reason in note for note in found.notes)
    assert found.relative >= 0.26


def test_inside_its_fit_a_law_has_its_own_residual() -> None:
    card = catalog.load("gpus", "h100-sxm")
    found = run("deepep-normal", group(cluster(32).model_copy(update={"gpu": card}), 32))
    assert found.basis in ("fitted", "datasheet")
    assert (found.relative, found.notes) == (0.12, ())
    narrow = run("deepep-normal", GROUPS["four-nodes"], copy=payload("bf16", "bf16", 2048, 2))
    assert narrow.relative > found.relative
    assert run("deepep-normal", GROUPS["four-nodes"], multiprocessors=4).relative > found.relative
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
        assert set(entry["residual"]) == {"median", "p90"}
        for number in entry.get("assumed", {}).values():
            assert number["where"]


CARDS = {"a100_sxm": ("ampere", 300e9), "h100_sxm": ("hopper", 450e9), "b200_sxm": ("blackwell", 900e9)}


def rows(name: str) -> Iterator[dict[str, str]]:
    with (SHARED / name).open(newline="") as file:
        yield from csv.DictReader(file)


def errors(predicted: list[float], measured: list[float]) -> tuple[float, float]:
    """Median and 90th percentile of |predicted / measured - 1|."""
    found = np.abs(np.array(predicted) / np.array(measured) - 1)
    return float(np.median(found)), float(np.quantile(found, 0.9))


@needs_measurements
def test_nccl_all_to_all_in_one_node_against_measurements() -> None:
    predicted, measured = [], []
    for row in rows("aic_nccl_collectives.csv"):
        if row["op"] != "alltoall":
            continue
        generation, rate = CARDS[row["system"]]
        ranks = int(row["num_gpus"])
        network = group(cluster(8, generation=generation, scale_up_bandwidth=rate), ranks)
        copies = np.full((ranks, ranks), float(row["size_bytes"]) / ranks)
        demand = Demand(copies, copies, copies.sum(axis=1, keepdims=True), np.zeros(ranks), ranks)
        predicted.append(both(dispatcher("nccl-all-to-all").times(demand, network, Payload(1.0, 1.0)))[0])
        measured.append(float(row["time_us"]) * US)
    median, ninth = errors(predicted, measured)
    assert median <= 0.10
    assert ninth <= 0.25


@needs_measurements
def test_deepep_against_measurements() -> None:
    predicted: dict[str, list[float]] = {"1": [], "2": [], "4": []}
    measured: dict[str, list[float]] = {"1": [], "2": [], "4": []}
    for row in rows("aic_deepep_normal.csv"):
        nodes, hidden, top_k = row["node_num"], int(row["hidden_size"]), int(row["num_topk"])
        network = group(cluster(32), 8 * int(nodes))
        demand = balanced_demand(Choices(int(row["num_experts"]), top_k), network.ranks, 8, float(row["num_token"]))
        for way in ("dispatch", "combine"):
            times = dispatcher("deepep-normal").times(
                demand, network, payload("fp8-block", "bf16", hidden, top_k), int(row[f"{way}_sms"]), notify=False
            )
            predicted[nodes].append(both(times)[way == "combine"])
            measured[nodes].append(float(row[f"{way}_transmit_us"]) * US)
    found = {nodes: errors(predicted[nodes], measured[nodes]) for nodes in predicted}
    for nodes, bar in {"1": (0.03, 0.08), "2": (0.055, 0.16), "4": (0.04, 0.12)}.items():
        assert found[nodes][0] <= bar[0]
        assert found[nodes][1] <= bar[1]


@needs_measurements
def test_one_sided_against_measurements() -> None:
    predicted, measured = [], []
    card = cluster(72, 72, generation="blackwell", scale_up_bandwidth=900e9)
    for row in rows("aic_trtllm_alltoall_gb200.csv"):
        way = row["op_name"].removeprefix("alltoall_")
        if row["kernel_source"] != "NVLinkOneSided" or way not in ("dispatch", "combine"):
            continue
        ranks, tokens = int(row["moe_ep_size"]), float(row["num_tokens"])
        network, hit = group(card, ranks), min(ranks, int(row["topk"]))
        even = np.full((ranks, ranks), tokens * hit / ranks)
        demand = Demand(even, even, np.full((ranks, 1), tokens), np.full(ranks, tokens), ranks)
        times = dispatcher("one-sided-nvl").times(demand, network, payload("nvfp4", "bf16", H, K))
        predicted.append(both(times)[way == "combine"])
        measured.append(float(row["time_us"]) * US)
    median, ninth = errors(predicted, measured)
    assert median <= 0.05
    assert ninth <= 0.14
