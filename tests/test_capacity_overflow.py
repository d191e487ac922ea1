"""Settling: who stays with a full expert and where the others go, against a plain twin; gates against Gumbel logits."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import exp1
from scipy.stats import ks_2samp

from moesim.errors import InternalError
from moesim.routing import _capacity_kernels as kernels
from moesim.routing.capacity import DIALECTS, CapacityRule, keep_first
from moesim.routing.overflow import Scores, gates_of, settle
from moesim.specs.routing import CapacitySpec

PRIORITIES = ["position", "probability", "batch-prioritized", "random"]
OVERFLOWS = ["drop", "next-best", "reroute"]
WORD = 2**64 - 1


class Drawn(NamedTuple):
    """Tokens that raced by their own row of weights, and what a rule does to them."""

    choices: np.ndarray
    gates: np.ndarray
    weights: np.ndarray
    row: np.ndarray
    seed: int

    @property
    def experts(self):
        return self.weights.shape[1]

    def rows(self, rule):
        return np.full(self.experts, rule.capacity(len(self.choices), self.experts, self.choices.shape[1]))

    def settle(self, rule, rows=None, realised=None):
        rows = self.rows(rule) if rows is None else rows
        own = Scores(self.weights, self.row) if realised is None else realised
        return settle(rule, self.choices, rows, gates=self.gates, scores=own, seed=self.seed)


@st.composite
def tokens(draw):
    """Choices best first, some tokens with fewer; the gates have ties."""
    experts = draw(st.integers(1, 12))
    top_k = draw(st.integers(1, min(experts, 4)))
    count = draw(st.integers(0, 50))
    seed = draw(st.integers(0, WORD))
    generator = np.random.default_rng(seed)
    weights = np.exp(draw(st.floats(0.0, 3.0)) * generator.standard_normal((3, experts)))
    row = generator.integers(0, 3, count)
    logits = np.log(weights[row]) + generator.gumbel(size=(count, experts))
    choices = np.argsort(-logits, axis=1)[:, :top_k].astype(np.uint16)
    choices[generator.random(count) < draw(st.sampled_from([0.0, 0.2])), 1:] = experts
    scores = np.round(1 / (1 + np.exp(-logits)), draw(st.sampled_from([1, 6])))
    gates = np.take_along_axis(np.append(scores, np.zeros((count, 1)), axis=1), choices.astype(int), axis=1)
    return Drawn(choices, gates.astype(np.float32), weights, row, seed)


def rule_of(factor=1.0, **changes):
    return CapacityRule.of(CapacitySpec(factor=factor, **changes))


def load(choices, experts):
    return np.bincount(choices.ravel(), minlength=experts + 1)[:experts]


def mix(word):
    """splitmix64's output function, written as in the paper."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def word_of(seed, salt, index):
    return mix((mix(seed ^ int(salt)) + (index + 1) * 0x9E3779B97F4A7C15) & WORD)


def plain_queue(rule, drawn):
    """All copies (token, choice), those that stay first."""
    count, top_k = drawn.choices.shape
    priority, order = rule.precedence(top_k).priority, rule.precedence(top_k).order
    line = list(range(count))
    if priority == "batch-prioritized":
        line.sort(key=lambda t: -drawn.gates[t].max())
    queue = [(t, k) for t in line for k in range(top_k)]
    if order == "choice-major":
        queue.sort(key=lambda copy: copy[1])
    if priority == "probability":
        queue.sort(key=lambda copy: -drawn.gates[copy])
    if priority == "random":
        queue.sort(key=lambda copy: word_of(drawn.seed, kernels.ORDER_SALT, copy[0] * top_k + copy[1]) >> 32)
    return [copy for copy in queue if drawn.choices[copy] < drawn.experts]


def plain_home(free, weight, realised, word):
    if not free:
        return None
    if realised:
        return max(free, key=lambda e: weight[e])
    total = 0.0
    for e in free:
        total += weight[e]
    target = (word >> 11) * 2.0**-53 * total
    for e in free:
        target -= weight[e]
        if target < 0.0:
            return e
    return free[-1]


