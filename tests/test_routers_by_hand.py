"""Every rule on an example small enough to work out by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from moesim.errors import UserError
from moesim.routing.assignment import NO_EXPERT
from moesim.routing.routers import router
from moesim.routing.routers.base import Batch
from moesim.routing.routers.hash_layer import hash_table, token_frequency
from moesim.routing.routers.quantile import balancing_prices, dual_update
from moesim.routing.routers.sinkhorn import column_factors
from moesim.specs.model import RouterSpec

NO = NO_EXPERT


def choose(rule: str, powers, top_k: int = 1, batch: Batch | None = None, **spec):
    """Choices and weights on logits that are the logarithms of `powers`."""
    powers = np.array(powers, dtype=float)
    found = router(RouterSpec(rule=rule, **spec), powers.shape[1], top_k).choose(np.log(powers), None, batch or Batch())
    return found.experts.tolist(), found.weights


def close(weights, wanted) -> None:
    np.testing.assert_allclose(weights, wanted, rtol=1e-6)


def test_softmax_and_sigmoid():
    experts, weights = choose("softmax-top-k", [[1, 2, 5]], 2, renormalize=False)
    assert experts == [[2, 1]]
    close(weights, [[5 / 8, 2 / 8]])
    close(choose("sigmoid-top-k", [[1, 2, 5]], 2, renormalize=False)[1], [[5 / 6, 2 / 3]])
    close(choose("softmax-top-k", [[1, 2, 5]], 2)[1], [[5 / 7, 2 / 7]])


def test_bias_of_deepseek_v3():
    """Scores 5/6, 2/3, 1/2; a bias of 0.4 brings the last one in, its weight is still its score's."""
    found = router(RouterSpec(rule="sigmoid-top-k", bias=True), 3, 2).choose(np.log([[5.0, 2.0, 1.0]]), [0, 0, 0.4])
    assert found.experts.tolist() == [[2, 0]]
    close(found.weights, [[0.5 / (0.5 + 5 / 6), 5 / 6 / (0.5 + 5 / 6)]])


def test_switch_weighs_by_the_probability():
    experts, weights = choose("switch-top-1", [[1, 2, 5]], renormalize=True)
    assert experts == [[2]]
    close(weights, [[5 / 8]])


def test_noise_and_jitter_are_the_generators():
    logits = np.array([[0.1, 0.2, 0.3, 0.4]])
    for rule, top_k in (("noisy-top-k", 2), ("softmax-top-k", 2), ("switch-top-1", 1), ("top-p", 2)):
        spec = RouterSpec(rule=rule, noise=2.0, jitter=0.5, top_p=0.5)
        found = router(spec, 4, top_k).choose(logits, None, Batch(generator=np.random.default_rng(4)))
        generator = np.random.default_rng(4)
        by_hand = logits * generator.uniform(0.5, 1.5, (1, 4)) + 2.0 * generator.standard_normal((1, 4))
        quiet = router(spec, 4, top_k).choose(by_hand)
        assert found.experts.tolist() == quiet.experts.tolist()
        close(found.weights, quiet.weights)
        # Without a generator there is no noise.
        assert router(spec, 4, top_k).choose(logits).experts[0, 0] == 3


def test_noisy_top_k_is_a_softmax_over_the_kept():
    experts, weights = choose("noisy-top-k", [[1, 2, 5]], 2, renormalize=False)
    assert experts == [[2, 1]]
    close(weights, [[5 / 7, 2 / 7]])


def test_hierarchy_prefers_the_group_with_more_in_it():
    """Groups {4, 0.1} and {3, 2}: 5 beats 4.1, though expert 0 is the best of all."""
    powers = [[4, 0.1, 3, 2]]
    assert choose("softmax-top-k", powers, 1)[0] == [[0]]
    experts, weights = choose("hierarchical-top-k", powers, 1, groups=2, top_groups=1)
    assert experts == [[2]]
    close(weights, [[1.0]])
    experts, weights = choose("hierarchical-top-k", powers, 2, groups=2, top_groups=2)
    assert experts == [[2, 0]]
    close(weights, [[5 / 9.1, 4.1 / 9.1]])
    experts, weights = choose("hierarchical-top-k", powers, 4, groups=2, top_groups=2)
    assert experts == [[0, 2, 3, 1]]
    close(weights, [[4 / 9.1, 3 / 9.1, 2 / 9.1, 0.1 / 9.1]])
    assert router(RouterSpec(rule="hierarchical-top-k", groups=2, top_groups=2), 4, 2).exchanges == 2


