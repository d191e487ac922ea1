"""The contract of every router: the same checks for each registered rule, with and without groups."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.errors import UnknownNameError, UserError
from moesim.routing.routers import ROUTERS, router
from moesim.specs.model import RouterSpec

E, K, T = 32, 4, 200
GROUPS = {
    "no-groups": {},
    "max": {"groups": 8, "top_groups": 3, "group_score": "max"},
    "top2-sum": {"groups": 8, "top_groups": 3, "group_score": "top2-sum"},
    "one-expert-groups": {"groups": 32, "top_groups": 6, "group_score": "top2-sum"},
}
SPECS = [
    pytest.param(RouterSpec(rule=rule, **limit), id=f"{rule}/{name}")
    for rule in ROUTERS
    for name, limit in GROUPS.items()
]


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(3).normal(0.0, 2.0, size=(T, E))


@pytest.mark.parametrize("spec", SPECS)
class TestEveryRouter:
    def test_shapes_and_distinct_experts(self, spec, logits):
        chosen = router(spec, E, K).choose(logits)
        assert chosen.experts.shape == chosen.weights.shape == (T, K)
        assert chosen.weights.dtype == np.float32
        assert ((chosen.experts >= 0) & (chosen.experts < E)).all()
        assert all(len(set(row)) == K for row in chosen.experts.tolist())

    def test_same_logits_same_bytes(self, spec, logits):
        first, second = (router(spec, E, K).choose(logits.copy()) for _ in range(2))
        assert first.experts.tobytes() == second.experts.tobytes()
        assert first.weights.tobytes() == second.weights.tobytes()

    def test_tokens_are_independent(self, spec, logits):
        order = np.random.default_rng(0).permutation(T)
        whole, shuffled = (router(spec, E, K).choose(table) for table in (logits, logits[order]))
        np.testing.assert_array_equal(whole.experts[order], shuffled.experts)
        np.testing.assert_array_equal(whole.weights[order], shuffled.weights)

    def test_experts_have_no_names(self, spec, logits):
        """Renaming groups, and experts within groups, renames the choices and nothing else."""
        generator, size = np.random.default_rng(1), E // spec.groups
        new = np.concatenate([g * size + generator.permutation(size) for g in generator.permutation(spec.groups)])
        plain, renamed = (router(spec, E, K).choose(table) for table in (logits, logits[:, new]))
        np.testing.assert_array_equal(new[renamed.experts], plain.experts)
        np.testing.assert_allclose(renamed.weights, plain.weights, rtol=1e-6)

    def test_best_first(self, spec, logits):
        chosen = router(spec, E, K).choose(logits)
        assert (np.diff(np.take_along_axis(logits, chosen.experts, axis=1), axis=1) <= 0).all()

    def test_ties_go_to_the_lower_expert(self, spec, logits):
        chosen = router(spec, E, K).choose(np.zeros((3, E)))
        np.testing.assert_array_equal(chosen.experts, np.tile(np.arange(K), (3, 1)))

    @pytest.mark.parametrize("scale", [1.0, 2.5])
    def test_renormalized_weights_sum_to_scale(self, spec, logits, scale):
        spec = spec.model_copy(update={"renormalize": True, "scale": scale})
        np.testing.assert_allclose(router(spec, E, K).choose(logits).weights.sum(axis=1), scale, rtol=1e-5)

    def test_raw_weights_are_scores(self, spec, logits):
        spec = spec.model_copy(update={"renormalize": False, "scale": 2.0})
        weights = router(spec, E, K).choose(logits).weights
        assert (weights > 0).all()
        assert (weights < 2.0).all()
        assert (np.diff(weights, axis=1) <= 0).all()

    @pytest.mark.parametrize("size", [1e3, 1e6])
    def test_extreme_logits_stay_finite(self, spec, logits, size):
        weights = router(spec, E, K).choose(np.concatenate([logits * size, np.full((1, E), -size)])).weights
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()

    def test_group_limit_is_obeyed(self, spec, logits):
        chosen = router(spec, E, K).choose(logits)
        groups_used = [len(set(row)) for row in (chosen.experts // (E // spec.groups)).tolist()]
        assert max(groups_used) <= (spec.top_groups if spec.groups > 1 else 1)

    def test_bias_moves_choices_and_not_weights(self, spec, logits):
        spec = spec.model_copy(update={"renormalize": False})
        bias = np.where(np.arange(E) % (E // min(spec.groups, 4)) == 0, 10.0, 0.0)
        free, biased = (router(spec, E, K).choose(logits, bias=b) for b in (None, bias))
        assert np.isin(biased.experts, np.flatnonzero(bias)).mean() > np.isin(free.experts, np.flatnonzero(bias)).mean()
        assert (biased.weights < 1.0).all()


def test_group_scores_by_hand():
    """Three groups of two, the best one kept: the first by its maximum, the second by its sum."""
    logits = np.log([[0.30, 0.01, 0.22, 0.21, 0.16, 0.10]])
    by_max = RouterSpec(groups=3, top_groups=1, group_score="max", renormalize=False)
    by_sum = by_max.model_copy(update={"group_score": "top2-sum"})
    assert router(by_max, 6, 2).choose(logits).experts.tolist() == [[0, 1]]
    assert router(by_sum, 6, 2).choose(logits).experts.tolist() == [[2, 3]]


def test_softmax_and_sigmoid_by_hand():
    logits = np.log([[1.0, 2.0, 5.0]])
    raw = {"renormalize": False}
    np.testing.assert_allclose(router(RouterSpec(**raw), 3, 2).choose(logits).weights, [[5 / 8, 2 / 8]], rtol=1e-6)
    sigmoid = router(RouterSpec(rule="sigmoid-top-k", **raw), 3, 2).choose(logits).weights
    np.testing.assert_allclose(sigmoid, [[5 / 6, 2 / 3]], rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "experts", "top_k", "words"),
    [
        (RouterSpec(), 8, 9, "top_k is 9"),
        (RouterSpec(), 8, 0, "top_k is 0"),
        (RouterSpec(groups=3), 8, 2, "do not divide"),
        (RouterSpec(groups=4, top_groups=5), 8, 2, "only 4 groups"),
        (RouterSpec(groups=4, top_groups=1), 8, 3, "fewer than top_k"),
    ],
)
def test_impossible_numbers_are_refused(spec, experts, top_k, words):
    with pytest.raises(UserError, match=words):
        router(spec, experts, top_k)


def test_unknown_rule_names_the_nearest():
    with pytest.raises(UnknownNameError, match="softmax-top-k"):
        router(RouterSpec(rule="softmax-topk"), 8, 2)