def plain_settle(rule, drawn, rows, realised=None):
    """Copy by copy; the definition of `settle`."""
    choices, top_k = drawn.choices.astype(int), drawn.choices.shape[1]
    room, late = list(rows), []
    for copy in plain_queue(rule, drawn):
        expert = choices[copy]
        if room[expert] > 0:
            room[expert] -= 1
        else:
            late.append(copy)
            choices[copy] = drawn.experts
    for t, k in late if rule.overflow != "drop" else []:
        free = [e for e in range(drawn.experts) if room[e] > 0 and e not in choices[t]]
        weight = drawn.weights[drawn.row[t]] if realised is None else realised[t]
        weight = np.ones(drawn.experts) if rule.overflow == "reroute" else weight
        word = word_of(drawn.seed, kernels.OVERFLOW_SALT, t * top_k + k)
        home = plain_home(free, weight, realised is not None and rule.overflow == "next-best", word)
        if home is not None:
            choices[t, k] = home
            room[home] -= 1
    return choices


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("priority", [None, *PRIORITIES])
@pytest.mark.parametrize("dialect", DIALECTS)
class TestEveryRule:
    @settings(max_examples=12, deadline=None)
    @given(drawn=tokens(), factor=st.floats(0.05, 2.0))
    def test_conservation(self, dialect, priority, overflow, drawn, factor):
        rule = rule_of(factor, dialect=dialect, priority=priority, overflow=overflow, minimum=1)
        rows, settled = drawn.rows(rule), drawn.settle(rule)
        E = drawn.experts
        np.testing.assert_array_equal(settled.routed, load(drawn.choices, E))
        np.testing.assert_array_equal(settled.kept, load(settled.choices, E))
        assert (settled.kept <= rows).all()
        lost = (settled.choices == E) & (drawn.choices < E)
        assert settled.kept.sum() + lost.sum() == settled.routed.sum()
        assert (settled.choices[drawn.choices == E] == E).all()
        stayed = settled.choices == drawn.choices
        np.testing.assert_array_equal(load(drawn.choices[stayed], E), np.minimum(settled.routed, rows))
        if overflow == "drop":
            np.testing.assert_array_equal(settled.routed - settled.kept, np.maximum(0, settled.routed - rows))
        for held in settled.choices:
            assert len(set(held[held < E])) == (held < E).sum()
        if overflow != "drop":
            free = set(np.flatnonzero(settled.kept < rows))
            assert all(free <= set(settled.choices[t]) for t in np.flatnonzero(lost.any(axis=1)))

    @settings(max_examples=12, deadline=None)
    @given(drawn=tokens(), factor=st.floats(0.05, 2.0))
    def test_the_plain_twin(self, dialect, priority, overflow, drawn, factor):
        rule = rule_of(factor, dialect=dialect, priority=priority, overflow=overflow, minimum=1)
        np.testing.assert_array_equal(drawn.settle(rule).choices, plain_settle(rule, drawn, drawn.rows(rule)))

    @settings(max_examples=4, deadline=None)
    @given(drawn=tokens())
    def test_a_large_factor_keeps_all(self, dialect, priority, overflow, drawn):
        settled = drawn.settle(rule_of(1000.0, dialect=dialect, priority=priority, overflow=overflow))
        np.testing.assert_array_equal(settled.choices, drawn.choices)
        np.testing.assert_array_equal(settled.kept, settled.routed)


@settings(max_examples=60, deadline=None)
@given(drawn=tokens(), data=st.data())
def test_each_expert_may_have_room_of_its_own(drawn, data):
    """What is left of the whole group's room, source by source: the same as all sources at once."""
    rows = np.array(data.draw(st.lists(st.integers(0, 9), min_size=drawn.experts, max_size=drawn.experts)))
    rule = rule_of(priority="position", order="token-major")
    whole, left, parts = drawn.settle(rule, rows), rows, []
    for part in np.array_split(drawn.choices, 3):
        settled = settle(rule, part, left)
        left = left - settled.kept
        parts.append(settled.choices)
    np.testing.assert_array_equal(np.concatenate(parts), whole.choices)
    np.testing.assert_array_equal(whole.choices, plain_settle(rule, drawn, rows))


