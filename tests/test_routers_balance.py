"""Balanced assignment near its optimum, the bias update, and the auxiliary losses by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moesim.errors import UserError
from moesim.routing.routers import router
from moesim.routing.routers.auction import EXACT_TOKENS, STEP, balanced_assignment
from moesim.routing.routers.base import Batch
from moesim.routing.routers.bias_update import update_bias
from moesim.routing.routers.losses import (
    cv_squared,
    device_loss,
    importance_loss,
    load_balancing_loss,
    load_loss,
    sequence_loss,
    z_loss,
)
from moesim.routing.routers.quantile import balancing_prices
from moesim.specs.model import RouterSpec


def scores_of(tokens: int, experts: int, seed: int, skew: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return -skew * np.log(generator.permutation(experts) + 1.0) + generator.gumbel(size=(tokens, experts))


def total(scores: np.ndarray, experts: np.ndarray) -> float:
    return float(scores[np.arange(len(scores)), experts].sum())


@pytest.mark.parametrize(("tokens", "experts"), [(4, 2), (5, 2), (6, 3), (2, 3), (5, 4), (1, 3)])
def test_exact_assignment_is_the_best_of_all(tokens, experts):
    scores = scores_of(tokens, experts, 1)
    legal = [
        each
        for each in itertools.product(range(experts), repeat=tokens)
        if np.ptp(np.bincount(each, minlength=experts)) <= 1
    ]
    found = balanced_assignment(scores)
    assert np.ptp(np.bincount(found, minlength=experts)) <= 1
    assert total(scores, found) == pytest.approx(max(total(scores, np.array(each)) for each in legal))


@pytest.mark.parametrize(("tokens", "experts", "steps"), [(960, 16, 1.0), (1024, 64, 1.0), (1000, 48, 2.0)])
@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0])
def test_auction_ends_near_the_optimum(tokens, experts, steps, skew):
    """Within its step of the best mean score (two steps where the places left over are not shared out freely); dealing
    the greedy choice's excess out at random is far worse."""
    scores = scores_of(tokens, experts, 4, skew)
    exact, auction = (balanced_assignment(scores, exact_tokens) for exact_tokens in (tokens, 0))
    assert np.ptp(np.bincount(auction, minlength=experts)) <= 1
    short = (total(scores, exact) - total(scores, auction)) / tokens / scores.std()
    assert -1e-9 <= short < steps * STEP
    dealt = np.random.default_rng(0).permutation(np.arange(tokens) % experts)
    assert (total(scores, exact) - total(scores, dealt)) / tokens / scores.std() > 10 * STEP


@pytest.mark.parametrize(
    ("tokens", "experts"), [(EXACT_TOKENS + 1, 8), (5000, 7), (3000, 256), (1500, 2000), (2048, 1)]
)
def test_large_batches_are_balanced_exactly(tokens, experts):
    found = balanced_assignment(scores_of(tokens, experts, 2))
    assert np.ptp(np.bincount(found, minlength=experts)) <= 1
    assert found.min() >= 0


def test_equal_scores_are_dealt_out():
    assert np.bincount(balanced_assignment(np.zeros((2000, 16)))).tolist() == [125] * 16


def test_prices_even_out_the_load():
    """Ten times the mean before; within 5 % of it after (256 rows an expert)."""
    scores = scores_of(8192, 32, 3)
    for top_k in (1, 4):
        target = 8192 * top_k / 32
        for prices, low, high in (
            (np.zeros(32), 1.5, 20.0),
            (balancing_prices(scores, top_k, np.zeros(32), 1e-4), 1, 1.05),
        ):
            order = np.argsort(prices - scores, axis=1)[:, :top_k]
            assert low <= np.bincount(order.ravel(), minlength=32).max() / target < high


def test_sinkhorn_is_softer_than_the_quantile():
    logits = scores_of(4096, 32, 6)
    spread = {}
    for rule in ("softmax-top-k", "sinkhorn", "quantile-balanced"):
        experts = router(RouterSpec(rule=rule), 32, 4).choose(logits).experts
        spread[rule] = np.bincount(experts.ravel(), minlength=32).max() / 512
    assert spread["quantile-balanced"] < spread["sinkhorn"] < 1.2 < 3 < spread["softmax-top-k"]