def test_gshard_second_expert():
    """g2 = 2/7: its chance is 4/7 by GShard's threshold, 1 by mesh-tf's, 2/7 / 0.9 = 0.32 by one of 0.9."""
    powers = [[5, 2, 1]]
    for threshold in (None, 0.2, 0.5):
        experts, weights = choose("gshard-top-2", powers, 2, second_threshold=threshold)
        assert experts == [[0, 1]]
        close(weights, [[5 / 7, 2 / 7]])
    experts, weights = choose("gshard-top-2", powers, 2, second_threshold=0.9)
    assert experts == [[0, NO]]
    close(weights, [[5 / 7, 0]])
    tokens = 20_000
    for threshold, chance in ((None, 1.0), (0.2, 1.0), (0.5, 4 / 7), (0.9, 2 / 6.3)):
        drawn = Batch(generator=np.random.default_rng(1))
        experts, _ = choose("gshard-top-2", powers * tokens, 2, drawn, second_threshold=threshold)
        kept = sum(row[1] == 1 for row in experts) / tokens
        assert kept == pytest.approx(chance, abs=4 * (chance * (1 - chance) / tokens) ** 0.5)


def test_expert_choice():
    """Two tokens each (4 x 1 / 2). Expert 0 likes tokens 0 and 1 best, expert 1 the two others."""
    powers = [[9, 1], [8, 2], [3, 1], [1, 1]]
    experts, weights = choose("expert-choice", powers)
    assert experts == [[0], [0], [1], [1]]
    close(weights, [[0.9], [0.8], [0.25], [0.5]])
    # In sequences of two, C = 1: each expert takes one of tokens {0, 1} and one of {2, 3}.
    assert choose("expert-choice", powers, 1, Batch(sequence=np.array([7, 7, 2, 2])))[0] == [[0], [1], [0], [1]]
    # C = 2 of four tokens among three experts at K = 1.5 rounded: a token may go to several or to none.
    experts, weights = choose("expert-choice", [[5, 4, 1], [5, 4, 1], [1, 1, 8], [1, 1, 8]], 2)
    assert Counter(expert for row in experts for expert in row)[0] == 3
    assert experts[0][:2] == [0, 1]


def test_expert_choice_leaves_tokens_out():
    experts, weights = choose("expert-choice", [[5, 5], [4, 4.4], [1, 2]], 1, renormalize=False)
    # C = round(1.5) = 2 of probabilities 0.5, 0.476, 0.333 and 0.5, 0.524, 0.667.
    assert experts == [[0, NO], [1, 0], [1, NO]]
    assert weights[0, 1] == weights[2, 1] == 0.0


def test_capacity_of_expert_choice():
    rule = router(RouterSpec(rule="expert-choice"), 8, 2)
    np.testing.assert_array_equal(rule.capacity(np.array([0, 1, 16, 18, 22, 4096])), [0, 1, 4, 4, 6, 1024])


def test_soft_moe_rows_are_slots():
    found = router(RouterSpec(rule="soft-moe", slots=2), 3, 1).choose(
        np.zeros((10, 3)), None, Batch(np.arange(10) // 5)
    )
    assert found.experts.ravel().tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert (found.weights == 1.0).all()
    assert router(RouterSpec(rule="soft-moe", slots=2), 3, 1).copies(1000.0, 4.0) == 24.0


def test_base_gives_way_where_it_costs_least():
    """Both like expert 0; token 0 loses 1 by moving, token 1 would lose 3."""
    logits = np.array([[3.0, 2.0], [3.0, 0.0]])
    found = router(RouterSpec(rule="base"), 2, 1).choose(logits)
    assert found.experts.tolist() == [[1], [0]]
    close(found.weights, [[1 / (1 + np.exp(-2))], [1 / (1 + np.exp(-3))]])
    assert router(RouterSpec(rule="base", balancing=False), 2, 1).choose(logits).experts.tolist() == [[0], [0]]
    assert router(RouterSpec(rule="base"), 2, 1).exchanges == 1
    assert router(RouterSpec(rule="base", shuffle=True), 2, 1).exchanges == 2


def test_balanced_table_fills_the_emptiest():
    """Shares 1/3.7, 1/4.7, 1/5.7, ...: loads after each id 0.270 | 0.213 | 0.388 (1) | 0.419 (0) | 0.518 (1) | ..."""
    assert hash_table(6, 2, "balanced").tolist() == [0, 1, 1, 0, 1, 0]
    for kind in ("balanced", "random"):
        np.testing.assert_array_equal(hash_table(1000, 7, kind)[:100], hash_table(100, 7, kind))
    shares = token_frequency(1 << 14)
    load = {kind: np.bincount(hash_table(1 << 14, 8, kind), weights=shares) for kind in ("balanced", "random")}
    assert np.ptp(load["balanced"]) < 1e-4
    assert np.ptp(load["random"]) > 0.02
    counts = np.bincount(hash_table(1 << 14, 8, "random"))
    assert np.abs(counts - 2048).max() < 5 * 2048**0.5
    assert (hash_table(100, 7, "random", 0) != hash_table(100, 7, "random", 1)).any()


def test_hash_follows_the_id_alone():
    ids = np.array([0, 1, 2, 3, 0, 70_000])
    experts, weights = choose("hash", np.ones((6, 2)), 1, Batch(token_id=ids))
    assert [row[0] for row in experts[:5]] == [0, 1, 1, 0, 0]
    assert (weights == 1.0).all()
    with pytest.raises(UserError, match="token_id"):
        choose("hash", np.ones((6, 2)))
    with pytest.raises(UserError, match="count from 0"):
        choose("hash", np.ones((1, 2)), 1, Batch(token_id=np.array([-1])))


def test_sinkhorn_by_hand():
    """Column factors that even out sigmoid(2 - d) + sigmoid(1 - d) = 1: d = 1.5, so the tokens part."""
    logits = np.array([[2.0, 0.0], [1.0, 0.0]])
    found = router(RouterSpec(rule="sinkhorn", tolerance=1e-9), 2, 1).choose(logits)
    assert found.experts.tolist() == [[0], [1]]
    close(found.weights, [[1 / (1 + np.exp(-2))], [0.5]])
    factors = np.log(column_factors(logits, 1e-9))
    assert factors[1] - factors[0] == pytest.approx(1.5, abs=1e-5)
    plain = router(RouterSpec(rule="sinkhorn", balancing=False), 2, 1).choose(logits)
    assert plain.experts.tolist() == [[0], [0]]
    several = router(RouterSpec(rule="sinkhorn"), 3, 2).choose(np.log([[1.0, 2.0, 5.0]]))
    # One row: every column gets the same, so the factors undo the logits; weights are the raw softmax.
    close(np.sort(several.weights), np.sort([[[1, 2, 5][e] / 8 for e in several.experts[0]]]))


def test_normalised_matrix_is_even():
    logits = np.random.default_rng(2).normal(0.0, 2.0, (300, 8)) + np.arange(8.0)
    scaled = np.exp(logits) * column_factors(logits, 1e-10)
    scaled /= scaled.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scaled.mean(axis=0), 1 / 8, rtol=1e-5)


