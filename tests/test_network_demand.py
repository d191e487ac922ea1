"""Demand: distinct places in closed form against counting, payloads against the layout, the way back."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from test_network_topology import GROUPS, routed

from moesim.errors import InternalError
from moesim.network.demand import Choices, Demand, balanced_demand, distinct_places, payload_bytes, reverse


@pytest.mark.parametrize(("experts", "top_k", "places"), [(8, 2, 4), (12, 3, 4), (6, 4, 3), (8, 8, 8), (8, 1, 2)])
def test_distinct_places_equal_the_count_over_all_subsets(experts: int, top_k: int, places: int) -> None:
    subsets = list(combinations(range(experts), top_k))
    mean = np.mean([len({expert * places // experts for expert in subset}) for subset in subsets])
    assert distinct_places(Choices(experts, top_k), places) == pytest.approx(mean)


def test_group_limited_routing_reaches_fewer_nodes() -> None:
    limited = Choices(256, 8, groups=8, top_groups=4)
    assert distinct_places(limited, 4) == pytest.approx(4 * (1 - 15 / 70))
    assert distinct_places(limited, 8) == pytest.approx(4.0)
    assert distinct_places(limited, 64) == pytest.approx(4 * 8 * (1 - (28 * 27) / (32 * 31)))
    for places in (2, 4, 8, 64):
        assert distinct_places(limited, places) <= distinct_places(Choices(256, 8), places) * 1.001


def test_places_are_at_most_choices_and_at_most_places() -> None:
    for places in (1, 2, 7, 64, 256):
        found = distinct_places(Choices(256, 8), places)
        assert found <= min(places, 8) + 1e-9
    assert distinct_places(Choices(256, 8), 1) == 1.0


@pytest.mark.parametrize(
    ("wire_format", "direction", "expected"),
    [
        ("fp8-block", "dispatch", 7168 * (1 + 4 / 128) + 8 * 8 + 8),
        ("bf16", "dispatch", 2 * 7168),
        ("nvfp4", "dispatch", 7168 * (1 / 2 + 1 / 16)),
        ("mxfp8", "dispatch", 7168 * (1 + 1 / 32)),
        ("fp8", "dispatch", 7168),
        ("bf16", "combine", 2 * 7168 + 4 * 8),
        ("fp32", "combine", 4 * 7168),
    ],
)
def test_bytes_of_a_copy(wire_format: str, direction: str, expected: float) -> None:
    assert payload_bytes(wire_format, 7168, 8, direction) == pytest.approx(expected)  # type: ignore[arg-type]


def test_the_expected_demand_is_the_mean_of_drawn_ones() -> None:
    random, experts, ranks, tokens = np.random.default_rng(3), 24, 12, 4000
    expected = balanced_demand(Choices(experts, 4), ranks, 8, tokens)
    chosen = np.argsort(random.random((tokens, experts)), axis=1)[:, :4] // 2
    hit = (chosen[:, :, None] == np.arange(ranks)).any(axis=1)
    domains = np.stack([hit[:, :8].any(axis=1), hit[:, 8:].any(axis=1)], axis=1)
    # Binomial counts: five standard errors of 4000 draws are at most 158.
    assert expected.rank_tokens[0] == pytest.approx(hit.sum(axis=0), abs=158)
    assert expected.domain_tokens[0] == pytest.approx(domains.sum(axis=0), abs=158)
    assert expected.copies.sum() == pytest.approx(ranks * tokens * 4)


def test_the_way_back_swaps_senders_and_receivers() -> None:
    demand = routed(GROUPS["last-node-partial"], seed=1)
    back = reverse(demand)
    assert np.array_equal(back.copies.sum(axis=-1), demand.copies.sum(axis=-2))
    assert back.domain_tokens.sum() == demand.rank_tokens.sum()
    assert np.array_equal(reverse(back).rank_tokens, demand.rank_tokens)


def test_mismatched_matrices_are_our_bug() -> None:
    square = np.zeros((4, 4))
    with pytest.raises(InternalError, match="domain tokens"):
        Demand(square, square, np.zeros((4, 3)), np.zeros(4), ranks_per_domain=2)
    with pytest.raises(InternalError, match="rank tokens"):
        Demand(square, np.zeros((2, 4)), np.zeros((4, 2)), np.zeros(4), ranks_per_domain=2)
