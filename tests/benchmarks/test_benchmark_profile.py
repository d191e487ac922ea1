"""How fast a fitted profile is drawn, token by token and by counts, and how far the counts are off (--benchmark-only).

Top-8 of 256 experts, 32 token classes, 64 source ranks of one 4096-token sequence each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from moesim.randomness import Streams
from moesim.routing.profile_draws import CountSampler, ProfileDraws
from moesim.routing.profile_law import plain_law
from moesim.traces.fit import fit_law

sys.path.insert(0, str(Path(__file__).parents[1]))
from profile_fixture import made_up, made_up_trace

RANKS, TOKENS, LAYERS = 64, 4096, 2
# the counts' error against the tokens', stated and held: busiest over mean, relative; idle experts, in points
MAX_OVER_MEAN_ERROR, IDLE_ERROR = 0.03, 0.02


@pytest.fixture(scope="module")
def profile():
    return made_up(layers=LAYERS, experts=256, top_k=8, classes=32, directions=16, sequences=64, parts=4, repeat=2.0)


def shape():
    story = {"mix": {}, "moment": None, "blocks": False, "streams": Streams(3)}
    return {"layers": LAYERS, "ranks": RANKS, "tokens_per_rank": TOKENS, "sequences_per_rank": 1, **story}


def test_tokens_per_second(benchmark, profile):
    draws = ProfileDraws(profile, router_law=plain_law(256, 8), **shape())
    drawn = benchmark.pedantic(draws.draw, args=(0, 0, 0, RANKS), rounds=10, warmup_rounds=1)
    benchmark.extra_info["tokens_per_second"] = RANKS * TOKENS / benchmark.stats["min"]
    assert drawn.choices.shape == (RANKS, TOKENS, 8)


def test_counts_per_second(benchmark, profile):
    sampler = CountSampler(profile, **shape())
    counts = benchmark.pedantic(sampler.counts, args=(0,), rounds=10, warmup_rounds=1)
    benchmark.extra_info["tokens_per_second"] = LAYERS * RANKS * TOKENS / benchmark.stats["min"]
    assert counts.shape == (LAYERS, RANKS, 256)


def test_error_of_counts(benchmark, profile):
    tokens, counts = ProfileDraws(profile, router_law=plain_law(256, 8), **shape()), CountSampler(profile, **shape())
    fast = np.stack([counts.counts(sample) for sample in range(3)])
    slow = np.stack([[[np.bincount(own.ravel(), minlength=256) for own in tokens.draw(layer, sample, 0, RANKS).choices]
                      for layer in range(LAYERS)] for sample in range(3)])  # fmt: skip
    benchmark.pedantic(counts.counts, args=(0,), rounds=1)
    for what, many in (("one sequence", lambda n: n), ("64 sequences", lambda n: n.sum(axis=2))):
        busiest = [float((many(n).max(axis=-1) / many(n).mean(axis=-1)).mean()) for n in (fast, slow)]
        idle = [float((many(n) == 0).mean()) for n in (fast, slow)]
        benchmark.extra_info[f"max over mean of {what}: counts, tokens"] = busiest
        benchmark.extra_info[f"idle experts of {what}: counts, tokens"] = idle
        print(f"{what}: max over mean {busiest[0]:.3f} by counts, {busiest[1]:.3f} by tokens; idle {idle}")
        assert busiest[0] == pytest.approx(busiest[1], rel=MAX_OVER_MEAN_ERROR)
        assert idle[0] == pytest.approx(idle[1], abs=IDLE_ERROR)


def test_fit(benchmark):
    trace = made_up_trace(made_up(layers=8, experts=32, top_k=4, classes=32, sequences=64), 60)
    found = benchmark.pedantic(fit_law, args=(trace, 0, "", lambda what, share: None), rounds=1)
    benchmark.extra_info["token_layers_per_second"] = trace.tokens * trace.layers / benchmark.stats["min"]
    assert found.layers == 8
