"""A simple law from counts: what went in comes out, counting noise taken off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moesim import catalog
from moesim.errors import UserError
from moesim.randomness import Streams
from moesim.routing.inclusion import inclusion
from moesim.routing.loads import layer_weights
from moesim.specs.routing import LoadProfile
from moesim.traces import importers
from moesim.traces.counts import RouterCounts
from moesim.traces.counts_fit import fit_counts, spread_of
from moesim.traces.trace import TraceMeta

SHARED = Path(__file__).parents[1].parent / "shared"


def drawn(profile: LoadProfile, tokens: int, experts: int = 128, layers: int = 12, domains: int = 1) -> RouterCounts:
    generator = np.random.default_rng(5)
    weights = layer_weights(profile, experts, layers, 8, Streams(3))
    rows = []
    for _ in range(domains):
        tilted = weights * np.exp(0.6 * generator.standard_normal(weights.shape)) if domains > 1 else weights
        rows.append(generator.poisson(tokens * inclusion(tilted, 8)))
    names = tuple(f"domain{d}" for d in range(domains))
    meta = TraceMeta(experts=experts, top_k=8, model_layers=tuple(range(layers)), domains=names)
    return RouterCounts(np.array(rows), np.arange(domains, dtype=np.int32), np.full(domains, -1, np.int32), meta)


@pytest.mark.parametrize("sigma", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("tokens", [400, 40_000])
def test_the_spread_comes_back(sigma, tokens):
    low, high = fit_counts(drawn(LoadProfile(log_normal=sigma), tokens))["log_normal"]
    assert (low + high) / 2 == pytest.approx(sigma, rel=0.12)


def test_a_range_over_layers_comes_back():
    low, high = fit_counts(drawn(LoadProfile(log_normal=(0.3, 0.9)), 20_000))["log_normal"]
    assert low == pytest.approx(0.3, abs=0.1)
    assert high == pytest.approx(0.9, abs=0.1)


def test_even_counts_have_no_spread():
    assert spread_of(np.random.default_rng(0).poisson(500, (20, 64)).astype(float), 2).mean() < 0.02


def test_domains_give_a_tilt():
    entry = fit_counts(drawn(LoadProfile(log_normal=0.4), 20_000, domains=6))
    assert entry["sequence_tilt"] == pytest.approx(0.6, rel=0.1)
    assert entry["sources"]["sequence_tilt"]["basis"] == "assumed"
    assert LoadProfile(name="x", **entry).domains == tuple(f"domain{d}" for d in range(6))


def test_too_few_counts_are_refused():
    with pytest.raises(UserError, match="too few counts"):
        fit_counts(drawn(LoadProfile(), 10))


def test_published_counts():
    """OLMoE's and Mixtral's counts give the spreads that the catalog states for them."""
    path = SHARED / "traces" / "olmoe-mixtral-counts.json"
    if not path.exists():
        pytest.skip("the published counts are not at hand")
    for part, top_k, profile in (("mistral", 2, "mixtral-like"), ("olmoe", 8, "olmoe-like")):
        counts = importers.read(path, part=part, top_k=top_k)
        on_c4 = counts.counts[counts.domain == counts.meta.domains.index("c4")].sum(axis=0).astype(float)
        low, high = catalog.load("profiles", profile).log_normal
        assert low - 0.05 < np.median(spread_of(on_c4, top_k)) < high + 0.05
    assert fit_counts(counts)["sequence_tilt"] == pytest.approx(0.9, abs=0.1)