@settings(max_examples=60, deadline=None)
@given(drawn=tokens(), rows=st.integers(0, 12), order=st.sampled_from(["choice-major", "token-major"]))
def test_position_keeps_the_first(drawn, rows, order):
    named = np.where(drawn.choices == drawn.experts, -1, drawn.choices.astype(int))
    settled = settle(rule_of(priority="position", order=order), named, np.full(drawn.experts, rows))
    np.testing.assert_array_equal(settled.choices < drawn.experts, keep_first(named, rows, order))


@settings(max_examples=60, deadline=None)
@given(drawn=tokens(), rows=st.integers(0, 12))
def test_probability_keeps_the_highest_gates(drawn, rows):
    settled = drawn.settle(rule_of(priority="probability"), np.full(drawn.experts, rows))
    for e in range(drawn.experts):
        chosen, kept = drawn.choices == e, settled.choices == e
        assert drawn.gates[kept].min(initial=1.0) >= drawn.gates[chosen & ~kept].max(initial=0.0)


@settings(max_examples=60, deadline=None)
@given(drawn=tokens(), rows=st.integers(0, 12))
def test_batch_priority_keeps_high_tokens_whole(drawn, rows):
    """Token by token, a copy is lost only to copies of tokens whose highest gate is no lower."""
    rule = rule_of(priority="batch-prioritized", order="token-major")
    settled = drawn.settle(rule, np.full(drawn.experts, rows))
    highest = drawn.gates.max(axis=1)
    for t, k in np.argwhere(settled.choices != drawn.choices):
        e = drawn.choices[t, k]
        assert highest[(settled.choices == e).any(axis=1)].min(initial=1.0) >= highest[t]
    best = np.argsort(-highest, kind="stable")[:rows]
    np.testing.assert_array_equal(settled.choices[best], drawn.choices[best])


def test_random_priority_is_blind():
    """Dropped copies lie anywhere in the sequence; each of one expert's copies is dropped as often as the next."""
    choices, rule = np.zeros((40, 1), np.uint16), rule_of(dialect="deepspeed")
    dropped = np.array([settle(rule, choices, np.array([30]), seed=seed).choices[:, 0] for seed in range(4000)])
    expected, spread = 4000 * 10 / 40, math.sqrt(4000 * 0.25 * 0.75)
    assert (np.abs(dropped.sum(axis=0) - expected) < 4.5 * spread).all()
    together = ((dropped[:, 0] == 1) & (dropped[:, 1] == 1)).sum() / 4000
    assert abs(together - (10 / 40) * (9 / 39)) < 4.5 * math.sqrt(0.058 * 0.942 / 4000)


@settings(max_examples=60, deadline=None)
@given(drawn=tokens(), factor=st.floats(0.05, 1.2), priority=st.sampled_from(PRIORITIES))
def test_next_best_by_realised_scores(drawn, factor, priority):
    scores = np.random.default_rng(drawn.seed).standard_normal((len(drawn.choices), drawn.experts))
    rule = rule_of(factor, priority=priority, overflow="next-best")
    settled = drawn.settle(rule, realised=Scores(scores, np.arange(len(scores)), realised=True))
    np.testing.assert_array_equal(settled.choices, plain_settle(rule, drawn, drawn.rows(rule), scores))


