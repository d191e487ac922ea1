"""What training does to popularity: growth collapses, losses and biases hold it, each as its law says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from moesim.randomness import Streams
from moesim.routing.balancing import balance, history
from moesim.routing.inclusion import inclusion
from moesim.routing.loads import NEVER, layer_weights, tenant_logs
from moesim.specs.routing import Balancing, LoadProfile, Newcomers, Tenants

E, K = 32, 4


@pytest.fixture
def logs() -> np.ndarray:
    return np.random.default_rng(2).normal(0.0, 0.8, (3, E))


def load(log_weights: np.ndarray) -> np.ndarray:
    return inclusion(np.exp(log_weights), K) * E / K


def spread(log_weights: np.ndarray) -> float:
    return float(load(log_weights).max(axis=-1).mean())


def test_no_steps_change_nothing(logs):
    for kind in ("none", "auxiliary-loss", "z-loss", "bias-update"):
        after = balance(logs, K, Balancing(kind=kind, rate=0.1, growth=0.1, steps=0))
        np.testing.assert_allclose(after, logs - logs.mean(axis=-1, keepdims=True), atol=1e-12)


def test_growth_alone_collapses(logs):
    """The favourites win more and more, until K experts have nearly all tokens: max/mean comes near E / K."""
    told = history(logs, K, Balancing(kind="none", growth=0.05, steps=400), every=50)
    skew = [maximum for _, maximum, _ in told]
    idle = [share for _, _, share in told]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(skew))
    assert skew[-1] > 0.9 * E / K
    assert idle[-1] > 0.8 > idle[0]


@pytest.mark.parametrize("kind", ["auxiliary-loss", "bias-update"])
def test_a_balancing_rule_balances(logs, kind):
    after = balance(logs, K, Balancing(kind=kind, rate=0.01 if kind == "bias-update" else 0.5, steps=5000))
    assert spread(logs) > 2.0
    assert spread(after) < 1.02


def test_balance_holds_against_growth(logs):
    """What an auxiliary loss leaves is where it is as strong as the growth; more of it leaves less."""
    left = [
        spread(balance(logs, K, Balancing(kind="auxiliary-loss", rate=rate, growth=0.02, steps=3000)))
        for rate in (0.0, 0.01, 0.1)
    ]
    assert left[0] > 0.9 * E / K
    assert left[2] <= left[1] < left[0]
    assert left[2] < 1.05


def test_a_bias_moves_by_its_rate_and_no_more(logs):
    one = balance(logs, K, Balancing(kind="bias-update", rate=0.003, steps=1))
    moved = one - (logs - logs.mean(axis=-1, keepdims=True))
    for row, over in zip(moved, load(logs) > 1.0, strict=True):  # the walk keeps the mean: differences count
        assert np.ptp(row[over]) < 1e-12
        assert np.ptp(row[~over]) < 1e-12
        assert row[~over][0] - row[over][0] == pytest.approx(2 * 0.003)


def test_the_auxiliary_loss_steps_down_its_own_gradient(logs):
    """One step equals -rate times the numerical gradient of E sum_e f_e P_e with f held fixed, as it is trained."""
    rate, small = 1e-3, 1e-6
    centred = logs - logs.mean(axis=-1, keepdims=True)
    f = load(centred)
    moved = balance(centred, K, Balancing(kind="auxiliary-loss", rate=rate, steps=1)) - centred

    def loss(x: np.ndarray) -> float:
        shares = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
        return float(E * (f[0] * shares).sum())

    gradient = np.array([(loss(centred[0] + small * step) - loss(centred[0] - small * step)) / (2 * small)
                         for step in np.eye(E)])  # fmt: skip
    step = -rate * gradient
    np.testing.assert_allclose(moved[0], step - step.mean(), rtol=1e-3, atol=1e-9)


def test_a_z_loss_pulls_the_largest_logits_most(logs):
    after = balance(logs, K, Balancing(kind="z-loss", rate=0.05, steps=200))
    assert 1.0 < spread(after) < spread(logs)


def test_newcomers_begin_unpopular():
    profile = LoadProfile(log_normal=0.5, newcomers=Newcomers(experts=8, popularity=0.1))
    weights = layer_weights(profile, E, 2, K, Streams(0))
    np.testing.assert_allclose(weights[:, 24:].mean(axis=1) / weights[:, :24].mean(axis=1), 0.1)
    nobody = layer_weights(LoadProfile(newcomers=Newcomers(experts=8, popularity=0.0)), E, 1, K, Streams(0))
    assert inclusion(nobody, K)[0, 24:].max() < 1e-12


def test_tenants_have_experts_of_their_own():
    logs = tenant_logs(Tenants(count=3, experts=2, preference=4.0), 10)
    assert (logs[:, :4] == 0.0).all()
    for tenant in range(3):
        own = np.arange(4 + 2 * tenant, 6 + 2 * tenant)
        np.testing.assert_allclose(logs[tenant, own], np.log(4.0))
        others = np.setdiff1d(np.arange(4, 10), own)
        assert (logs[tenant, others] == NEVER).all()
