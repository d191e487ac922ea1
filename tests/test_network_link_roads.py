"""Two roads to the busiest port: the closed form of each fabric, and the sum over the links that every flow passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network_links import BUILT, LEAF_SPINE, PCIE, PLANES, RAILS3, TREE3, WRITTEN, by_links, faulty, traffic
from test_network_topology import RAILS_TWO_TO_ONE, TWO_TO_ONE, cluster

from moesim.network.portload import Traffic, busiest_port, own_port
from moesim.network.rings import ring_out_rate
from moesim.network.topology import GroupNetwork, group


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize(("seed", "density"), [(0, 1.0), (1, 0.2), (2, 0.03)])
def test_both_roads_to_the_busiest_port_agree(name: str, seed: int, density: float) -> None:
    """The closed form of each fabric, and the plain sum over the links that every flow passes."""
    network = BUILT[name]
    samples = [traffic(network, 10 * seed + sample, density) for sample in range(2)]
    load = Traffic(np.stack([one.up for one in samples]), np.stack([one.out for one in samples]))
    closed, summed, ideal = (model(load, network) for model in (busiest_port, by_links, own_port))
    for side in ("up_send", "up_receive", "out_send", "out_receive"):
        assert getattr(closed, side) == pytest.approx(getattr(summed, side), rel=1e-9)
        assert np.all(getattr(ideal, side) <= getattr(closed, side) * (1 + 1e-12))


@pytest.mark.parametrize("name", WRITTEN)
def test_no_hand_written_network_beats_its_own_ports(name: str) -> None:
    """What others carry for a rank, the ideal gives it for itself."""
    network = WRITTEN[name]
    for seed in range(3):
        load = traffic(network, seed, 0.3)
        closed, ideal = busiest_port(load, network), own_port(load, network)
        assert np.all(ideal.out_send <= closed.out_send.max() * (1 + 1e-12))
        assert np.all(ideal.out_receive <= closed.out_receive.max() * (1 + 1e-12))


@pytest.mark.parametrize("seed", range(3))
def test_a_leaf_spine_written_by_hand_is_the_tree_of_that_shape(seed: int) -> None:
    """16 GPUs under a leaf with 4 x 2 x NIC upward: 2 to 1."""
    tree = group(cluster(32, fabric={"kind": "fat-tree", "leaf_ports": 2, "oversubscription": 2.0}), 32)
    for name in ("written-tree", "written-tree-stride"):
        written = WRITTEN[name]
        network = tree if written.stride == 1 else group(cluster(32, fabric=TWO_TO_ONE), 16, stride=2)
        load = traffic(network, seed, 0.3)
        one, two = busiest_port(load, written), busiest_port(load, network)
        for side in ("up_send", "up_receive", "out_send", "out_receive"):
            assert getattr(one, side) == pytest.approx(getattr(two, side), rel=1e-9)
        assert ring_out_rate(written) == pytest.approx(ring_out_rate(network))


KINDS: list[dict[str, Any]] = [
    {"fabric": {"kind": "single-switch"}},
    {"fabric": TWO_TO_ONE},
    {"fabric": RAILS_TWO_TO_ONE},
    {"fabric": TREE3},
    {"fabric": RAILS3, **PCIE},
    {"fabric": PLANES},
    {"fabric": PLANES, "nics_per_domain": 2},
    {"fabric": RAILS_TWO_TO_ONE, "scale_up_kind": "xgmi"},
    {"fabric": LEAF_SPINE},
]


@st.composite
def degraded_groups(draw: st.DrawFn) -> tuple[GroupNetwork, GroupNetwork]:
    """A group with up to three faults, and the same with one more."""
    kind = draw(st.sampled_from(KINDS))
    share = st.sampled_from([0.25, 0.5, 0.9])
    nic = st.fixed_dictionaries({"link": st.just("nic"), "gpu": st.integers(0, 31), "share": share})
    dead = nic.map(lambda spec: {**spec, "share": 0.0, "gpu": spec["gpu"] // 8 * 8})
    up = st.fixed_dictionaries({"link": st.just("scale-up"), "gpu": st.integers(0, 31), "share": share})
    choices = [nic, up] if kind.get("nics_per_domain") or kind["fabric"] is LEAF_SPINE else [nic, up, dead]
    if kind["fabric"] in (TWO_TO_ONE, RAILS_TWO_TO_ONE, TREE3, PLANES):
        choices.append(st.fixed_dictionaries({"link": st.just("uplink"), "leaf": st.integers(0, 1), "share": share}))
    faults = draw(st.lists(st.one_of(choices), min_size=1, max_size=4))
    stride = draw(st.sampled_from([1, 2, 8]))
    return tuple(faulty(32, *part, stride=stride, **kind) for part in (faults[:-1], faults))  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@given(degraded_groups(), st.integers(0, 1000))
def test_one_more_fault_never_helps_and_both_roads_see_it(pair: tuple[GroupNetwork, GroupNetwork], seed: int) -> None:
    """Where a NIC has failed, its GPUs' way changes, which may by chance relieve a busier link."""
    before, after = pair
    load = traffic(after, seed, 0.5)
    one, two, summed = busiest_port(load, before), busiest_port(load, after), by_links(load, after)
    for tier in ("up", "out"):
        busiest = [max(getattr(found, f"{tier}_{way}").max() for way in ("send", "receive")) for found in (one, two)]
        assert busiest[1] >= busiest[0] * (1 - 1e-12) or any(spec.share == 0 for spec in after.degraded)
        for way in ("send", "receive"):
            assert getattr(two, f"{tier}_{way}") == pytest.approx(getattr(summed, f"{tier}_{way}"), rel=1e-9)
    assert ring_out_rate(after) <= ring_out_rate(before) * (1 + 1e-12)
