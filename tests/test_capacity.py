"""Capacity: each library's numbers, whose copies come first, and what a device takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.routing.capacity import DIALECTS, CapacityRule, Precedence, device_limit, keep_first
from moesim.specs.routing import CapacitySpec

# factor, tokens within the scope, experts, choices -> rows, worked out by hand from the libraries' formulas
BY_HAND = [
    ("switch", 1.25, 1024, 64, 1, 20),
    ("switch", 1.0, 100, 64, 1, 4),
    ("switch", 1.0, 1056, 64, 1, 16),  # 16.5 and 17.5: halves go to the even number
    ("switch", 1.0, 1120, 64, 1, 18),
    ("gshard", 2.0, 1024, 64, 2, 32),
    ("gshard", 1.0, 50, 64, 2, 1),
    ("megatron", 1.0, 4096, 256, 8, 128),
    ("megatron", 1.1, 4096, 256, 8, 141),
    ("megatron", 1.0, 10, 64, 2, 1),
    ("deepspeed", 1.0, 1000, 64, 1, 16),
    ("deepspeed", 1.0, 1000, 64, 2, 32),
    ("deepspeed", 1.0, 64, 64, 2, 4),
    ("deepspeed", 1.25, 4096, 256, 8, 160),
    ("deepspeed", 1.1, 640, 64, 6, 66),
    ("tutel", 1.0, 1000, 64, 2, 32),
    ("tutel", 1.25, 1000, 64, 2, 40),
    ("tutel", 1.3, 1000, 64, 2, 40),  # the rounding is of one choice's 20.8
    ("megablocks", 1.0, 8 * 4096, 64, 1, 512),
    ("megablocks", 0.1, 64, 64, 2, 0),
    ("v-moe", 1.05, 1568, 32, 2, 104),
    ("mesh-tf", 1.25, 1024, 64, 2, 20),
    ("mesh-tf", 64.0, 10, 4, 2, 10),
    ("mesh-tf", 64.0, 3, 4, 2, 4),
    ("mesh-tf", 1.15, 1000, 10, 1, 115),  # 1000 * 1.15 is 1150 in a float; 100 * 1.15 is just below 115
    ("megablocks", 1.15, 1000, 10, 1, 114),
]

OVERRIDES = [
    ("megatron", 1.1, 4096, 256, 8, {"rounding": "down"}, 140),
    ("megatron", 1.1, 4096, 256, 8, {"rounding": "nearest"}, 141),
    ("megatron", 1.1, 4096, 256, 8, {"multiple": 8}, 144),
    ("megatron", 1.1, 4096, 256, 8, {"minimum": 200}, 200),
    ("megatron", 1.1, 4096, 256, 8, {"minimum": 200, "multiple": 128}, 256),
    ("switch", 1.25, 1000, 64, 1, {"rounding": "down"}, 19),
    ("switch", 1.0, 100, 64, 1, {"minimum": 1}, 2),
    ("gshard", 1.0, 100, 64, 2, {"minimum": 8}, 8),
    ("deepspeed", 1.0, 64, 64, 2, {"minimum": 8}, 8),
    ("tutel", 1.3, 1000, 64, 2, {"rounding": "up"}, 42),
    ("tutel", 1.3, 1000, 64, 2, {"multiple": 32}, 64),
    ("megablocks", 0.1, 64, 64, 2, {"minimum": 1}, 1),
    ("v-moe", 1.05, 1568, 32, 2, {"multiple": 1}, 103),
    ("v-moe", 1.05, 1568, 32, 2, {"rounding": "down", "multiple": 1}, 102),
    ("mesh-tf", 64.0, 10, 4, 2, {"minimum": 16}, 16),
]


@pytest.mark.parametrize(("dialect", "factor", "tokens", "experts", "top_k", "rows"), BY_HAND)
def test_capacity_by_hand(dialect, factor, tokens, experts, top_k, rows):
    rule = CapacityRule.of(CapacitySpec(factor=factor, dialect=dialect))
    assert rule.capacity(tokens, experts, top_k) == rows


@pytest.mark.parametrize(("dialect", "factor", "tokens", "experts", "top_k", "changes", "rows"), OVERRIDES)
def test_a_spec_replaces_the_dialects_numbers(dialect, factor, tokens, experts, top_k, changes, rows):
    rule = CapacityRule.of(CapacitySpec(factor=factor, dialect=dialect, **changes))
    assert rule.capacity(tokens, experts, top_k) == rows


# dialect, choices -> scope, priority, order, as in each library's sources where nothing is said
DEFAULTS = [
    ("switch", 1, "source-rank", "position", "choice-major"),
    ("gshard", 2, "source-rank", "position", "choice-major"),
    ("megatron", 1, "source-rank", "probability", "token-major"),
    ("megatron", 8, "source-rank", "probability", "token-major"),
    ("deepspeed", 1, "source-rank", "random", "token-major"),
    ("deepspeed", 2, "source-rank", "position", "choice-major"),
    ("deepspeed", 6, "source-rank", "probability", "token-major"),
    ("tutel", 2, "source-rank", "position", "choice-major"),
    ("megablocks", 2, "whole-group", "position", "token-major"),
    ("v-moe", 2, "source-rank", "position", "choice-major"),
    ("mesh-tf", 2, "source-rank", "position", "choice-major"),
]


@pytest.mark.parametrize(("dialect", "top_k", "scope", "priority", "order"), DEFAULTS)
def test_whose_copies_come_first(dialect, top_k, scope, priority, order):
    rule = CapacityRule.of(CapacitySpec(factor=1.0, dialect=dialect))
    assert (rule.scope, rule.precedence(top_k)) == (scope, Precedence(priority, order))
    assert rule.overflow == "drop"
    assert {name for name, *_ in DEFAULTS} == set(DIALECTS)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("top_k", [1, 2, 6])
def test_a_spec_replaces_scope_and_precedence(dialect, top_k):
    spec = CapacitySpec(factor=1.0, dialect=dialect, priority="batch-prioritized", scope="whole-group")
    rule, default = CapacityRule.of(spec), CapacityRule.of(CapacitySpec(factor=1.0, dialect=dialect))
    assert rule.scope == "whole-group"
    assert rule.priority == "batch-prioritized"
    assert rule.precedence(top_k) == Precedence("batch-prioritized", default.precedence(top_k).order)
    turned = CapacityRule.of(CapacitySpec(factor=1.0, dialect=dialect, order="choice-major", overflow="recycle"))
    assert (turned.order, turned.overflow) == ("choice-major", "reroute")
    assert turned.precedence(top_k) == Precedence(default.precedence(top_k).priority, "choice-major")
    assert hash(turned) != hash(rule)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_capacity_grows_with_factor_and_tokens(dialect):
    rows = [
        [CapacityRule.of(CapacitySpec(factor=factor, dialect=dialect)).capacity(tokens, 64, 2) for tokens in counts]
        for factor, counts in ((factor, (64, 1000, 4096)) for factor in (0.5, 1.0, 2.0))
    ]
    assert (np.diff(rows, axis=0) >= 0).all()
    assert (np.diff(rows, axis=1) >= 0).all()
    assert DIALECTS[dialect].rows(2.0, 4096, 64, 2) == rows[2][2]


@st.composite
def choices_of_tokens(draw):
    experts = draw(st.integers(1, 12))
    top_k = draw(st.integers(1, min(experts, 4)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = generator.gumbel(size=(draw(st.integers(0, 60)), experts))
    scores -= draw(st.floats(0.0, 4.0)) * np.log(np.arange(experts) + 1.0)
    chosen = np.argsort(-scores, axis=1)[:, :top_k]
    chosen[generator.random(len(chosen)) < draw(st.sampled_from([0.0, 0.3])), 1:] = -1
    return chosen, generator.random(chosen.shape, np.float32), experts


@settings(max_examples=100, deadline=None)
@given(drawn=choices_of_tokens(), rows=st.integers(0, 30), choice_major=st.booleans())
def test_the_first_in_order_are_kept(drawn, rows, choice_major):
    """Copy by copy in the order, an expert takes what comes until it is full; no choice takes no room."""
    choices, _, experts = drawn
    room = [rows] * experts
    kept = np.zeros(choices.shape, bool)
    tokens, top_k = choices.shape
    by_choice = [(t, k) for k in range(top_k) for t in range(tokens)]
    for t, k in by_choice if choice_major else sorted(by_choice):
        expert = choices[t, k]
        if expert >= 0:
            kept[t, k] = room[expert] > 0
            room[expert] -= 1
    order = "choice-major" if choice_major else "token-major"
    np.testing.assert_array_equal(keep_first(choices, rows, order), kept)
    if (choices >= 0).all():
        np.testing.assert_array_equal(keep_first(choices.astype(np.uint16), rows, order), kept)


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


class TestDeviceLimit:
    def test_by_hand(self):
        """Two devices of two experts, 4 tokens of 2 choices: each takes 4 of 8 copies."""
        choices = np.array([[0, 1], [1, 2], [0, 3], [1, 0]])
        gates = np.array([[0.5, 0.1], [0.4, 0.2], [0.3, 0.3], [0.2, 0.6]])
        place = np.array([0, 0, 1, 1])
        kept = device_limit(choices, gates, place, 4)
        np.testing.assert_array_equal(kept, [[True, False], [True, True], [True, True], [False, True]])
        assert device_limit(choices, gates, place, 6).all()

    @settings(max_examples=100, deadline=None)
    @given(drawn=choices_of_tokens(), devices=st.integers(1, 5), factor=st.floats(0.05, 3.0))
    def test_each_device_keeps_its_highest_gates(self, drawn, devices, factor):
        choices, gates, experts = drawn
        place = np.arange(experts) % devices
        rows = math.floor(factor * choices.size / devices)
        kept = device_limit(choices, gates, place, rows)
        for device in range(devices):
            here = (choices >= 0) & (place[choices] == device)
            assert (kept & here).sum() == min(rows, here.sum())
            assert gates[kept & here].min(initial=1.0) >= gates[~kept & here].max(initial=0.0)
        assert not kept[choices < 0].any()
        named = np.where(choices < 0, experts, choices).astype(np.uint16)
        np.testing.assert_array_equal(device_limit(named, gates, place, rows), kept)
