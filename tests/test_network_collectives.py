"""Collectives of tensor, data, context and pipeline parallelism: by hand, in their limits, and against measurements."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from test_network_laws import CARDS, SHARED, US, errors, needs_measurements, rows
from test_network_topology import GROUPS, NIC, RAILS_TWO_TO_ONE, TWO_TO_ONE, UP, cluster

from moesim.network.collectives import all_gather, all_reduce, point_to_point, reduce_scatter, ring_bandwidth
from moesim.network.topology import group

SIZE = 1e9


def test_tensor_parallel_in_a_step_by_hand() -> None:
    """(tp-1)/tp x bytes / (NVLink x 0.67) + 15 us, for the reduce-scatter and for the all-gather of its shards."""
    expected = 7 / 8 * SIZE / (UP * 0.67) + 15 * US
    assert reduce_scatter(GROUPS["one-node"], SIZE) == pytest.approx(expected)
    assert all_gather(GROUPS["one-node"], SIZE / 8) == pytest.approx(expected)
    assert all_reduce(GROUPS["one-node"], SIZE) == pytest.approx(2 * expected - 15 * US)


def test_a_ring_across_domains_has_all_members_nics() -> None:
    assert ring_bandwidth(GROUPS["four-nodes"]) == pytest.approx(8 * NIC)
    assert ring_bandwidth(GROUPS["every-second-gpu"]) == pytest.approx(4 * NIC)
    assert ring_bandwidth(GROUPS["one-rank-a-node"]) == pytest.approx(NIC)
    assert ring_bandwidth(GROUPS["shared-nics"]) == pytest.approx(4 * NIC)
    assert ring_bandwidth(group(cluster(16, nic_bandwidth=200e9), 16)) == pytest.approx(UP)
    wire = 31 / 32 * SIZE / (8 * NIC)
    assert reduce_scatter(GROUPS["four-nodes"], SIZE) == pytest.approx(wire / 0.67 + 89 * US)
    assert reduce_scatter(GROUPS["four-nodes"], SIZE, "fsdp") == pytest.approx(wire / 0.59 + 89 * US)


def test_uplinks_bind_a_ring_only_beyond_the_domains_below_them() -> None:
    """A ring leaves a leaf of 2 domains with one domain's flow: 2:1 is just enough, 4:1 halves it."""
    for fabric in (TWO_TO_ONE, RAILS_TWO_TO_ONE):
        assert ring_bandwidth(group(cluster(32, fabric=fabric), 32)) == pytest.approx(8 * NIC)
        assert ring_bandwidth(group(cluster(32, fabric=fabric, oversubscription=4.0), 32)) == pytest.approx(4 * NIC)


def test_a_torus_rings_along_all_its_dimensions() -> None:
    assert ring_bandwidth(GROUPS["torus-2d"]) == pytest.approx(4 * 50e9)
    open_mesh = {"kind": "torus", "torus_wraps": False}
    card = cluster(16, 16, fabric=open_mesh, generation="tpu", scale_up_kind="torus", scale_up_bandwidth=50e9)
    assert ring_bandwidth(group(card, 16)) == pytest.approx(2 * 50e9)


def test_part_of_a_mesh_has_part_of_its_links() -> None:
    assert ring_bandwidth(group(cluster(8, scale_up_kind="xgmi"), 2)) == pytest.approx(UP / 7)
    assert ring_bandwidth(group(cluster(8, scale_up_kind="xgmi"), 8)) == pytest.approx(UP)


def test_alone_in_a_domain_by_hand() -> None:
    alpha, wire = (4.9 + 2 * 0.77 * 7) * US, 2 * 7 / 8 * SIZE / (0.89 / (1 + 0.5 / 7) * UP * 1.2)
    assert all_reduce(GROUPS["one-node"], SIZE, "alone") == pytest.approx(alpha + wire + 1.2 * sqrt(alpha * wire))


def test_a_message_takes_scale_up_links_inside_a_domain() -> None:
    near, far = group(cluster(16), 2), group(cluster(16), 2, stride=8)
    assert point_to_point(near, SIZE) == pytest.approx(15 * US + SIZE / (0.89 * UP))
    assert point_to_point(far, SIZE) == pytest.approx(42 * US + SIZE / (0.91 * NIC))


@pytest.mark.parametrize("place", list(GROUPS))
def test_collectives_are_monotone_and_free_when_empty(place: str) -> None:
    network, sizes = GROUPS[place], np.array([0.0, 1.0, 1e6, 1e9])
    for operation in (all_gather, reduce_scatter, all_reduce):
        for use in ("step", "fsdp", "alone"):
            seconds = operation(network, sizes, use)  # type: ignore[arg-type]
            assert seconds.shape == (4,)
            assert seconds[0] == 0.0
            assert (np.diff(seconds) > 0).all() == (network.ranks > 1)
            assert operation(network, 1e6, use) == pytest.approx(seconds[2])  # type: ignore[arg-type]
    assert isinstance(point_to_point(network, 1e6), float)
    assert point_to_point(network, 0.0) == 0.0


@needs_measurements
def test_collectives_alone_against_measurements() -> None:
    """The measured size of an all-gather is the gathered buffer."""
    predicted, measured = [], []
    operations = {"all_gather": all_gather, "reduce_scatter": reduce_scatter, "all_reduce": all_reduce}
    for row in rows("aic_nccl_collectives.csv"):
        if row["op"] not in operations:
            continue
        generation, rate = CARDS[row["system"]]
        network = group(cluster(8, generation=generation, scale_up_bandwidth=rate), int(row["num_gpus"]))
        size = float(row["size_bytes"]) / (network.ranks if row["op"] == "all_gather" else 1)
        predicted.append(operations[row["op"]](network, size, "alone"))
        measured.append(float(row["time_us"]) * US)
    median, ninth = errors(predicted, measured)
    assert median <= 0.08
    assert ninth <= 0.20


@needs_measurements
def test_rings_across_nodes_against_published_bus_bandwidth_ratios() -> None:
    """SimAI's ratios of the nominal bandwidth on 2 and 4 nodes, from 16 MiB on."""
    predicted, measured = [], []
    for row in rows("a2a_published_tables.csv"):
        if not row["op_or_model"].startswith("ring collectives") or float(row["num_nodes"]) < 2:
            continue
        network, size = group(cluster(32), int(float(row["num_gpus"]))), float(row["bytes"])
        ideal = size * (network.ranks - 1) / network.ranks / ring_bandwidth(network)
        predicted.append(ideal / reduce_scatter(network, size, "alone"))
        measured.append(float(row["value"]))
    assert SHARED.is_dir()
    assert errors(predicted, measured)[0] <= 0.08
