"""Demand: distinct places in closed form against counting, payloads against the layout, the way back."""

from __future__ import annotations

import numpy as np
import pytest
from test_network_topology import GROUPS, routed

from moesim.errors import InternalError, UnknownNameError
from moesim.network.demand import Choices, Demand, balanced_demand, nearest_format, payload_bytes, reverse


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
        ("int8", "dispatch", 7168 + 4),
        ("nvfp4", "combine", 7168 * (1 / 2 + 1 / 16) + 4 * 8),
    ],
)
def test_bytes_of_a_copy(wire_format: str, direction: str, expected: float) -> None:
    assert payload_bytes(wire_format, 7168, 8, direction) == pytest.approx(expected)  # type: ignore[arg-type]


def test_an_unknown_format_is_the_users_mistake() -> None:
    with pytest.raises(UnknownNameError, match="bf16"):
        payload_bytes("bf17", 7168, 8, "dispatch")


@pytest.mark.parametrize(
    ("name", "expected", "noted"),
    [
        ("bf16", "bf16", False),
        ("bfloat16", "bf16", False),
        ("torch.bfloat16", "bf16", False),
        ("half", "bf16", False),
        ("FP8_block", "fp8-block", False),
        ("float8_e4m3fn", "fp8", False),
        ("NVFP4", "nvfp4", False),
        ("mxfp4", "nvfp4", True),
        ("int4", "nvfp4", True),
        ("posit7", "bf16", True),
    ],
)
def test_formats_in_other_words(name: str, expected: str, noted: bool) -> None:
    found, note = nearest_format(name)
    assert found == expected
    assert bool(note) == noted
    assert payload_bytes(found, 1024, 2, "dispatch") > 0


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