def test_next_best_goes_on_with_the_race():
    """Late copies by the weights alone, against the realised logits of the same tokens: on average the same."""
    generator = np.random.default_rng(3)
    count, experts, top_k, repeats = 200, 6, 2, 2000
    weights = np.array([[6.0, 4.0, 1.0, 0.5, 2.0, 1.0]])
    rule, row = rule_of(priority="position", overflow="next-best"), np.zeros(count, int)
    rows = np.array([50, 60, 200, 200, 60, 60])
    kept = np.zeros((2, repeats, experts))
    for n in range(repeats):
        logits = np.log(weights) + generator.gumbel(size=(count, experts))
        choices = np.argsort(-logits, axis=1)[:, :top_k]
        kept[0, n] = settle(rule, choices, rows, scores=Scores(weights, row), seed=n).kept
        kept[1, n] = settle(rule, choices, rows, scores=Scores(logits, np.arange(count), realised=True)).kept
    apart = (kept[0] - kept[1]).mean(axis=0)
    errors = (kept[0] - kept[1]).std(axis=0) / math.sqrt(repeats)
    assert (np.abs(apart) <= 4 * errors).all()
    assert errors.max() > 0.0
    assert kept[0].mean(axis=0)[2] > kept[0].mean(axis=0)[3] + 10


def test_reroute_goes_anywhere():
    """Late copies of expert 0 spread evenly over the others, however little the token thinks of them."""
    choices = np.zeros((3000, 1), np.uint16)
    rows = np.array([0, 3000, 3000, 3000, 3000])
    kept = settle(rule_of(overflow="reroute", priority="position"), choices, rows, seed=5).kept
    assert kept[0] == 0
    assert (np.abs(kept[1:] - 750) < 4.5 * math.sqrt(3000 * 0.25 * 0.75)).all()


def test_an_expert_that_cannot_be_chosen_stays_empty():
    choices = np.zeros((50, 1), np.uint16)
    scores = Scores(np.array([[1.0, 0.0, 1e-9]]), np.zeros(50, int))
    rule = rule_of(overflow="next-best", priority="position")
    settled = settle(rule, choices, np.array([10, 50, 20]), scores=scores)
    np.testing.assert_array_equal(settled.kept, [10, 0, 20])
    barred = Scores(np.full((50, 3), -math.inf), np.arange(50), realised=True)
    np.testing.assert_array_equal(settle(rule, choices, np.array([10, 50, 20]), scores=barred).kept, [10, 0, 0])


