"""Loads: what popularity a profile gives to each layer."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from moesim.randomness import Streams
from moesim.routing.loads import layer_weights, normalized
from moesim.specs.routing import LoadProfile


@pytest.mark.parametrize("profile", [LoadProfile(), LoadProfile(zipf=(0.2, 1.5)), LoadProfile(log_normal=2.0)])
def test_positive_with_mean_one(profile):
    weights = layer_weights(profile, 64, 5, 2, Streams(1))
    assert weights.shape == (5, 64)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.mean(axis=1), 1.0)


def test_uniform_is_uniform():
    np.testing.assert_array_equal(layer_weights(LoadProfile(sequence_tilt=0.5), 8, 3, 2, Streams(1)), np.ones((3, 8)))


def test_zipf_slopes_are_spread_over_the_layers():
    weights = np.sort(layer_weights(LoadProfile(zipf=(0.2, 1.0)), 256, 5, 2, Streams(1)), axis=1)[:, ::-1]
    slopes = -np.log(weights[:, -1] / weights[:, 0]) / np.log(256)
    np.testing.assert_allclose(slopes, [0.2, 0.4, 0.6, 0.8, 1.0])
    alone = np.sort(layer_weights(LoadProfile(zipf=(0.2, 1.0)), 256, 1, 2, Streams(1)))
    assert np.log(alone[0, -1] / alone[0, 0]) / np.log(256) == pytest.approx(0.6)


def test_log_normal_has_its_deviation():
    weights = layer_weights(LoadProfile(log_normal=0.8), 4096, 2, 2, Streams(1))
    np.testing.assert_allclose(np.log(weights).std(axis=1), 0.8, rtol=4.5 / np.sqrt(2 * 4096))


def test_layers_are_shuffled_apart_and_keep_their_stream():
    few, many = (layer_weights(LoadProfile(zipf=1.0), 64, layers, 2, Streams(1)) for layers in (2, 9))
    assert (few[0].argsort() != few[1].argsort()).any()
    np.testing.assert_array_equal(few, many[:2])
    assert (few != layer_weights(LoadProfile(zipf=1.0), 64, 2, 2, Streams(2))).any()


def test_extreme_skew_leaves_no_zero():
    assert (layer_weights(LoadProfile(zipf=5.0), 4096, 1, 2, Streams(1)) > 0).all()
    assert (normalized(np.array([[0.0, -5000.0]])) > 0).all()


def test_two_laws_at_once_are_refused():
    with pytest.raises(ValidationError, match="one law"):
        LoadProfile(name="mixed", zipf=1.0, log_normal=1.0)
