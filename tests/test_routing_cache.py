"""A cache of experts: the compiled stack distances against a plain cache, and theory against both."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from moesim.routing._cache_kernels import stack_distances
from moesim.routing.cache import expected_hits, missed


def plain_hits(choices: np.ndarray, size: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for expert in choices.ravel().tolist():
        hits += expert in held
        held[expert] = None
        held.move_to_end(expert)
        if len(held) > size:
            held.popitem(last=False)
    return hits


@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_distances_give_the_hits_of_a_plain_cache(size):
    generator = np.random.default_rng(0)
    choices = np.argsort(generator.gumbel(size=(500, 16)) - 0.2 * np.arange(16), axis=1)[:, -4:].astype(np.uint16)
    distances = stack_distances(choices, 16)
    assert distances.sum() == choices.size
    assert distances[:size].sum() == plain_hits(choices, size)


def test_characteristic_time_against_a_long_run():
    """Independent single choices: the approximation is known to be within a percent or two."""
    generator = np.random.default_rng(1)
    share = np.arange(1, 65) ** -0.8
    share /= share.sum()
    choices = generator.choice(64, size=(200_000, 1), p=share).astype(np.uint16)
    distances = stack_distances(choices, 64)
    for size in (4, 16, 40):
        theory = float((share * expected_hits(share, size, "recent")).sum())
        assert abs(distances[:size].sum() / choices.size - theory) < 0.012


def test_popular_experts_are_held_for_good():
    wanted = np.array([0.1, 0.9, 0.4, 0.4])
    np.testing.assert_array_equal(expected_hits(wanted, 2, "popular"), [0.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(expected_hits(wanted, 4, "recent"), 1.0)


@pytest.mark.parametrize("keep", ["recent", "popular"])
def test_missed_by_hand(keep):
    everyone = np.ones((3, 1, 6), bool)
    np.testing.assert_array_equal(missed(everyone, 2, keep), 4.0)
    np.testing.assert_array_equal(missed(everyone, 6, keep), 0.0)
    same = np.zeros((4, 2, 6), bool)
    same[..., :2] = True
    np.testing.assert_array_equal(missed(same, 2, keep), 0.0)


def test_recent_experts_by_hand():
    """Cache of 2: experts a b, then b c, then a b, in a circle. The one fetched last is the newest."""
    wanted = np.zeros((3, 1, 3), bool)
    wanted[0, 0, [0, 1]] = wanted[1, 0, [1, 2]] = wanted[2, 0, [0, 1]] = True
    # after "a b" both are held; "b c" fetches c and evicts a; "a b" fetches a and evicts c; "a b" again finds both
    np.testing.assert_array_equal(missed(wanted, 2, "recent")[:, 0], [0.0, 1.0, 1.0])


def test_missed_lies_near_the_expected_number():
    generator = np.random.default_rng(3)
    chance = generator.random(24) * 0.6
    wanted = generator.random((400, 1, 24)) < chance
    for keep in ("recent", "popular"):
        theory = float((chance * (1 - expected_hits(chance, 8, keep))).sum())
        assert abs(missed(wanted, 8, keep).mean() / theory - 1) < 0.12