def test_token_choice_is_not_balanced_where_expert_choice_is():
    logits = scores_of(400, 8, 7)
    rows = Batch(sequence=np.arange(400) // 100)
    chosen = router(RouterSpec(rule="expert-choice"), 8, 2).choose(logits, None, rows)
    for sequence in range(4):
        part = chosen.experts[rows.sequence == sequence]
        assert np.bincount(part[part >= 0], minlength=8).tolist() == [25] * 8


def test_bias_update_by_hand():
    bias = np.array([0.1, 0.0, -0.1])
    np.testing.assert_allclose(update_bias(bias, np.array([5, 3, 1]), 0.001), [0.099, 0.0, -0.099])
    assert bias.tolist() == [0.1, 0.0, -0.1]
    layers = update_bias(np.zeros((2, 2)), np.array([[3, 1], [0, 0]]), 0.5)
    np.testing.assert_array_equal(layers, [[-0.5, 0.5], [0.0, 0.0]])


def test_bias_update_evens_out_the_load():
    """DeepSeek-V3's loop: thousands of small steps bring max/mean from above 3 to near 1."""
    generator = np.random.default_rng(0)
    rule = router(RouterSpec(rule="sigmoid-top-k", bias=True), 16, 2)
    popularity = np.linspace(-1.5, 1.5, 16)
    bias, worst = np.zeros(16), []
    for _ in range(1500):
        logits = popularity + generator.normal(0.0, 1.0, (512, 16))
        counts = np.bincount(rule.choose(logits, bias).experts.ravel(), minlength=16)
        worst.append(counts.max() / counts.mean())
        bias = update_bias(bias, counts, 0.001)
    assert np.mean(worst[:20]) > 3
    assert np.mean(worst[-100:]) < 1.3
    assert (np.diff(bias) < 0.02).all()


def test_load_balancing_loss_by_hand():
    probabilities = np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.9, 0.1]])
    # f = 3/4, 1/4; P = 0.6, 0.4: 2 x (0.45 + 0.1).
    assert load_balancing_loss(probabilities, np.array([[0], [0], [1], [0]])) == pytest.approx(1.1)
    assert load_balancing_loss(np.full((4, 2), 0.5), np.array([[0], [1], [0], [1]])) == pytest.approx(1.0)
    assert load_balancing_loss(np.tile([1.0, 0.0], (4, 1)), np.zeros((4, 1), int)) == pytest.approx(2.0)
    # Two choices each: everyone has both, f = 1/2 each.
    assert load_balancing_loss(probabilities, np.tile([0, 1], (4, 1))) == pytest.approx(1.0)


def test_coefficients_of_variation_by_hand():
    assert cv_squared(np.array([1.0, 3.0])) == pytest.approx(0.25)
    assert cv_squared(np.zeros(4)) == 0.0
    # Importance 1.5 and 0.5: deviation 0.5 of a mean of 1.
    assert importance_loss(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx(0.25)


def test_smooth_load_by_hand():
    """One token, K = 1, noise of 1. Clean (1, 0), noisy (2, 0): expert 0 must beat 0 and expert 1 must beat 2, so that
    their chances are Phi(1) = 0.841345 and Phi(-2) = 0.022750."""
    chances = np.array([0.8413447, 0.0227501])
    wanted = chances.var() / chances.mean() ** 2
    assert load_loss(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]]), 1.0, 1) == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(UserError, match="fewer choices"):
        load_loss(np.zeros((1, 2)), np.zeros((1, 2)), 1.0, 2)


def test_smooth_load_is_the_chance_of_a_new_draw():
    generator = np.random.default_rng(3)
    clean, noise = generator.normal(size=5), generator.normal(size=5)
    chances = []
    for expert in range(5):
        redrawn = np.tile(clean + 0.7 * noise, (40_000, 1))
        redrawn[:, expert] = clean[expert] + 0.7 * generator.normal(size=40_000)
        chances.append((np.argsort(-redrawn, axis=1)[:, :2] == expert).any(axis=1).mean())
    found = load_loss(clean[None], (clean + 0.7 * noise)[None], 0.7, 2)
    assert found == pytest.approx(cv_squared(np.array(chances)), rel=0.03)


def test_sequence_loss_by_hand():
    """Scores (3, 1) and (1, 1): P = (0.625, 0.375). Both choose expert 0: f = 2 x (1, 0), loss 1.25. Apart: f = (1, 1),
    loss 1. Token by token: 2 x 0.75 and 2 x 0.5."""
    scores = np.array([[3.0, 1.0], [1.0, 1.0]])
    assert sequence_loss(scores, np.array([[0], [0]])) == pytest.approx(1.25)
    assert sequence_loss(scores, np.array([[0], [1]])) == pytest.approx(1.0)
    assert sequence_loss(scores, np.array([[0], [1]]), np.array([8, 3])) == pytest.approx((1.5 + 1.0) / 2)
    assert sequence_loss(scores, np.array([[0, 1], [1, 0]])) == pytest.approx(1.0)


def test_device_loss_by_hand():
    """Four experts on two devices; f = 4 x (2/4, 1/4, 1/4, 0) = (2, 1, 1, 0), means 1.5 and 0.5; P' = 0.7 and 0.3."""
    probabilities = np.tile([0.5, 0.2, 0.2, 0.1], (2, 1))
    experts = np.array([[0, 1], [0, 2]])
    assert device_loss(probabilities, experts, np.array([0, 0, 1, 1])) == pytest.approx(1.5 * 0.7 + 0.5 * 0.3)
    assert device_loss(np.full((2, 4), 0.25), np.array([[0, 1], [2, 3]]), np.array([0, 0, 1, 1])) == pytest.approx(1.0)


def test_z_loss_by_hand():
    assert z_loss(np.log([[1.0, 1.0], [3.0, 1.0]])) == pytest.approx((np.log(2) ** 2 + np.log(4) ** 2) / 2)
    assert np.isfinite(z_loss(np.array([[1e4, -1e4]])))
