"""Groups that straddle scale-up domains: found as by counting them out, priced as the worst-placed, and told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_network_topology import cluster

import moesim
from moesim.errors import ScenarioError
from moesim.network.collectives import all_gather, point_to_point
from moesim.network.demand import Choices, balanced_demand
from moesim.network.dispatchers import DISPATCHERS, payload
from moesim.network.seating import Kind, kind_of, nearest_size, straddling, told
from moesim.network.topology import GroupNetwork, group, pair
from moesim.specs.cluster import ClusterSpec
from moesim.step.data_parallel import gradient_networks
from moesim.step.groups import crossing_share, described, groups, kinds, straddling_note
from moesim.step.model import StepModel
from moesim.step.prices import Prices

RACKS: dict[str, Any] = {
    "model": "deepseek-v3",
    "cluster": {"gpu": "gb200-nvl72", "gpus": 256},
    "parallelism": {"pipeline": 4, "virtual_pipeline": 4, "expert": 64},
    "workload": {"sequence_length": 4096, "global_batch": 2048},
    "precision": {"compute": "mxfp8"},
    "recompute": ["moe_act", "mla_up_proj"],
}


def racks(domain: int | None = None, **changes: Any) -> moesim.Scenario:
    stated = {} if domain is None else {"gpus_per_domain": domain}
    return moesim.load({**RACKS, "cluster": {**RACKS["cluster"], **stated}, **changes})


def dense(gpus: int, domain: int, kind: str = "auto", **layout: int) -> moesim.Scenario:
    return moesim.load(
        {
            "model": "llama-3.1-70b",
            "cluster": {"gpu": "h100-sxm", "gpus": gpus, "gpus_per_domain": domain},
            "parallelism": layout,
            "schedule": kind,
            "workload": {"sequence_length": 4096, "global_batch": 4 * gpus},
        }
    )


@st.composite
def all_kinds(draw: st.DrawFn) -> Kind:
    ranks, stride, blocks = draw(st.integers(1, 28)), draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.integers(1, 7))
    mirrored = 2 * blocks if ranks % 2 == 0 and draw(st.booleans()) else 0
    return Kind(ranks * stride * blocks, draw(st.integers(1, 36)), ranks, stride, mirrored)


def members(kind: Kind) -> list[np.ndarray]:
    """The GPUs of every group, one by one."""
    whole = np.arange(kind.gpus)
    if not kind.mirrored:
        return list(np.moveaxis(whole.reshape(-1, kind.ranks, kind.stride), 1, 2).reshape(-1, kind.ranks))
    stages = whole.reshape(kind.mirrored, -1, kind.stride)
    pairs = [(stages[i], stages[-1 - i]) for i in range(kind.mirrored // 2)]
    return [np.concatenate([one[:, j], two[:, j]]) for one, two in pairs for j in range(kind.stride)]


def placements(kind: Kind) -> Counter[tuple[int, ...]]:
    """How many groups have how many members in their domains, most first."""
    counts = (np.unique(gpus // kind.size, return_counts=True)[1] for gpus in members(kind))
    return Counter(tuple(sorted(count.tolist(), reverse=True)) for count in counts)


@settings(deadline=None, max_examples=300)
@given(all_kinds())
def test_straddling_groups_are_found_as_by_counting(kind: Kind) -> None:
    found = placements(kind)
    domains = -(-kind.ranks // kind.inside)
    last = kind.ranks - (domains - 1) * kind.inside
    want = {each: number for each, number in found.items() if len(each) > domains or each[-1] < last}
    assert {each.members: each.groups for each in straddling(kind)} == want
    assert sum(found.values()) == kind.groups
    fewest = [each.members[-1] for each in straddling(kind)]
    assert fewest == sorted(fewest)


def machine(kind: Kind) -> ClusterSpec:
    changes = {"generation": "blackwell", "scale_up_bandwidth": 900e9} if kind.size > 8 else {}
    return cluster(kind.gpus, kind.size, **changes)


def exchange_seconds(network: GroupNetwork) -> dict[str, float]:
    """Dispatch and combine of even routing by every dispatcher that runs."""
    demand = balanced_demand(Choices(4 * network.ranks, 4), network.ranks, network.ranks_per_domain, 4096.0)
    found = {}
    for name, law in DISPATCHERS.items():
        if law.runs_on(network) is None:
            times = law.times(demand, network, payload("bf16", "bf16", 7168, 4, 256))
            found[name] = float(times.dispatch.busiest + times.combine.busiest)
    return found


# Laws with more than the busiest NIC in them: the two levels of one wait for each other, others' SMs and forwarding
# count copies a domain, and equal small domains have less of that.
ROOM = {"hierarchical": 1.3, "deepep-normal": 1.1, "hybrid-ep": 1.1}


@settings(deadline=None, max_examples=60)
@given(all_kinds())
def test_no_group_alone_is_dearer_than_its_kind(kind: Kind) -> None:
    """Of the groups whose domains have one size, but the last, which is what a network can hold as it is."""
    assume(kind.ranks > 1 and kind.size > 1 and not kind.mirrored and straddling(kind))
    priced = group(machine(kind), kind.ranks, kind.stride)
    whole, ring = exchange_seconds(priced), all_gather(priced, 1e8)
    for alone in placements(kind):
        if len(set(alone[:-1])) > 1:
            continue
        network = replace(priced, ranks_per_domain=alone[0])
        assert all_gather(network, 1e8) <= ring * (1 + 1e-9)
        for name, seconds in exchange_seconds(network).items():
            assert seconds <= whole.get(name, np.inf) * ROOM.get(name, 1 + 1e-9), (name, alone)


@settings(deadline=None, max_examples=100)
@given(all_kinds())
def test_a_kind_of_which_no_group_straddles_is_its_first_group(kind: Kind) -> None:
    assume(not straddling(kind))
    priced = group(machine(kind), kind.ranks, kind.stride, mirrored=kind.mirrored)
    assert priced.ranks_per_domain == min(kind.ranks, max(1, kind.size // kind.stride))
    if kind.size % kind.stride == 0:
        first = max(placements(kind))
        assert (priced.domains, priced.ranks_per_domain) == (len(first), first[0])


def test_the_reviewed_racks() -> None:
    """256 GPUs in racks of 72: the second group of 64 has 8 in the first rack, 56 in the next."""
    chosen = racks()
    assert [found.members for found in straddling(kinds(chosen)["expert"])] == [(56, 8), (48, 16), (40, 24)]
    network = StepModel(chosen).mover.network
    assert (network.ranks_per_domain, network.domains) == (8, 8)
    seconds = {domain: moesim.estimate(racks(domain)).summary["step_time"].value for domain in (None, 64)}
    assert seconds[None] > 1.5 * seconds[64]
    kind = {kind.name: kind for kind in described(chosen)}["expert"]
    assert kind.domains == (1, 2)


def test_the_note_names_the_groups_and_the_nearest_domain() -> None:
    note = straddling_note(racks())
    assert note is not None
    assert note.startswith("groups straddle domains of 72 GPUs: ")
    assert "3 of 4 expert (at worst 56 + 8 ranks)" in note
    assert note.endswith("nearest: cluster.gpus_per_domain 64")
    assert straddling_note(racks(64)) is None
    assert told({"tensor": Kind(16, 3, 2, 1)}) == (
        "groups straddle domains of 3 GPUs: 3 of 8 tensor (at worst 1 + 1 ranks); a kind is priced as its worst-placed"
        " group, domains as small as the smallest of that one; nearest: cluster.gpus_per_domain 2"
    )


def test_the_nearest_domain_is_the_largest_that_suits_every_kind() -> None:
    wanted = [Kind(288, 72, 16, 1), Kind(288, 72, 6, 16)]
    found = nearest_size(wanted)
    assert found is not None
    assert not any(straddling(kind._replace(size=found)) for kind in wanted)
    for larger in range(found + 1, 72):
        assert any(straddling(kind._replace(size=larger)) for kind in wanted)
    assert nearest_size([Kind(6, 2, 3, 1)]) is None


def test_a_dispatcher_for_one_rack_is_refused_where_a_group_straddles() -> None:
    assert racks(64, dispatcher={"kind": "one-sided-nvl"}).dispatcher.kind == "one-sided-nvl"
    with pytest.raises(ScenarioError, match=r"one NVLink domain.*3 of 4 expert .*gpus_per_domain 64"):
        racks(dispatcher={"kind": "one-sided-nvl"})


def test_tensor_groups_that_straddle_are_priced_over_the_nics() -> None:
    odd, even = (Prices(dense(56, domain, tensor=2), 0, False) for domain in (7, 8))
    assert odd.tensor_parallel["dense"].forward > 3 * even.tensor_parallel["dense"].forward


def test_mirrored_stages_sum_gradients_where_they_are() -> None:
    """Stages of 4 GPUs, nodes of 8: stage 0 and stage 7 are not in one node, though 8 ranks would fit in it."""
    chosen = dense(32, 8, "dualpipe", pipeline=8)
    network, _ = gradient_networks(chosen)
    assert (network.ranks, network.ranks_per_domain, network.domains) == (8, 4, 2)
    assert groups(chosen)["data-context"][0].tolist() == [0, 1, 2, 3, 28, 29, 30, 31]
    kind = {kind.name: kind for kind in described(chosen)}["data-context"]
    assert kind.domains == (2, 2)  # stages 3 and 4, the nearest two, lie on either side of a node's end


def test_show_and_price_agree_on_what_leaves_a_domain() -> None:
    for chosen in (racks(), racks(64), racks(36), dense(56, 7, tensor=2), dense(64, 8, tensor=4, pipeline=4)):
        shown = {kind.name: kind for kind in described(chosen)}
        for name, kind in kinds(chosen).items():
            network = group(chosen.cluster, kind.ranks, kind.stride, mirrored=kind.mirrored)
            assert (network.domains == 1) == shown[name].inside, name
            assert (network.ranks, kind.groups) == (shown[name].size, shown[name].groups)


def test_slow_scale_up_links_bind_before_the_nics() -> None:
    """PCIe at 16 GB/s beside NICs of 50 GB/s: the group inside one box is the dearest."""
    slow = cluster(48, 8, scale_up_kind="pcie", scale_up_bandwidth=16e9)
    assert group(slow, 6).domains == 1
    assert group(cluster(48, 8), 6).ranks_per_domain == 2


def test_hand_written_links_split_no_domain() -> None:
    """Groups of 6 in boxes of 8 have 6, 2 + 4, 4 + 2 and 6 there: parts of 2."""
    links = [{"between": (f"gpu{gpu}", "switch"), "bandwidth": 50e9} for gpu in range(24)]
    network = group(cluster(24, 8, fabric={"kind": "links", "links": links}), 6)
    assert (network.ranks_per_domain, network.domains) == (2, 3)


def boundaries(chosen: moesim.Scenario, together: int) -> float:
    """Messages of a microbatch that leave the domain, over all of them, counted one by one for the worst ranks."""
    layout, size = chosen.parallelism, chosen.cluster.gpus_per_domain
    stage = chosen.cluster.gpus // layout.pipeline
    order = [rank for _ in range(layout.virtual_pipeline) for rank in range(layout.pipeline)]
    shares = []
    for first in range(0, stage, together):
        ways = [
            any((stage * a + gpu) // size != (stage * b + gpu) // size for gpu in range(first, first + together))
            for a, b in pairwise(order)
        ]
        shares.append(sum(ways) / len(ways))
    return max(shares)


@pytest.mark.parametrize(
    ("gpus", "domain", "layout", "together"),
    [
        (64, 8, {"tensor": 4, "pipeline": 16}, 4),
        (64, 8, {"tensor": 2, "pipeline": 16}, 2),
        (96, 12, {"tensor": 8, "pipeline": 4}, 8),
        (80, 8, {"tensor": 2, "pipeline": 20, "virtual_pipeline": 4}, 2),
        (64, 8, {"pipeline": 4}, 1),
        (8, 8, {"pipeline": 8}, 1),
    ],
)
def test_hops_are_the_mix_of_the_stage_boundaries(
    gpus: int, domain: int, layout: dict[str, int], together: int
) -> None:
    chosen = dense(gpus, domain, **layout)
    share = crossing_share(chosen)
    assert share == pytest.approx(boundaries(chosen, together))
    found, stage = Prices(chosen, 0, False), gpus // layout["pipeline"]
    near, far = (
        float(point_to_point(pair(chosen.cluster, stage, crosses), found.hop_bytes))
        if gpus > domain or not crosses
        else 0
        for crosses in (False, True)
    )
    assert found.hop == pytest.approx(((1 - share) * near + share * far) * found.stack_factor)


def test_every_second_hop_leaves_the_node() -> None:
    """Llama-3.1-70B, tensor 4, 16 stages: two stages a node, so 7 of 15 boundaries lie between nodes."""
    assert crossing_share(dense(64, 8, tensor=4, pipeline=16)) == pytest.approx(7 / 15)
    assert kind_of(dense(64, 8, tensor=4, pipeline=16).cluster, 4, 1) == Kind(64, 8, 4, 1)
