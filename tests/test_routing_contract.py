"""The contract of every router: the same checks for each rule and each named entry of the catalog.

A rule registered under a new name is tested by its catalog entry of that name without a line here.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from moesim import catalog
from moesim.errors import UnknownNameError, UserError
from moesim.routing.assignment import NO_EXPERT
from moesim.routing.routers import ROUTERS, describe, router
from moesim.routing.routers.base import Batch, Router
from moesim.routing.routers.top_k import TopKRouter
from moesim.specs.model import RouterSpec

E, K, T, SEQUENCES = 32, 4, 200, 5
GROUPS = {
    "max": {"groups": 8, "top_groups": 3, "group_score": "max"},
    "top2-sum": {"groups": 8, "top_groups": 3, "group_score": "top2-sum"},
    "one-expert-groups": {"groups": 32, "top_groups": 6, "group_score": "top2-sum"},
}


def entry(name: str, **changes) -> RouterSpec:
    fields = {key: value for key, value in catalog.raw("routers", name).items() if key != "sources"}
    return RouterSpec(**fields | changes)


TOP_K = [rule for rule, kind in ROUTERS.items() if issubclass(kind, TopKRouter)]
NAMED = [pytest.param(entry(name), id=name) for name in sorted({*catalog.names("routers"), *ROUTERS})]
LIMITED = [pytest.param(entry(rule, **limit), id=f"{rule}/{name}") for rule in TOP_K for name, limit in GROUPS.items()]
BALANCING = ("base", "sinkhorn", "quantile-balanced")
GREEDY = [pytest.param(entry(rule, balancing=False), id=f"{rule}/greedy") for rule in BALANCING]
SPECS = NAMED + LIMITED + GREEDY


def rule_of(spec: RouterSpec) -> Router:
    return router(spec, E, ROUTERS[spec.rule].only_top_k or K)


def batch(tokens: int = T, seed: int | None = None) -> Batch:
    """Tokens of five sequences, mixed, with ids; a generator only where a seed is given."""
    generator = np.random.default_rng(17)
    sequence = generator.permutation(np.arange(tokens) * SEQUENCES // max(1, tokens)) * 3 + 1
    token_id = generator.integers(0, 5000, tokens)
    return Batch(sequence, token_id, None if seed is None else np.random.default_rng(seed))


def experts_of(chosen, count: int = E) -> np.ndarray:
    return np.bincount(chosen.experts[chosen.experts != NO_EXPERT], minlength=count)


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(3).normal(0.0, 2.0, size=(T, E)) + np.linspace(0.0, 2.0, E)


@pytest.mark.parametrize("spec", SPECS)
class TestEveryRouter:
    @pytest.mark.parametrize("seed", [None, 5])
    def test_rows(self, spec, logits, seed):
        """Shapes, types, distinct experts best first; empty places at the end of a row, with weight 0."""
        rule = rule_of(spec)
        chosen = rule.choose(logits, None, batch(seed=seed))
        experts, weights = chosen.experts, chosen.weights
        assert experts.shape == weights.shape
        assert experts.dtype == np.int64
        assert weights.dtype == np.float32
        assert ((experts >= 0) | (experts == NO_EXPERT)).all()
        assert (experts < E).all()
        there = experts != NO_EXPERT
        assert (there[:, 1:] <= there[:, :-1]).all()
        assert (weights[~there] == 0.0).all()
        assert np.isfinite(weights).all()
        assert (weights[there] >= 0.0).all()
        ordered = np.sort(np.where(there, experts, E + np.arange(experts.shape[1])), axis=1)
        assert (np.diff(ordered, axis=1) > 0).all()
        assert len(experts) == (SEQUENCES * E * spec.slots if rule.slotted else T)

    def test_number_of_choices(self, spec, logits):
        """K of each token, or by token where the rule says that it varies."""
        rule = rule_of(spec)
        counts = (rule.choose(logits, None, batch(seed=5)).experts != NO_EXPERT).sum(axis=1)
        assert (np.ptp(counts) > 0) == rule.variable
        if not rule.variable:
            assert (counts == rule.top_k).all()

    def test_same_input_same_bytes_and_nothing_changed(self, spec, logits):
        before, rows = logits.copy(), batch()
        kept = (rows.sequence.copy(), rows.token_id.copy())
        rule = rule_of(spec)
        for seed in (None, 9):
            first, second = (rule.choose(logits, None, batch(seed=seed)) for _ in range(2))
            assert first.experts.tobytes() == second.experts.tobytes()
            assert first.weights.tobytes() == second.weights.tobytes()
        rule.choose(logits, None, rows)
        assert logits.tobytes() == before.tobytes()
        assert (rows.sequence == kept[0]).all()
        assert (rows.token_id == kept[1]).all()

    def test_order_of_tokens_does_not_matter(self, spec, logits):
        rule, rows = rule_of(spec), batch()
        order = np.random.default_rng(0).permutation(T)
        mixed = replace(rows, sequence=rows.sequence[order], token_id=rows.token_id[order])
        whole, shuffled = rule.choose(logits, None, rows), rule.choose(logits[order], None, mixed)
        order = np.arange(len(whole.experts)) if rule.slotted else order
        np.testing.assert_array_equal(whole.experts[order], shuffled.experts)
        np.testing.assert_allclose(whole.weights[order], shuffled.weights, rtol=1e-6, atol=1e-12)

    def test_experts_have_no_names(self, spec, logits):
        """Renaming groups, and experts within groups, renames the choices and nothing else."""
        generator, size = np.random.default_rng(1), E // spec.groups
        new = np.concatenate([g * size + generator.permutation(size) for g in generator.permutation(spec.groups)])
        plain, renamed = (rule_of(spec).choose(table, None, batch()) for table in (logits, logits[:, new]))
        if spec.rule in {"hash", "soft-moe"}:
            new = np.arange(E)  # logits play no part
        there = plain.experts != NO_EXPERT
        np.testing.assert_array_equal(np.where(there, new[renamed.experts], NO_EXPERT), plain.experts)
        np.testing.assert_allclose(renamed.weights, plain.weights, rtol=1e-6)

    @pytest.mark.parametrize("size", [1e3, 1e6])
    @pytest.mark.parametrize("seed", [None, 5])
    def test_extreme_logits_stay_finite(self, spec, logits, size, seed):
        logits = np.concatenate([logits[:-3] * size, np.full((1, E), -size), np.full((1, E), size), np.zeros((1, E))])
        chosen = rule_of(spec).choose(logits, None, batch(seed=seed))
        assert np.isfinite(chosen.weights).all()
        assert (chosen.weights >= 0).all()
        assert experts_of(chosen).sum() > 0

    @pytest.mark.parametrize("tokens", [T, T + 3, 7])
    def test_balanced_by_construction(self, spec, logits, tokens):
        """Every expert the same rows to within one; the rules that do not say so are uneven on these logits."""
        rule = rule_of(spec)
        logits = np.resize(logits, (tokens, E))
        counts = experts_of(rule.choose(logits, None, batch(tokens)))
        if rule.balanced:
            assert np.ptp(counts) <= 1
        elif tokens >= T:
            assert np.ptp(counts) > 1

    def test_one_choice_a_sequence(self, spec, logits):
        rule, rows = rule_of(spec), batch()
        if rule.slotted:
            return
        experts = rule.choose(logits, None, rows).experts
        distinct = [len(np.unique(experts[rows.sequence == one], axis=0)) for one in np.unique(rows.sequence)]
        assert (max(distinct) == 1) == rule.by_sequence

    def test_bias(self, spec, logits):
        """It moves choices, and not weights; alike for all experts it changes nothing. Or it is refused."""
        spec = spec.model_copy(update={"renormalize": False, "balancing": False})
        rule = rule_of(spec)
        bias = np.where(np.arange(E) % (E // min(spec.groups, 4)) == 0, 10.0, 0.0)
        if not rule.takes_bias:
            with pytest.raises(UserError, match="no bias"):
                rule.choose(logits, bias, batch())
            with pytest.raises(UserError, match="no bias"):
                rule_of(spec.model_copy(update={"bias": True}))
            return
        free, biased, alike = (rule.choose(logits, b, batch()) for b in (None, bias, np.full(E, 0.125)))
        liked = np.flatnonzero(bias)
        assert np.isin(biased.experts, liked).mean() > np.isin(free.experts, liked).mean()
        np.testing.assert_array_equal(alike.experts, free.experts)
        np.testing.assert_array_equal(alike.weights, free.weights)
        # An expert that both choose has the same weight in both.
        dense = np.zeros((2, T, E))
        for table, chosen in zip(dense, (free, biased), strict=True):
            np.put_along_axis(table, chosen.experts, chosen.weights, axis=1)
        common = (dense > 0).all(axis=0)
        if not rule.by_sequence:
            assert common.any()
        if spec.rule != "noisy-top-k":  # the softmax over the kept depends on what is kept
            np.testing.assert_allclose(dense[0][common], dense[1][common], rtol=1e-6)

    @pytest.mark.parametrize("tokens", [0, 1, 2])
    def test_few_tokens(self, spec, logits, tokens):
        rule = rule_of(spec)
        chosen = rule.choose(logits[:tokens], None, batch(tokens, seed=3))
        sequences = np.unique(batch(tokens).sequence).size
        assert len(chosen.experts) == (sequences * E * spec.slots if rule.slotted else tokens)
        assert np.isfinite(chosen.weights).all()

    def test_expected_copies(self, spec, logits):
        """Any leading shape; about K a token, no expert more than one; renaming experts renames the answer."""
        rule = rule_of(spec)
        weights = np.exp(np.random.default_rng(8).normal(0.0, 1.0, (2, 3, E)))
        before = weights.copy()
        found = rule.expected(weights)
        assert found.shape == weights.shape
        assert (weights == before).all()
        assert (found >= 0).all()
        assert (found <= 1.0 + 1e-9).all()
        if not rule.variable:
            np.testing.assert_allclose(found.sum(axis=-1), rule.top_k, rtol=1e-6)
        np.testing.assert_allclose(rule.expected(weights[1, 2]), found[1, 2], rtol=1e-6)
        expected = SEQUENCES * E * spec.slots if rule.slotted else T * rule.expected(np.ones(E)).sum()
        assert rule.copies(T, SEQUENCES) == pytest.approx(expected)

    def test_scale_multiplies_weights(self, spec, logits):
        plain, scaled = (
            rule_of(spec.model_copy(update={"scale": scale})).choose(logits, None, batch()) for scale in (1.0, 2.5)
        )
        np.testing.assert_allclose(scaled.weights, 2.5 * plain.weights, rtol=1e-6)

    def test_wrong_shapes_are_refused(self, spec, logits):
        rule = rule_of(spec)
        with pytest.raises(UserError, match=r"expected \[tokens, 32\]"):
            rule.choose(logits[:, :-1])
        with pytest.raises(UserError, match="batch's sequence"):
            rule.choose(logits, None, Batch(sequence=np.zeros(3, np.int64)))
        with pytest.raises(UserError, match="batch's token_id"):
            rule.choose(logits, None, Batch(token_id=np.zeros(3, np.int64)))

    def test_says_what_it_does(self, spec, logits):
        said = describe(spec.rule)
        assert list(said) == ["summary", "bytes", "drops", "balance"]
        assert all(15 < len(text) < 250 and text.endswith(".") and "\n" not in text for text in said.values())
        assert rule_of(spec).exchanges in (1, 2)


@pytest.mark.parametrize("spec", [pytest.param(entry(rule), id=rule) for rule in TOP_K] + LIMITED)
class TestTopK:
    """What holds for every rule that takes a token's K best scores by themselves."""

    def test_best_first(self, spec, logits):
        spec = spec.model_copy(update={"rule": "softmax-top-k"}) if ROUTERS[spec.rule].by_sequence else spec
        chosen = rule_of(spec).choose(logits)
        assert (np.diff(np.take_along_axis(logits, chosen.experts, axis=1), axis=1) <= 0).all()

    def test_ties_go_to_the_lower_expert(self, spec, logits):
        rule = rule_of(spec)
        np.testing.assert_array_equal(rule.choose(np.zeros((3, E))).experts, np.tile(np.arange(rule.top_k), (3, 1)))

    @pytest.mark.parametrize("scale", [1.0, 2.5])
    def test_renormalized_weights_sum_to_scale(self, spec, logits, scale):
        rule = rule_of(spec.model_copy(update={"renormalize": True, "scale": scale}))
        if rule.renormalizes:
            np.testing.assert_allclose(rule.choose(logits).weights.sum(axis=1), scale, rtol=1e-5)

    def test_raw_weights_are_scores(self, spec, logits):
        rule = rule_of(spec.model_copy(update={"renormalize": False, "scale": 2.0}))
        weights = rule.choose(logits).weights
        assert (weights > 0).all()
        assert (weights < 2.0).all()
        assert (np.diff(weights, axis=1) <= 0).all()

    def test_group_limit_is_obeyed(self, spec, logits):
        chosen = rule_of(spec).choose(logits)
        groups_used = [len(set(row)) for row in (chosen.experts // (E // spec.groups)).tolist()]
        assert max(groups_used) <= (spec.top_groups if spec.groups > 1 else 1)


def test_group_scores_by_hand():
    """Three groups of two, the best one kept: the first by its maximum, the second by its sum."""
    logits = np.log([[0.30, 0.01, 0.22, 0.21, 0.16, 0.10]])
    by_max = RouterSpec(groups=3, top_groups=1, group_score="max", renormalize=False)
    by_sum = by_max.model_copy(update={"group_score": "top2-sum"})
    assert router(by_max, 6, 2).choose(logits).experts.tolist() == [[0, 1]]
    assert router(by_sum, 6, 2).choose(logits).experts.tolist() == [[2, 3]]


@pytest.mark.parametrize(
    ("spec", "experts", "top_k", "words"),
    [
        (RouterSpec(), 8, 9, "top_k is 9"),
        (RouterSpec(), 8, 0, "top_k is 0"),
        (RouterSpec(groups=3), 8, 2, "do not divide"),
        (RouterSpec(groups=4, top_groups=5), 8, 2, "only 4 groups"),
        (RouterSpec(groups=4, top_groups=1), 8, 3, "fewer than top_k"),
        (RouterSpec(rule="switch-top-1"), 8, 2, "switch-top-1 works with top_k = 1 only, not 2"),
        (RouterSpec(rule="gshard-top-2"), 8, 1, "top_k = 2 only"),
        (RouterSpec(rule="base"), 8, 2, "top_k = 1 only"),
        (RouterSpec(rule="hash"), 8, 2, "top_k = 1 only"),
        (RouterSpec(rule="soft-moe"), 8, 2, "top_k = 1 only"),
        (RouterSpec(rule="gshard-top-2", groups=2), 8, 2, "knows no groups"),
        (RouterSpec(rule="expert-choice", bias=True), 8, 2, "takes no bias"),
        (RouterSpec(rule="hierarchical-top-k", groups=4, top_groups=2), 8, 3, "not shared out evenly"),
        (RouterSpec(rule="hierarchical-top-k", groups=4, top_groups=1), 8, 3, "fewer than top_k"),
        (RouterSpec(rule="hierarchical-top-k", groups=3, top_groups=1), 8, 2, "do not divide"),
        (RouterSpec(rule="top-p"), 8, 2, "needs top_p"),
        (RouterSpec(rule="top-p", top_p=0.5, max_choices=9), 8, 2, "max_choices is 9"),
    ],
)
def test_impossible_numbers_are_refused(spec, experts, top_k, words):
    with pytest.raises(UserError, match=words):
        router(spec, experts, top_k)


def test_unknown_rule_names_the_nearest():
    with pytest.raises(UnknownNameError, match="softmax-top-k"):
        router(RouterSpec(rule="softmax-topk"), 8, 2)
    with pytest.raises(UnknownNameError, match="expert-choice"):
        describe("expert-choise")


def test_every_entry_has_its_source():
    for name in catalog.names("routers"):
        sources = catalog.raw("routers", name)["sources"]
        assert all(source["where"] and source["basis"] for source in sources.values()), name


def test_rules_need_neither_the_solver_nor_the_compiler():
    code = (
        "import sys, moesim.routing.routers as r; sys.exit(any(n in sys.modules for n in ('scipy.optimize', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
