"""Every rule's `expected` against its own `choose` on logits drawn from the law, log(weight) plus Gumbel noise.

The measure is the sum over experts of |drawn - expected| over the sum of the drawn. 160,000 tokens over 32 experts have
sampling noise of about 0.01 in it; each case has a formula beside the right one that misses by more than twice the
tolerance.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from moesim.routing.assignment import NO_EXPERT
from moesim.routing.routers import ROUTERS, router
from moesim.routing.routers.base import Batch, Router
from moesim.routing.routers.hash_layer import VOCABULARY, draw_token_ids, token_frequency
from moesim.routing.routers.successive import among_first, others, second
from moesim.specs.model import RouterSpec

E, TOKENS, ROWS = 32, 160_000, 8_000
EVEN = np.ones(E)
ZIPF = np.random.default_rng(5).permutation(np.arange(1.0, E + 1.0) ** -1.0)
HOT = np.array([20.0] + [1.0] * (E - 1))
WEIGHTS = {"even": EVEN, "zipf": ZIPF, "one-hot-expert": HOT}
EXACT_ROWS = 320  # as many as linear assignment takes without long waiting


@cache
def drawn(case: str, law: str) -> np.ndarray:
    """Mean copies [E] of a row of the assignment; sequences are single tokens where a sequence chooses alike."""
    rule, weights = rule_of(case), WEIGHTS[law]
    rows = EXACT_ROWS if rule.spec.rule == "base" and rule.balanced else ROWS
    counts, seen = np.zeros(E), 0
    for seed in range((TOKENS if rows == ROWS else TOKENS // 10) // rows):
        generator = np.random.default_rng((77, seed))
        logits = np.log(weights) + generator.gumbel(size=(rows, E))
        sequence = np.arange(rows) if rule.by_sequence else None
        chosen = rule.choose(logits, None, Batch(sequence, draw_token_ids(generator, rows), generator)).experts
        counts += np.bincount(chosen[chosen != NO_EXPERT], minlength=E)
        seen += len(chosen)
    return counts / seen


def miss(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).sum() / found.sum())


def with_repetition(weights: np.ndarray, top_k: int) -> np.ndarray:
    """K independent draws: what a rule without repetition would be if experts could come twice."""
    return top_k * weights / weights.sum()


def even(weights: np.ndarray, top_k: int) -> np.ndarray:
    return np.full(E, top_k / E)


def plain(weights: np.ndarray, top_k: int) -> np.ndarray:
    return among_first(weights, top_k)


def three_quarters(weights: np.ndarray, top_k: int) -> np.ndarray:
    """One choice and three quarters of a second: GShard's chance if second gates were spread evenly."""
    return plain(weights, 1) + 0.75 * second(weights)


# rule and parameters, K, tolerance, a wrong formula (on the Zipf weights)
CASES = {
    "softmax-top-k": ({}, 4, 0.03, with_repetition),
    "softmax-top-k/2": ({}, 2, 0.02, with_repetition),
    "softmax-top-k/8": ({}, 8, 0.03, with_repetition),
    "sigmoid-top-k": ({}, 4, 0.03, with_repetition),
    "switch-top-1": ({"jitter": 0.01}, 1, 0.03, even),
    "noisy-top-k": ({"noise": 1.0}, 4, 0.03, plain),
    "noisy-top-k/1": ({"noise": 1.5}, 1, 0.07, plain),
    "hierarchical-top-k": ({"groups": 8, "top_groups": 2}, 4, 0.04, plain),
    "hierarchical-top-k/1": ({"groups": 4, "top_groups": 1}, 4, 0.06, plain),
    "hierarchical-top-k/noise": ({"groups": 8, "top_groups": 4, "noise": 0.693}, 4, 0.035, plain),
    "gshard-top-2": ({"second_threshold": 0.5}, 2, 0.02, three_quarters),
    "gshard-top-2/mesh-tf": ({"second_threshold": 0.2}, 2, 0.02, plain),
    "gshard-top-2/high": ({"second_threshold": 0.8}, 2, 0.02, plain),
    "gshard-top-2/all": ({}, 2, 0.02, with_repetition),
    "expert-choice": ({}, 4, 0.001, plain),
    "soft-moe": ({}, 1, 0.001, plain),
    "base": ({}, 1, 0.001, plain),
    "base/greedy": ({"balancing": False}, 1, 0.03, even),
    "hash": ({}, 1, 0.02, plain),
    "hash/random": ({"table": "random"}, 1, 0.02, even),
    "sinkhorn": ({}, 4, 0.03, plain),
    "sinkhorn/1": ({}, 1, 0.03, plain),
    "sinkhorn/greedy": ({"balancing": False}, 4, 0.03, even),
    "quantile-balanced": ({}, 4, 0.02, plain),
    "top-p": ({"top_p": 0.4}, 4, 0.04, plain),
    "top-p/most": ({"top_p": 0.8, "max_choices": 6}, 4, 0.04, plain),
    "remoe": ({}, 4, 0.02, with_repetition),
    "routing-network": ({}, 4, 0.03, with_repetition),
}
WRONG = list(CASES)
# A rule that is added is compared as it is; give it a case above where its parameters matter.
CASES |= {rule: ({}, ROUTERS[rule].only_top_k or 4, 0.04, plain) for rule in ROUTERS if rule not in CASES}


