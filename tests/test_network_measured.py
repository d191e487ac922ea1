"""The network laws against published measurements, where a folder of them lies beside the checkout.

The bars are the accuracy that the design's own fits of the same laws reached: median and 90th percentile of
|predicted / measured - 1|.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_network_topology import cluster

from moesim.network.collectives import (
    all_gather,
    all_reduce,
    all_to_all,
    custom_all_reduce,
    reduce_scatter,
    ring_bandwidth,
)
from moesim.network.demand import Choices, Demand, balanced_demand
from moesim.network.dispatchers import ExchangeTimes, dispatcher, payload, prepare_seconds
from moesim.network.topology import GroupNetwork, group

SHARED = Path(__file__).parents[1].parent / "shared" / "measurements"
US = 1e-6
CARDS = {"a100_sxm": ("ampere", 300e9), "h100_sxm": ("hopper", 450e9), "b200_sxm": ("blackwell", 900e9)}
NVLINK = {"H800": 200e9, "B200": 900e9}
Pair = tuple[float, float]
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no folder of published measurements beside the checkout")


def rows(name: str) -> Iterator[dict[str, str]]:
    with (SHARED / name).open(newline="") as file:
        yield from csv.DictReader(file)


def within(pairs: list[Pair], median: float, ninth: float) -> None:
    """Both bars hold for these (predicted, measured)."""
    predicted, measured = np.array(pairs).T
    error = np.abs(predicted / measured - 1)
    found = float(np.median(error)), float(np.quantile(error, 0.9))
    print(
        f"{len(pairs)} rows: median {found[0]:.3f}, p90 {found[1]:.3f}, bias {np.median(predicted / measured) - 1:+.3f}"
    )
    assert found[0] <= median
    assert found[1] <= ninth


def both(times: ExchangeTimes) -> Pair:
    return float(times.dispatch.busiest), float(times.combine.busiest)


def node(row: dict[str, str]) -> GroupNetwork:
    generation, rate = CARDS[row["system"]]
    return group(cluster(8, generation=generation, scale_up_bandwidth=rate), int(row["num_gpus"]))


@pytest.mark.parametrize(
    ("operation", "call", "median", "ninth"),
    [
        ("alltoall", all_to_all, 0.097, 0.24),
        ("all_gather", lambda network, size: all_gather(network, size / network.ranks, "alone"), 0.07, 0.19),
        ("reduce_scatter", lambda network, size: reduce_scatter(network, size, "alone"), 0.08, 0.195),
        ("all_reduce", lambda network, size: all_reduce(network, size, "alone"), 0.08, 0.2),
    ],
)
def test_nccl_in_one_node(
    operation: str, call: Callable[[GroupNetwork, float], float], median: float, ninth: float
) -> None:
    """The size is the send buffer; an all-gather's is the gathered one."""
    found = [row for row in rows("aic_nccl_collectives.csv") if row["op"] == operation]
    within([(call(node(row), float(row["size_bytes"])), float(row["time_us"]) * US) for row in found], median, ninth)


def test_serving_frameworks_own_all_reduce() -> None:
    found = [row for row in rows("aic_custom_allreduce.csv") if not row["kernel_source"].endswith("eager")]
    assert len(found) > 900
    pairs = [
        (custom_all_reduce(node(row), 2 * float(row["message_size"])), float(row["latency"]) / 1e3) for row in found
    ]
    within(pairs, 0.15, 0.32)


def test_deepep_normal() -> None:
    found = defaultdict[str, list[Pair]](list)
    for row in rows("aic_deepep_normal.csv"):
        nodes, hidden, top_k, experts = (
            int(row[key]) for key in ("node_num", "hidden_size", "num_topk", "num_experts")
        )
        network = group(cluster(32), 8 * nodes)
        demand = balanced_demand(Choices(experts, top_k), network.ranks, 8, float(row["num_token"]))
        for index, way in enumerate(("dispatch", "combine")):
            copy, sms = payload("fp8-block", "bf16", hidden, top_k, experts), int(row[f"{way}_sms"])
            times = dispatcher("deepep-normal").times(demand, network, copy, sms, notify=False)
            found[row["node_num"]].append((both(times)[index], float(row[f"{way}_transmit_us"]) * US))
    for nodes_of, bar in {"1": (0.028, 0.073), "2": (0.052, 0.152), "4": (0.034, 0.112)}.items():
        within(found[nodes_of], *bar)


def test_deepep_low_latency() -> None:
    found = defaultdict[str, list[Pair]](list)
    for row in rows("aic_deepep_ll.csv"):
        nodes, hidden, top_k, experts = (
            int(row[key]) for key in ("node_num", "hidden_size", "num_topk", "num_experts")
        )
        network = group(cluster(32), 8 * nodes)
        demand = balanced_demand(Choices(experts, top_k), network.ranks, 8, float(row["num_token"]))
        copy = payload("fp8-block", "bf16", hidden, top_k, experts)
        seconds = both(dispatcher("deepep-low-latency").times(demand, network, copy))
        for way, predicted in zip(("dispatch", "combine"), seconds, strict=True):
            found[row["node_num"]].append((predicted, float(row[f"{way}_avg_t_us"]) * US))
    within([pair for pairs in found.values() for pair in pairs], 0.034, 0.08)
    for pairs in found.values():
        within(pairs, 0.037, 0.1)