def test_one_update_of_the_quantile():
    """K = 1 of two experts, four tokens: cutoffs are the lower score, 2 tokens of each expert stay above beta."""
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    # Above the cutoffs: 0.8, 0.6, 0.4, 0 and 0, 0, 0, 0.2; halfway from 2nd to 3rd 0.5 and 0; less their mean 0.25.
    np.testing.assert_allclose(dual_update(scores, 1, np.zeros(2)), [0.25, -0.25], atol=1e-12)
    prices = balancing_prices(scores, 1, np.zeros(2), 1e-6)
    assert (scores - prices).argmax(axis=1).tolist() == [0, 0, 1, 1]
    experts, weights = choose("quantile-balanced", scores, renormalize=False)
    assert experts == [[0], [0], [1], [1]]
    close(weights, [[0.9], [0.8], [0.3], [0.6]])


def test_top_p_by_hand():
    powers = [[0.2, 0.5, 0.3]]
    for top_p, wanted in ((0.4, [1]), (0.6, [1, 2]), (0.9, [1, 2, 0]), (1.0, [1, 2, 0])):
        experts, weights = choose("top-p", powers, top_p=top_p, renormalize=False)
        assert experts == [wanted]
        close(weights, [[powers[0][expert] for expert in wanted]])
    experts, weights = choose("top-p", powers, top_p=0.9, max_choices=2)
    assert experts == [[1, 2]]
    close(weights, [[0.625, 0.375]])
    assert choose("top-p", [[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]], top_p=0.6)[0] == [[1, 2], [0, NO]]


def test_remoe_threshold():
    """K = 1 of two tokens: the two highest logits are above the third, 1; weights are what is left."""
    rule = router(RouterSpec(rule="remoe"), 2, 1)
    found = rule.choose(np.array([[3.0, 1.0], [2.0, -1.0]]))
    assert rule.threshold(np.array([[3.0, 1.0], [2.0, -1.0]])) == 1.0
    assert found.experts.tolist() == [[0], [0]]
    close(found.weights, [[2.0], [1.0]])
    found = rule.choose(np.array([[3.0, 2.0], [1.0, -1.0]]))
    assert found.experts.tolist() == [[0, 1], [NO, NO]]
    close(found.weights, [[2.0, 1.0], [0.0, 0.0]])
    every = router(RouterSpec(rule="remoe"), 2, 2).choose(np.array([[3.0, 2.0], [1.0, -1.0]]))
    assert every.experts.tolist() == [[0, 1], [0, 1]]


def test_routing_network_by_hand():
    """Mean logits of sequence 4 are (2/3, 2), of 5 (3, 0), of 6 (0, 1); of 4 and 6 together (2 tasks) (0.5, 1.75)."""
    logits = np.array([[0.0, 4.0], [3.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    sequence = np.array([4, 5, 4, 4, 6])
    rule = router(RouterSpec(rule="routing-network", renormalize=False), 2, 1)
    found = rule.choose(logits, None, Batch(sequence=sequence))
    assert found.experts.ravel().tolist() == [1, 0, 1, 1, 1]
    close(found.weights[0], 1 / (1 + np.exp(2 / 3 - 2)))
    tasks = router(RouterSpec(rule="routing-network", renormalize=False, tasks=2), 2, 1)
    found = tasks.choose(logits, None, Batch(sequence=sequence))
    close(found.weights[[0, 4], 0], 1 / (1 + np.exp(0.5 - 1.75)))
    assert rule.choose(logits).experts.ravel().tolist() == [1] * 5