def test_threads_change_nothing():
    generator = np.random.default_rng(1)
    weights = np.exp(generator.standard_normal((2, 32)))
    row = np.arange(600) // 300
    choices = np.argsort(-np.log(weights[row]) - generator.gumbel(size=(600, 32)), axis=1)[:, :4]

    def one(seed):
        gates = gates_of(choices, weights, row, seed)
        rule = rule_of(priority=PRIORITIES[seed % 4], overflow="next-best")
        settled = settle(rule, choices, np.full(32, 60), gates=gates, scores=Scores(weights, row), seed=seed)
        return np.append(settled.choices, gates)

    alone = [one(seed) for seed in range(16)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(one, reversed(range(16))))
    for mine, theirs in zip(alone, reversed(together), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(alone[3], alone[7])


def test_what_is_missing_is_said():
    full = np.zeros((4, 1), np.uint16), np.array([1, 4])
    with pytest.raises(InternalError, match="gates"):
        settle(rule_of(priority="probability"), *full)
    with pytest.raises(InternalError, match="scores"):
        settle(rule_of(priority="position", overflow="next-best"), *full)


class TestGates:
    @pytest.mark.parametrize("gating", ["softmax", "renormalized", "sigmoid"])
    @pytest.mark.parametrize(
        ("experts", "top_k", "skew"), [(8, 1, 0.0), (8, 2, 0.5), (64, 1, 0.7), (64, 8, 0.5), (32, 4, 1.5), (6, 6, 1.0)]
    )
    def test_against_gumbel_logits(self, gating, experts, top_k, skew):
        """The first gate, the last, and those within a popular, a middling and an unpopular expert."""
        count, generator = 60_000, np.random.default_rng(experts * top_k)
        weights = np.exp(skew * generator.standard_normal((1, experts)))
        logits = np.log(weights) + generator.gumbel(size=(count, experts))
        choices = np.argsort(-logits, axis=1)[:, :top_k]
        powers = np.take_along_axis(np.exp(logits), choices, axis=1)
        sums = {"softmax": np.exp(logits), "renormalized": powers}.get(gating, powers).sum(axis=1, keepdims=True)
        truth = powers / (1 + powers) if gating == "sigmoid" else powers / sums
        gates = gates_of(choices, weights, np.zeros(count, int), 11, gating)
        for where in self.places(choices, weights):
            # Two samples of one law exceed 2.47 sqrt(2/n) once in 100,000 (Kolmogorov); 0.01 for the log-normal sum.
            allowed = 2.47 * math.sqrt(2 / where.sum()) + (0.01 if gating == "softmax" else 0.0)
            assert ks_2samp(truth[where], gates[where]).statistic < allowed

    @staticmethod
    def places(choices, weights):
        """The first choices, the last, and those of three experts where enough chose them."""
        column = np.broadcast_to(np.arange(choices.shape[1]), choices.shape)
        ranked = np.argsort(weights[0])
        experts = [choices == e for e in (ranked[-1], ranked[len(ranked) // 2], ranked[0])]
        return [column == 0, column == choices.shape[1] - 1, *(own for own in experts if own.sum() > 300)]

    @settings(max_examples=60, deadline=None)
    @given(drawn=tokens(), gating=st.sampled_from(["softmax", "renormalized", "sigmoid"]))
    def test_gates_fall_and_share_one(self, drawn, gating):
        gates = gates_of(drawn.choices, drawn.weights, drawn.row, drawn.seed, gating)
        there = drawn.choices < drawn.experts
        assert (gates[there] > 0.0).all()
        assert (gates[~there] == 0.0).all()
        assert (np.diff(gates, axis=1) <= 0.0).all()
        if gating != "sigmoid":
            assert (gates.sum(axis=1) <= 1.0 + 1e-5).all()
        if gating == "renormalized":
            np.testing.assert_allclose(gates.sum(axis=1), 1.0, rtol=1e-5)

    def test_each_row_has_its_own_race(self):
        """Rows in any order give what each gives alone, and a token's numbers are its own."""
        generator = np.random.default_rng(0)
        weights = np.exp(generator.standard_normal((3, 16)))
        row = generator.integers(0, 3, 500)
        choices = np.argsort(-np.log(weights[row]) - generator.gumbel(size=(500, 16)), axis=1)[:, :4]
        together = gates_of(choices, weights, row, 9)
        same = gates_of(choices, weights[[2, 0, 1]], (row + 1) % 3, 9)
        np.testing.assert_array_equal(together, same)
        first = gates_of(choices[:100], weights, row[:100], 9, "sigmoid")
        np.testing.assert_array_equal(gates_of(choices, weights, row, 9, "sigmoid")[:100], first)

    def test_the_sum_of_those_not_chosen(self):
        """Mean and variance of 1 / (t + X / w) by the exponential integral, against numbers drawn."""
        u = np.logspace(-9, 2, 300)
        mine = [kernels.scaled_exponential_integral(x) for x in u]
        np.testing.assert_allclose(mine, np.exp(u) * exp1(u), rtol=1e-9)
        weight, draws = np.array([0.2, 1.0, 0.0, 5.0]), np.random.default_rng(2).exponential(size=(400_000, 1))
        mean, variance = np.empty((2, 5)), np.empty((2, 5))
        kernels.tabulate(weight, math.log(0.3), mean, variance)
        terms = 1.0 / (0.3 + draws / np.array([0.2, 1.0, math.nan, 5.0]))
        there = [0, 1, 3]
        np.testing.assert_allclose(mean[0, there], terms.mean(axis=0)[there], rtol=0.01)
        np.testing.assert_allclose(variance[0, there], terms.var(axis=0)[there], rtol=0.01)
        assert mean[0, 2] == variance[0, 2] == 0.0
        assert mean[0, 4] == pytest.approx(mean[0, :4].sum())
        between, own = 0.3 * math.exp(kernels.STRIDE / 2), np.array([0.2, 5.0])
        exact = (own * np.exp(own * between) * exp1(own * between)).sum()
        assert kernels.unchosen(0.5, np.array([1, 4], np.uint16), mean) == pytest.approx(exact, rel=0.003)
