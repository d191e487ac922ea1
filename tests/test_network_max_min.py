"""The network model "max-min" against its bounds, and how near the busiest port it stays where nothing is shared."""

from __future__ import annotations

import numpy as np
import pytest
from test_network_fluid import SIZES
from test_network_links import faulty
from test_network_topology import GROUPS, cluster, routed
from test_routing_sampler import sampler

from moesim.network import fluid
from moesim.network.fluid import Fluid, max_min
from moesim.network.links import flows, links
from moesim.network.portload import PortLoads, Traffic, busiest_port, own_port
from moesim.network.topology import GroupNetwork, group
from moesim.randomness import Streams
from moesim.specs.routing import LoadProfile


def tiers(loads: PortLoads) -> dict[str, np.ndarray]:
    return {name: getattr(loads, name) for name in ("up_send", "up_receive", "out_send", "out_receive")}


def traffic(network: GroupNetwork, seed: int, batch: int = 2) -> Traffic:
    copies = routed(network, seed, batch=batch).copies
    near = network.domain[:, None] == network.domain[None, :]
    return Traffic(copies * (near & ~np.eye(network.ranks, dtype=bool)), copies * ~near)


@pytest.mark.parametrize("name", GROUPS)
def test_ideal_and_port_load_are_lower_bounds(name: str) -> None:
    """Rank by rank for its own ports, and for the last rank where links are shared."""
    network = GROUPS[name]
    demand = traffic(network, 5)
    found, ideal, port = (tiers(model(demand, network)) for model in (max_min, own_port, busiest_port))
    for tier, seconds in found.items():
        assert seconds.shape == port[tier].shape
        assert np.all(seconds >= ideal[tier] * (1 - 1e-9))
        assert np.all(seconds.max(axis=-1) >= port[tier].max(axis=-1) * (1 - 1e-9))
        assert np.all((seconds > 0) == (port[tier] > 0))


@pytest.mark.parametrize("share", [0.125, 0.2, 0.9])
@pytest.mark.parametrize("narrow", [{"link": "scale-up", "gpu": 0}, {"between": ["gpu0", "gpu1-7"]}])
def test_a_narrow_mesh_has_the_ideal_below_the_port_load(share: float, narrow: dict[str, object]) -> None:
    """Eight ranks that send each other nearly the same: all seven links of GPU 0 are as narrow as stated, no more."""
    network = faulty(8, {**narrow, "share": share}, scale_up_kind="xgmi")
    copies = np.random.default_rng(3).uniform(0.99, 1.01, (8, 8)) * ~np.eye(8, dtype=bool)
    demand = Traffic(copies, np.zeros((8, 8)))
    ideal, port, found = (tiers(model(demand, network)) for model in (own_port, busiest_port, max_min))
    assert network.own_up_rates[0] == pytest.approx(share * network.port_bandwidth)
    for tier in ("up_send", "up_receive"):
        assert np.all(ideal[tier] <= port[tier] * (1 + 1e-12))
        assert port[tier].max() <= found[tier].max() * (1 + 1e-9)
        assert ideal[tier].max() == pytest.approx(port[tier].max(), rel=0.02)


def beyond(network: GroupNetwork, matrix: np.ndarray) -> float:
    """By how much the last flow of a tier ends later than the busiest port allows; the worse of both tiers."""
    near = network.domain[:, None] == network.domain[None, :]
    demand = Traffic(matrix * (near & ~np.eye(len(matrix), dtype=bool)), matrix * ~near)
    found, port = tiers(max_min(demand, network)), tiers(busiest_port(demand, network))
    late = [0.0]
    for tier in ("up", "out"):
        total, bound = (max(loads[f"{tier}_{way}"].max() for way in ("send", "receive")) for loads in (found, port))
        assert total >= bound * (1 - 1e-9)
        late.append(total / bound - 1 if bound else 0.0)
    return max(late)


def non_blocking(ranks: int) -> list[GroupNetwork]:
    """Nodes of 8, and a rank a node."""
    return [group(cluster(ranks), ranks), group(cluster(8 * ranks), ranks, stride=8)]


# name: profile, bar
ROUTINGS = {
    "even": (LoadProfile(), 0.01),
    "log-normal 0.3": (LoadProfile(log_normal=0.3), 0.01),
    "log-normal 0.8": (LoadProfile(log_normal=0.8), 0.01),
    "zipf 1": (LoadProfile(zipf=1.0), 0.01),
    # whole sequences lean the same way, so that each of few ranks has favourites of its own
    "tilted sequences": (LoadProfile(log_normal=0.3, sequence_tilt=1.0), 0.03),
}


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("ranks", [8, 16, 32, 64, 128])
def test_token_routings_stay_within_one_percent_of_the_port_load(name: str, ranks: int) -> None:
    """A batch as the sampler routes it, on fabrics that block nothing; tokens of one sequence that lean alike, 3 %."""
    profile, bar = ROUTINGS[name]
    sizes = {"experts": max(64, 2 * ranks), "top_k": 8, "ranks": ranks, "ranks_per_domain": 8, "layers": 1}
    for seed in range(12 if ranks < 64 else 4):
        tokens = (64, 256, 1024)[seed % 3]
        draws = sampler(profile=profile, tokens_per_rank=tokens, streams=Streams(seed), **sizes)
        copies = np.asarray(draws.sample(0, 0).copies, np.float64)
        assert max(beyond(network, copies) for network in non_blocking(ranks)) <= bar


@pytest.mark.parametrize("kind", ["uniform", "uneven sources too", "heavy-tailed"])
@pytest.mark.parametrize("ranks", [8, 16, 32, 64])
def test_sizes_of_no_batch_stay_within_ten_percent(kind: str, ranks: int) -> None:
    """Every pair's bytes by itself, some many times the others': what no routing of a batch looks like."""
    for seed in range(20 if ranks < 64 else 4):
        matrix = np.asarray(SIZES[kind](np.random.default_rng(seed), ranks), np.float64)
        assert max(beyond(network, matrix) for network in non_blocking(ranks)) <= 0.1


def test_max_min_takes_seconds_of_its_flows() -> None:
    """A batch of two: the loads are the last ends of the flows of each rank and tier."""
    network = GROUPS["tree-2to1"]
    demand = traffic(network, 9)
    loads = max_min(demand, network)
    for sample in range(2):
        moved = flows(demand.up[sample], demand.out[sample], network)
        found = Fluid(links(network).capacity, fluid.RESOLUTION, 0)
        found.add(moved.first, moved.links, moved.size)
        found.advance()
        chosen = moved.scale_out & (moved.target == 4)
        assert loads.out_receive[sample, 4] == found.end[chosen].max(initial=0.0)
        chosen = ~moved.scale_out & (moved.source == 7)
        assert loads.up_send[sample, 7] == found.end[chosen].max(initial=0.0)
