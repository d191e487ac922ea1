"""Capacity: each library's numbers, and what must hold for all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.routing.assignment import Assignment
from moesim.routing.capacity import DIALECTS, CapacityRule, keep_first
from moesim.specs.routing import CapacitySpec

# factor, tokens within the scope, experts, choices -> rows, worked out by hand from the libraries' formulas
BY_HAND = [
    ("switch", 1.25, 1024, 64, 1, 20),
    ("switch", 1.0, 100, 64, 1, 4),
    ("gshard", 2.0, 1024, 64, 2, 32),
    ("megatron", 1.0, 4096, 256, 8, 128),
    ("megatron", 1.1, 4096, 256, 8, 141),
    ("deepspeed", 1.0, 1000, 64, 2, 32),
    ("deepspeed", 1.0, 64, 64, 2, 4),
    ("tutel", 1.0, 1000, 64, 2, 32),
    ("tutel", 1.25, 1000, 64, 2, 40),
    ("megablocks", 1.0, 8 * 4096, 64, 1, 512),
    ("v-moe", 1.05, 1568, 32, 2, 104),
    ("mesh-tf", 1.25, 1024, 64, 2, 20),
    ("mesh-tf", 64.0, 10, 4, 2, 10),
]


@pytest.mark.parametrize(("dialect", "factor", "tokens", "experts", "top_k", "rows"), BY_HAND)
def test_capacity_by_hand(dialect, factor, tokens, experts, top_k, rows):
    rule = CapacityRule.of(CapacitySpec(factor=factor, dialect=dialect))
    assert rule.capacity(tokens, experts, top_k) == rows


@st.composite
def assignments(draw):
    experts = draw(st.integers(1, 12))
    top_k = draw(st.integers(1, min(experts, 4)))
    tokens = draw(st.integers(0, 60))
    skew = draw(st.floats(0.0, 4.0))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = generator.gumbel(size=(tokens, experts)) - skew * np.log(np.arange(experts) + 1.0)
    chosen = np.argsort(-scores, axis=1)[:, :top_k]
    return Assignment(chosen, np.full(chosen.shape, 1 / top_k, np.float32)), experts


@pytest.mark.parametrize("dialect", DIALECTS)
class TestEveryDialect:
    @settings(max_examples=60, deadline=None)
    @given(drawn=assignments(), factor=st.floats(0.1, 4.0))
    def test_drops(self, dialect, drawn, factor):
        assignment, experts = drawn
        rule = CapacityRule.of(CapacitySpec(factor=factor, dialect=dialect))
        tokens, top_k = assignment.experts.shape
        rows = rule.capacity(tokens, experts, top_k)
        kept = rule.apply(assignment, experts)
        load = np.bincount(assignment.experts.ravel(), minlength=experts)
        kept_load = np.bincount(assignment.experts[kept], minlength=experts)
        assert (kept_load <= rows).all()
        np.testing.assert_array_equal(load - kept_load, np.maximum(0, load - rows))

    @settings(max_examples=30, deadline=None)
    @given(drawn=assignments())
    def test_a_large_factor_drops_nothing(self, dialect, drawn):
        assignment, experts = drawn
        assert CapacityRule.of(CapacitySpec(factor=1000.0, dialect=dialect)).apply(assignment, experts).all()

    @settings(max_examples=60, deadline=None)
    @given(drawn=assignments(), factor=st.floats(0.1, 2.0))
    def test_the_first_in_order_are_kept(self, dialect, drawn, factor):
        """Copy by copy in the dialect's order, an expert takes what comes until it is full."""
        assignment, experts = drawn
        rule = CapacityRule.of(CapacitySpec(factor=factor, dialect=dialect))
        tokens, top_k = assignment.experts.shape
        room = [rule.capacity(tokens, experts, top_k)] * experts
        kept = np.zeros((tokens, top_k), bool)
        by_choice = [(t, k) for k in range(top_k) for t in range(tokens)]
        for t, k in by_choice if rule.order == "choice-major" else sorted(by_choice):
            expert = assignment.experts[t, k]
            kept[t, k] = room[expert] > 0
            room[expert] -= 1
        np.testing.assert_array_equal(rule.apply(assignment, experts), kept)

    def test_capacity_grows_with_factor_and_tokens(self, dialect):
        rows = [
            [DIALECTS[dialect].formula(factor, tokens, 64, 2) for tokens in (64, 1000, 4096)]
            for factor in (0.5, 1.0, 2.0)
        ]
        assert (np.diff(rows, axis=0) >= 0).all()
        assert (np.diff(rows, axis=1) >= 0).all()


def test_megatron_never_drops_where_capacity_exceeds_tokens():
    everyone_to_expert_0 = np.stack([np.zeros(50, int), 1 + np.arange(50) % 7], axis=1)
    rule = CapacityRule.of(CapacitySpec(factor=8.0, dialect="megatron"))
    assert rule.capacity(50, 8, 2) >= 50
    assert rule.apply(Assignment(everyone_to_expert_0, np.ones((50, 2), np.float32)), 8).all()


def test_dropped_share_against_theory():
    """Loads of uniform top-1 routing are binomial: the mean of max(0, load - C) is known."""
    tokens, experts, rows = 512, 16, 32
    generator = np.random.default_rng(5)
    dropped = np.array(
        [(~keep_first(generator.integers(0, experts, (tokens, 1)), rows, "token-major")).sum() for _ in range(2000)]
    )
    p = 1 / experts
    binomial = [math.comb(tokens, n) * p**n * (1 - p) ** (tokens - n) for n in range(rows + 1, tokens + 1)]
    theory = experts * sum(excess * odds for excess, odds in enumerate(binomial, start=1))
    assert abs(dropped.mean() - theory) < 4 * dropped.std() / math.sqrt(len(dropped))