@pytest.mark.parametrize(
    ("name", "kernel", "median", "ninth"),
    [("one-sided-nvl", "NVLinkOneSided", 0.038, 0.12), ("two-sided-nvl", "NVLinkTwoSided", 0.03, 0.09)],
)
def test_nvlink_rack(name: str, kernel: str, median: float, ninth: float) -> None:
    """Forced balance: every token goes to as many ranks as it can."""
    formats = {"bfloat16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4"}
    card, pairs = cluster(72, 72, generation="blackwell", scale_up_bandwidth=900e9), []
    for row in rows("aic_trtllm_alltoall_gb200.csv"):
        way = row["op_name"].removeprefix("alltoall_")
        if row["kernel_source"] != kernel:
            continue
        ranks, tokens, top_k = int(row["moe_ep_size"]), float(row["num_tokens"]), int(row["topk"])
        network, even = group(card, ranks), np.full((ranks, ranks), tokens * min(ranks, top_k) / ranks)
        demand = Demand(even, even, np.full((ranks, 1), tokens), np.full(ranks, tokens), ranks)
        back = "nvfp4" if way.endswith("low_precision") else "bf16"
        copy = payload(formats[row["moe_dtype"]], back, int(row["hidden_size"]), top_k)
        seconds = both(dispatcher(name).times(demand, network, copy, notify=False))[way != "dispatch"]
        pairs.append((prepare_seconds(tokens, network) if way == "prepare" else seconds, float(row["time_us"]) * US))
    within(pairs, median, ninth)


@pytest.mark.parametrize(("nodes", "median", "ninth"), [(1, 0.05, 0.07), (2, 0.08, 0.13), (4, 0.065, 0.1)])
def test_all_to_all_against_published_bus_bandwidth_ratios(nodes: int, median: float, ninth: float) -> None:
    """SimAI's ratios of the nominal bandwidth, from 16 MiB on; 450 GB/s of NVLink, 50 GB/s of NIC a GPU."""
    pairs = []
    for row in rows("a2a_published_tables.csv"):
        if row["kind"] != "busbw_efficiency" or row["op_or_model"] != "all-to-all" or float(row["num_nodes"]) != nodes:
            continue
        network, size = group(cluster(32), 8 * nodes), float(row["bytes"])
        ideal = size * 7 / 8 / 450e9 if nodes == 1 else size * (nodes - 1) / nodes / 50e9
        pairs.append((ideal / all_to_all(network, size), float(row["value"])))
    within(pairs, median, ninth)


@pytest.mark.parametrize(("nodes", "ninth"), [(2, 0.17), (4, 0.07)])
def test_rings_across_nodes_against_published_bus_bandwidth_ratios(nodes: int, ninth: float) -> None:
    pairs = []
    for row in rows("a2a_published_tables.csv"):
        if not row["op_or_model"].startswith("ring collectives") or float(row["num_nodes"]) != nodes:
            continue
        network, size = group(cluster(32), 8 * nodes), float(row["bytes"])
        ideal = size * (network.ranks - 1) / network.ranks / ring_bandwidth(network)
        pairs.append((ideal / reduce_scatter(network, size, "alone"), float(row["value"])))
    within(pairs, 0.06, ninth)


def published(row: dict[str, str], name: str, domain: int = 8) -> Pair:
    """Predicted and measured seconds of a row of the published tables.

    A stated bandwidth is logical: it counts every copy, over the scale-out links one a (token, node) pair, the own node
    too, and the scales of fp8.
    """
    tokens, hidden, top_k, experts = (
        int(float(row[key])) for key in ("tokens_per_rank", "hidden", "topk", "num_experts")
    )
    ranks, form = int(row["num_gpus"]), {"fp8": "fp8-block", "bf16": "bf16"}[row["dtype"]]
    generation = "blackwell" if row["gpu"].startswith("B") else "hopper"
    rate = NVLINK.get(row["gpu"], 450e9)
    network = group(cluster(ranks, domain, generation=generation, scale_up_bandwidth=rate), ranks)
    groups = {"groups": 8, "top_groups": 4} if "group-limited" in row["distribution"] else {}
    demand = balanced_demand(Choices(experts, top_k, **groups), ranks, domain, tokens)
    back = row["op_or_model"] == "combine"
    copy = payload("bf16" if back else form, "bf16", hidden, top_k, experts)
    sms = int(float(row["sms"])) if row["sms"] else None
    predicted = both(dispatcher(name).times(demand, network, copy, sms, notify=False))[back]
    if row["metric"] == "latency":
        return predicted, float(row["value"]) * US
    counted = demand.copies if "low-latency" in row["variant"] else demand.rank_tokens
    places = counted if "low-latency" in row["variant"] or network.domains == 1 else demand.domain_tokens
    size = hidden * (1 + 4 / 128) if form == "fp8-block" else 2 * hidden
    return predicted, float(places[0].sum()) * size / (float(row["value"]) * 1e9)


@pytest.mark.parametrize(
    ("variant", "name", "domain", "median", "ninth"),
    [
        # Three releases on the same hardware, 30 % apart.
        ("DeepEP V1 normal", "deepep-normal", 8, 0.095, 0.22),
        ("DeepEP torch_api", "deepep-normal", 8, 0.05, 0.15),
        ("DeepEP V1 low-latency; <=2025-06-05 pure RDMA", "deepep-low-latency", 1, 0.055, 0.09),
        ("DeepEP V1 low-latency; >=2025-06-05 NVLink", "deepep-low-latency", 8, 0.08, 0.25),
        ("HybridEP kernel_only", "hybrid-ep", 8, 0.13, 0.42),
    ],
)
def test_published_tables(variant: str, name: str, domain: int, median: float, ninth: float) -> None:
    found = [row for row in rows("a2a_published_tables.csv") if row["variant"].startswith(variant)]
    assert found
    within([published(row, name, domain) for row in found], median, ninth)