def rule_of(case: str) -> Router:
    parameters, top_k, _, _ = CASES[case]
    return router(RouterSpec(rule=case.partition("/")[0], **parameters), E, top_k)


@pytest.mark.parametrize("law", WEIGHTS)
@pytest.mark.parametrize("case", CASES)
def test_expected_copies_are_those_drawn(case, law):
    assert miss(drawn(case, law), rule_of(case).expected(WEIGHTS[law])) < CASES[case][2]


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_formula_would_be_seen(case):
    _, top_k, tolerance, wrong = CASES[case]
    assert miss(drawn(case, "zipf"), wrong(ZIPF, top_k)) > 2 * tolerance


def by_walk(weights: np.ndarray, top_k: int) -> np.ndarray:
    """Inclusion by walking every order of draws."""
    found = np.zeros(weights.size)
    for order in itertools.permutations(range(weights.size), top_k):
        left, chance = weights.sum(), 1.0
        for expert in order:
            chance *= weights[expert] / left
            left -= weights[expert]
        found[list(order)] += chance
    return found


def test_inclusion_is_exact_for_one_and_two():
    weights = np.array([5.0, 1.0, 0.3, 2.0, 0.01])
    np.testing.assert_allclose(among_first(weights, 1), weights / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(among_first(weights, 2), by_walk(weights, 2), rtol=1e-12)
    np.testing.assert_allclose(among_first(weights, 5), 1.0)
    # By time, above: close where no expert is nearly sure.
    milder = np.arange(1.0, 9.0)
    np.testing.assert_allclose(among_first(milder, 4), by_walk(milder, 4), atol=0.02)


def test_inclusion_of_a_nearly_certain_expert():
    """No cancellation where one weight dwarfs the rest."""
    weights = np.array([1e18, 3.0, 1.0])
    np.testing.assert_allclose(among_first(weights, 2), [1.0, 0.75, 0.25], rtol=1e-9)
    np.testing.assert_array_equal(others(np.array([[1.0, 2.0, 4.0]])), [[6.0, 5.0, 3.0]])


def test_chance_of_the_second_by_quadrature():
    """GShard's mean chance against the integral of min(1, g / threshold) over the ratio of the first two arrivals."""
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    for threshold in (0.2, 0.5, 0.9):
        found = router(RouterSpec(rule="gshard-top-2", second_threshold=threshold), 4, 2).expected(weights)
        ratio = (np.arange(200_000) + 0.5) / 200_000  # P(first gap beats the second), uniform
        wanted = weights / 8
        for first, weight in enumerate(weights):
            rest = 1 - weight / 8
            # Quantiles of u, whose law is u / (r + (1 - r) u).
            u = rest * ratio / (1 - (1 - rest) * ratio)
            kept = np.minimum(1.0, u / (1 + u) / threshold).mean()
            next_ones = np.where(np.arange(4) == first, 0.0, weights)
            wanted = wanted + weight / 8 * kept * next_ones / next_ones.sum()
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_frequency_of_tokens():
    """Zipf-Mandelbrot by hand, and ids drawn by it."""
    shares = token_frequency(3)
    np.testing.assert_allclose(
        shares, np.array([1 / 3.7, 1 / 4.7, 1 / 5.7]) / (1 / 3.7 + 1 / 4.7 + 1 / 5.7), rtol=1e-12
    )
    ids = draw_token_ids(np.random.default_rng(0), 200_000)
    assert ids.min() == 0
    assert ids.max() < VOCABULARY
    assert np.mean(ids == 0) == pytest.approx(token_frequency(VOCABULARY)[0], rel=0.05)
    assert np.mean(ids < 100) == pytest.approx(token_frequency(VOCABULARY)[:100].sum(), rel=0.02)
