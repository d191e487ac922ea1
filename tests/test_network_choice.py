"""`auto`, and all dispatchers side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_network_topology import GROUPS, cluster

from moesim.network.coefficients import law
from moesim.network.demand import Choices, Demand, balanced_demand
from moesim.network.dispatchers import DISPATCHERS, Choice, Payload, choose, nearest_dispatcher, payload
from moesim.network.dispatchers.choice import compare, fastest
from moesim.network.topology import GroupNetwork, group

SHIPPED = {
    name: DISPATCHERS[name]
    for name in (
        "nccl-all-to-all",
        "hierarchical",
        "deepep-normal",
        "deepep-low-latency",
        "hybrid-ep",
        "one-sided-nvl",
        "two-sided-nvl",
        "all-gather-reduce-scatter",
    )
}
"""Those whose numbers stand here: a dispatcher that is added may be faster."""


def choice(demand: Demand, network: GroupNetwork, copy: Payload) -> Choice:
    """What `auto` would take of those that ship."""
    return fastest(SHIPPED, demand, network, copy)


def balanced(network: GroupNetwork, tokens: float = 4096.0) -> Demand:
    return balanced_demand(Choices(256, 8), network.ranks, network.ranks_per_domain, tokens)


def test_auto_is_the_fastest_that_runs_and_says_why() -> None:
    fat = payload("bf16", "bf16", 7168, 8)
    chosen = choice(balanced(GROUPS["four-nodes"]), GROUPS["four-nodes"], fat)
    network = GROUPS["four-nodes"]
    able = [
        found
        for found in SHIPPED.values()
        if found.runs_on(network) is None and found.unfit(balanced(network), network) is None
    ]
    assert len(able) == 5
    times = {found.name: found.times(balanced(GROUPS["four-nodes"]), GROUPS["four-nodes"], fat) for found in able}
    fastest = min(times, key=lambda name: float(times[name].dispatch.busiest + times[name].combine.busiest))
    assert chosen.dispatcher.name == fastest
    assert fastest in chosen.reason
    assert "one-sided-nvl needs" in chosen.reason
    assert "deepep-low-latency is meant for decoding, up to 256 tokens" in chosen.reason
    top_2 = balanced_demand(Choices(256, 2), 16, 16, 4096.0)
    assert choice(top_2, GROUPS["torus-2d"], fat).dispatcher.name == "nccl-all-to-all"
    assert choice(balanced(GROUPS["one-rank"]), GROUPS["one-rank"], fat).dispatcher.name == "nccl-all-to-all"


def test_auto_prefers_the_better_known_of_two_that_are_equally_fast() -> None:
    """A rack of 64: a law fitted on such racks, and a rule of datasheets a little ahead, 0.1 % and 3 %."""
    network = group(cluster(72, 72, generation="blackwell", scale_up_bandwidth=900e9), 64)
    copy, demand = payload("fp8-block", "bf16", 4096, 8, 128), balanced_demand(Choices(128, 8), 64, 64, 4096.0)
    rows = {row.name: row for row in compare(SHIPPED, demand, network, copy)}
    quick, known = rows["hybrid-ep"], rows["one-sided-nvl"]
    assert (quick.total or 0) < (known.total or 0) < 1.02 * (quick.total or 0)
    assert (known.relative or 0) < (quick.relative or 0)
    chosen = choice(demand, network, copy)
    assert chosen.dispatcher.name == "one-sided-nvl"
    assert "against hybrid-ep" in chosen.reason
    assert "within the range of both, and its law is better known here" in chosen.reason
    assert "fastest" not in chosen.reason
    apart = replace(law("common"), data={**law("common").data, "assumed": {"auto_tie": {"value": 0.0}}})
    strict = choice(demand, replace(network, laws={"common": apart}), copy)
    assert strict.dispatcher.name == "hybrid-ep"
    assert "is the fastest that runs here, against one-sided-nvl" in strict.reason


def test_auto_chooses_among_all_that_are_registered() -> None:
    for network in (GROUPS["four-nodes"], GROUPS["one-node"]):
        copy = payload("fp8-block", "bf16", 7168, 8, 256)
        for tokens in (8.0, 4096.0):
            demand = balanced(network, tokens)
            assert choose(demand, network, copy) == fastest(DISPATCHERS, demand, network, copy)


@pytest.mark.parametrize("stated", [None, 20])
def test_stated_multiprocessors_are_for_those_that_have_the_setting(stated: int | None) -> None:
    network, copy = GROUPS["four-nodes"], payload("fp8-block", "bf16", 7168, 8, 256)
    rows = {row.name: row for row in compare(DISPATCHERS, balanced(network, 64.0), network, copy, stated)}
    assert rows["deepep-low-latency"].multiprocessors == 0
    assert rows["deepep-normal"].multiprocessors == (stated or 24)
    assert not DISPATCHERS["deepep-low-latency"].settable
    assert [DISPATCHERS[name].multiprocessors(20) for name in ("deepep-low-latency", "hybrid-ep")] == [0, 20]


def test_auto_decodes_with_low_latency_kernels() -> None:
    """A small batch over four nodes: fewer hops beat fewer bytes, until the bytes count."""
    small, network = payload("fp8-block", "bf16", 7168, 8, 256), GROUPS["four-nodes"]
    chosen = choice(balanced(network, 8.0), network, small)
    assert chosen.dispatcher.name == "deepep-low-latency"
    assert "is meant for decoding" not in chosen.reason
    assert choice(balanced(network, 128.0), network, small).dispatcher.name != "deepep-low-latency"
    assert choice(balanced(GROUPS["pcie"], 8.0), GROUPS["pcie"], small).dispatcher.name != "deepep-low-latency"


def test_comparing_tells_all_dispatchers_fastest_first() -> None:
    network = GROUPS["four-nodes"]
    rows = compare(DISPATCHERS, balanced(network), network, payload("fp8-block", "bf16", 7168, 8, 256))
    assert {row.name for row in rows} == set(DISPATCHERS)
    able = [row for row in rows if row.total is not None]
    assert [row.total for row in able] == sorted(row.total for row in able if row.total is not None)
    assert [row.name for row in rows if row.total is None] == ["one-sided-nvl", "two-sided-nvl"]
    assert all(row.why_not for row in rows if row.total is None)
    found = {row.name: row for row in rows}
    plain, deepep = found["nccl-all-to-all"], found["deepep-normal"]
    # 3/4 of the copies leave the node, plain; 7/32 stay in it on another rank.
    assert plain.bytes_out == pytest.approx(4096 * 8 * 3 / 4 * (7464 + 14368))
    assert plain.bytes_up == pytest.approx(4096 * 8 * 7 / 32 * (7464 + 14368))
    assert deepep.bytes_out is not None
    assert deepep.bytes_out < plain.bytes_out
    assert deepep.multiprocessors == 24
    assert deepep.total == pytest.approx((deepep.dispatch or 0) + (deepep.combine or 0))
    assert found["deepep-low-latency"].why_not is not None
    assert found["hierarchical"].basis == "assumed"


@pytest.mark.parametrize(
    ("library", "expected", "noted"),
    [
        ("deepep-normal", "deepep-normal", False),
        ("DeepEP", "deepep-normal", False),
        ("deepep_low_latency", "deepep-low-latency", False),
        ("DeepEP V1 low-latency", "deepep-low-latency", False),
        ("deepep-ll", "deepep-low-latency", False),
        ("DeepEP V2", "deepep-normal", True),
        ("HybridEP", "hybrid-ep", False),
        ("uccl-ep", "hybrid-ep", True),
        ("deepep(UCCL)", "hybrid-ep", True),
        ("UCCL-EP low-latency", "deepep-low-latency", True),
        ("pplx-kernels", "hybrid-ep", True),
        ("MoRI", "hybrid-ep", True),
        ("NVLinkOneSided", "one-sided-nvl", False),
        ("TRT-LLM NVLinkTwoSided", "two-sided-nvl", False),
        ("tensorrt-llm", "one-sided-nvl", True),
        ("nccl", "nccl-all-to-all", False),
        ("NCCL 2.27.3", "nccl-all-to-all", False),
        ("alltoall", "nccl-all-to-all", False),
        ("rccl", "nccl-all-to-all", True),
        ("tutel 2DH", "hierarchical", True),
        ("allgather", "all-gather-reduce-scatter", False),
        ("something new", "hybrid-ep", True),
    ],
)
def test_libraries_find_their_dispatcher(library: str, expected: str, noted: bool) -> None:
    found, note = nearest_dispatcher(library)
    assert found == expected
    assert bool(note) == noted
    assert not note or (library in note and expected in note)
