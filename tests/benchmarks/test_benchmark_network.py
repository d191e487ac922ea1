"""Speed of the network room: a layer batch of a large model, and one sample on the largest torus."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from moesim.network.demand import Choices, Demand, balanced_demand
from moesim.network.dispatchers import DISPATCHERS, payload
from moesim.network.topology import group
from moesim.specs.cluster import ClusterSpec, FabricSpec
from moesim.specs.gpu import GpuSpec

COPY = payload("fp8-block", "bf16", 7168, 8)


def card(**changes: object) -> GpuSpec:
    base = {"generation": "hopper", "bf16": 1e15, "memory": 8e10, "memory_bandwidth": 3e12, "nic_bandwidth": 5e10}
    return GpuSpec.model_validate({**base, "scale_up_bandwidth": 4.5e11, **changes})


@pytest.mark.parametrize("name", [name for name in DISPATCHERS if name != "one-sided-nvl"])
def test_a_batch_of_layers(benchmark: BenchmarkFixture, name: str) -> None:
    """58 layers x 8 samples of EP64, single tokens counted as integers: under 0.3 s."""
    network = group(ClusterSpec(gpu=card(), gpus=64, fabric=FabricSpec(kind="rail-optimized"), gpus_per_domain=8), 64)
    copies = np.random.default_rng(0).integers(0, 500, (464, 64, 64))
    demand = Demand(copies, copies, copies.reshape(464, 64, 8, 8).sum(axis=-1), np.full(64, 4096.0), 8)
    found = benchmark(DISPATCHERS[name].times, demand, network, COPY)
    assert found.dispatch.send.shape == (464, 64)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_torus_of_2048_chips(benchmark: BenchmarkFixture, dimensions: int) -> None:
    """One sample of 2048 ranks, every pair of chips talking: under 1 s."""
    chip = card(generation="tpu", scale_up_kind="torus", scale_up_bandwidth=7e10, torus_dimensions=dimensions)
    network = group(ClusterSpec(gpu=chip, gpus=2048, fabric=FabricSpec(kind="torus"), gpus_per_domain=2048), 2048)
    demand = balanced_demand(Choices(2048, 2), 2048, 2048, 1024)
    found = benchmark(DISPATCHERS["nccl-all-to-all"].times, demand, network, COPY)
    assert found.dispatch.busiest > 0
