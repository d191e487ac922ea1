"""Speed of an unequal all-to-all under both network models (run with --benchmark-only).

Every size differs; 8 GPUs a node, leaves of 16 nodes, oversubscribed 2:1 or not at all. The port load's bar is 10 ms at
1,024 ranks; the fluid's 1 s at 1,024 ranks, 5 s and 1 GB of resident memory of the whole process at 2,048.
"""

from __future__ import annotations

import resource
from functools import cache

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from moesim.network import fluid
from moesim.network.links import Flows, flows, links
from moesim.network.portload import Traffic, busiest_port
from moesim.network.topology import GroupNetwork, group
from moesim.specs.cluster import ClusterSpec, FabricSpec
from moesim.specs.gpu import GpuSpec

LIMIT = {1024: 1.0, 2048: 5.0}
MEMORY = 1e9


@cache
def network(ranks: int, oversubscription: float) -> GroupNetwork:
    base = {"generation": "hopper", "bf16": 1e15, "memory": 8e10, "memory_bandwidth": 3e12, "nic_bandwidth": 5e10}
    card = GpuSpec.model_validate({**base, "scale_up_bandwidth": 4.5e11})
    fabric = FabricSpec(kind="fat-tree", leaf_ports=16, oversubscription=oversubscription)
    return group(ClusterSpec(gpu=card, gpus=ranks, fabric=fabric, gpus_per_domain=8), ranks)


def unequal(ranks: int, oversubscription: float) -> Traffic:
    """32,768 copies from every rank by lognormal popularity, which differs between sources too."""
    random = np.random.default_rng(0)
    copies = random.lognormal(0, 0.6, (ranks, ranks)) * random.lognormal(0, 0.6, ranks)
    copies *= 32768 / copies.sum(axis=-1, keepdims=True)
    domain = network(ranks, oversubscription).domain
    near = domain[:, None] == domain[None, :]
    return Traffic(copies * (near & ~np.eye(ranks, dtype=bool)), copies * ~near)


def moved(ranks: int, oversubscription: float) -> Flows:
    demand = unequal(ranks, oversubscription)
    return flows(demand.up, demand.out, network(ranks, oversubscription))


def resident() -> float:
    """Most bytes that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_port_load(benchmark: BenchmarkFixture) -> None:
    demand, here = unequal(1024, 2.0), network(1024, 2.0)
    loads = benchmark.pedantic(busiest_port, args=(demand, here), rounds=20, warmup_rounds=2)
    assert loads.out_send.shape == (1024,)
    assert benchmark.stats["min"] < 0.01


@pytest.mark.parametrize("oversubscription", [1.0, 2.0])
def test_rates(benchmark: BenchmarkFixture, oversubscription: float) -> None:
    """Max-min fair rates of 1.05 million flows, once."""
    capacity, all_flows = links(network(1024, oversubscription)).capacity, moved(1024, oversubscription)
    args = (capacity, all_flows.first, all_flows.links)
    found = benchmark.pedantic(fluid.rates, args=args, rounds=5, warmup_rounds=1)
    assert np.all(found > 0)


@pytest.mark.parametrize("oversubscription", [1.0, 2.0])
@pytest.mark.parametrize("ranks", [1024, 2048])
def test_drain(benchmark: BenchmarkFixture, ranks: int, oversubscription: float) -> None:
    """All flows from begin to end: 1.05 and 4.2 million."""
    capacity, all_flows = links(network(ranks, oversubscription)).capacity, moved(ranks, oversubscription)
    fluid.drain(np.ones(1), np.arange(5001), np.zeros(5000, np.int32), np.arange(1.0, 5001.0))
    args = (capacity, all_flows.first, all_flows.links, all_flows.size)
    found = benchmark.pedantic(fluid.drain, args=args, rounds=3)
    passed = np.repeat(all_flows.size, np.diff(all_flows.first))
    bound = (np.bincount(all_flows.links, passed, capacity.size) / capacity).max()
    benchmark.extra_info.update(rounds=found.rounds, over_port_load=found.seconds / bound, peak_bytes=resident())
    assert found.seconds >= bound * (1 - 1e-9)
    assert benchmark.stats["min"] < LIMIT[ranks]
    assert resident() < MEMORY


@pytest.mark.parametrize("ranks", [64, 1024])
def test_max_min(benchmark: BenchmarkFixture, ranks: int) -> None:
    """The seam, with its flows worked out: one sample of a layer."""
    demand, here = unequal(ranks, 2.0), network(ranks, 2.0)
    fluid.max_min(demand, here)
    loads = benchmark.pedantic(fluid.max_min, args=(demand, here), rounds=3)
    assert loads.out_receive.max() >= busiest_port(demand, here).out_receive.max() * (1 - 1e-9)
