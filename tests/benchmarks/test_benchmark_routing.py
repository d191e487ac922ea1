"""How fast one layer of an expert-parallel group of 64 ranks is sampled (run with --benchmark-only)."""

from __future__ import annotations

import pytest

from moesim.placement import expert_rank
from moesim.randomness import Streams
from moesim.routing.loads import layer_weights
from moesim.routing.race_draws import RaceDraws
from moesim.routing.routers import router
from moesim.routing.sampler import RoutingSampler
from moesim.specs.model import RouterSpec
from moesim.specs.routing import CapacitySpec, LoadProfile

RANKS, TOKENS = 64, 4096
GROUPS = {"rule": "sigmoid-top-k", "groups": 8, "top_groups": 4}


@pytest.mark.parametrize(
    ("spec", "capacity"),
    [
        pytest.param(RouterSpec(), None, id="top-8 of 256"),
        pytest.param(RouterSpec(), CapacitySpec(factor=1.25), id="top-8 of 256 with drops"),
        pytest.param(RouterSpec(**GROUPS, group_score="max"), None, id="groups by max"),
        pytest.param(RouterSpec(**GROUPS, group_score="top2-sum"), None, id="groups by top2-sum"),
    ],
)
def test_tokens_per_second(benchmark, spec, capacity):
    profile, streams = LoadProfile(zipf=0.65, sequence_tilt=0.3), Streams(0)
    popularity = layer_weights(profile, 256, 1, 8, streams)
    draws = RaceDraws(
        router(spec, 256, 8),
        profile,
        popularity,
        ranks=RANKS,
        tokens_per_rank=TOKENS,
        sequences_per_rank=1,
        streams=streams,
    )
    sampler = RoutingSampler(
        draws,
        top_k=8,
        tokens_per_rank=TOKENS,
        ranks=RANKS,
        ranks_per_domain=8,
        capacity=capacity,
        placement=expert_rank(256, RANKS),
        streams=streams,
    )
    counts = benchmark.pedantic(sampler.sample, args=(0, 0), rounds=10, warmup_rounds=1)
    benchmark.extra_info["tokens_per_second"] = RANKS * TOKENS / benchmark.stats["min"]
    assert counts.expert_routed.sum() == RANKS * TOKENS * 8
