"""Loads of kernel benchmarks by hand: the recipe's draws, what is handed on, and whose rows the busiest rank has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.costs.kernels import loads
from moesim.costs.kernels.loads import expert_rows, is_known
from moesim.errors import UserError


def test_draws_of_the_power_law() -> None:
    """Densities x^-1 and x^-2 from 1 to 800 of 1,000 tokens; from 0.01 to 2 where copies are no more than experts."""
    ends = np.array([[0.0, 1.0]])
    np.testing.assert_array_equal(loads._power_law(1.0, 1000, 1, ends), [[1, 999]])
    np.testing.assert_array_equal(loads._power_law(2.0, 1000, 1, ends), [[1, 999]])
    middle = np.array([[0.0, 0.5, 1.0]])
    drawn = np.array([1, 800**0.5, 800])
    np.testing.assert_array_equal(loads._power_law(1.0, 1000, 2, middle)[0], np.rint(2000 * drawn / drawn.sum()))
    drawn = np.array([1, 1 / (0.5 + 0.5 / 800), 800])
    np.testing.assert_array_equal(loads._power_law(2.0, 1000, 2, middle)[0], np.rint(2000 * drawn / drawn.sum()))
    np.testing.assert_array_equal(loads._power_law(1.0, 40, 2, np.linspace(0, 1, 80)[None])[0, -1], 5.0)
    drawn = 0.01 * 200 ** np.linspace(0, 1, 81)
    found = loads._power_law(1.0, 40, 2, np.linspace(0, 1, 81)[None])[0]
    np.testing.assert_array_equal(found, np.rint(80 * drawn / drawn.sum()))


@pytest.mark.parametrize("alpha", [0.6, 1.0, 1.2])
def test_a_draw_near_another_exponent_is_near_its_draw(alpha: float) -> None:
    uniform = np.random.default_rng(0).random((4, 16))
    near = [loads._power_law(one, 10**6, 4, uniform) for one in (alpha - 1e-5, alpha, alpha + 1e-5)]
    np.testing.assert_allclose(near[0], near[1], rtol=1e-3, atol=1.0)
    np.testing.assert_allclose(near[2], near[1], rtol=1e-3, atol=1.0)


def test_what_is_too_much_goes_to_the_emptiest_of_every_rank_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tokens wished of an expert that can have four of the eight: two for each rank's emptiest."""
    monkeypatch.setattr(loads, "_power_law", lambda *_: np.array([[10.0, 0, 0, 0]]))
    assert expert_rows("power_law_7.01", 4, 2, 4, 2, samples=1) == pytest.approx(np.array([[4.0, 2.0]]))
    # Where experts do not divide over the ranks, and where they are dealt out, all experts are levelled together.
    third = pytest.approx(np.array([[4.0, 4 / 3]]))
    assert expert_rows("power_law_7.01", 4, 2, 4, 3, samples=1) == third
    assert expert_rows("power_law_7.01_eplb", 4, 2, 4, 2, samples=1) == third


@pytest.mark.parametrize(("wished", "fitted"), [([[3, 4]], [[4, 4]]), ([[4, 4]], [[4, 4]]), ([[4, 3], [4, 4]], None)])
def test_copies_are_tokens_times_choices(wished: Any, fitted: Any) -> None:
    """One copy too few or too many by the rounding is found or taken away."""
    counts = np.asarray(wished, dtype=np.float64)
    top_k = 2 if fitted else 1
    found = loads._fitted(counts, 4, top_k, 1)[:, 0]
    assert found.sum(axis=-1) == pytest.approx(np.full(len(counts), 4.0 * top_k), abs=1e-6)
    if fitted:
        np.testing.assert_allclose(found, fitted, atol=1e-6)
    else:
        np.testing.assert_allclose(found, 2.0, atol=1e-6)


def test_a_full_rank_leaves_its_part_to_the_others() -> None:
    """One expert a rank, the first full: what is missing goes to the others in turns of a third each."""
    found = loads._fitted(np.array([[900.0, 0, 0]]), 600, 2, 3)[0, :, 0]
    assert found[0] == 600
    assert found[1] == found[2] == pytest.approx(200 * (1 + 1 / 3 + 1 / 9))


def test_names_of_loads() -> None:
    known = ["balanced", "equal", "perfect", "uniform", "Random ", "power_law_1.01", "power-law-1.2_eplb", "powerlaw.5"]
    assert all(is_known(name) for name in known)
    assert not any(is_known(name) for name in ("lumpy", "power_law", "power_law_1.01_eplbs", ""))
    for name in known[:3]:
        np.testing.assert_array_equal(expert_rows(name, 8, 2, 8, 2), [[2.0, 2, 2, 2]])
    np.testing.assert_array_equal(
        expert_rows(" Uniform", 8, 2, 8, 2, seed=3), expert_rows("uniform", 8, 2, 8, 2, seed=3)
    )


def test_rows_are_shared_and_cannot_be_changed() -> None:
    rows = expert_rows("uniform", 64, 2, 8, 4)
    assert expert_rows("uniform", 64, 2, 8, 4) is rows
    assert not rows.flags.writeable
    assert rows.shape == (loads.SAMPLES, 2)
    assert expert_rows("uniform", 64, 2, 8, 4, samples=3).shape == (3, 2)
    assert expert_rows("balanced", 64, 2, 8, 4).shape == (1, 2)
    assert not np.array_equal(expert_rows("uniform", 64, 2, 8, 4, seed=1), rows)


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "ranks", "legal"),
    [
        (1, 1, 1, 1, True), (8, 8, 8, 8, True), (0, 1, 8, 1, False), (8, 0, 8, 1, False),
        (8, 9, 8, 1, False), (8, 1, 8, 9, False), (8, 1, 8, 0, False),
    ],
)  # fmt: skip
def test_layers_that_are_none(tokens: int, top_k: int, experts: int, ranks: int, legal: bool) -> None:
    if legal:
        assert expert_rows("balanced", tokens, top_k, experts, ranks).sum() >= tokens * top_k / ranks
    else:
        with pytest.raises(UserError, match="no expert layer"):
            expert_rows("balanced", tokens, top_k, experts, ranks)
    with pytest.raises(UserError, match="no expert layer"):
        expert_rows("uniform", 8, 1, 8, 1, samples=0)


def test_few_balanced_tokens_are_spread_over_the_first_choices() -> None:
    """Two tokens of two choices, eight experts: tokens stand four apart by halves, choices four apart."""
    np.testing.assert_array_equal(loads._balanced(2, 2, 8), [[1, 0, 1, 0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(loads._balanced(4, 2, 8), [[1, 1, 1, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(loads._balanced(5, 2, 8), [[2, 1, 1, 1, 2, 1, 1, 1]])
    np.testing.assert_array_equal(loads._balanced(3, 3, 7), [[2, 2, 1, 1, 1, 1, 1]])


def test_the_busiest_of_each_sample() -> None:
    counts = np.array([[[1.0, 2], [5, 0]], [[4, 4], [7, 0]]])
    np.testing.assert_array_equal(loads._busiest(counts), [[5, 0], [4, 4]])


def test_experts_over_ranks() -> None:
    """Seven experts over three ranks: 3, 2, 2, contiguous; dealt out the largest first."""
    counts = np.arange(1.0, 8.0)[None]
    spread = [[[1, 2, 3], [4, 5, 0], [6, 7, 0]]]
    np.testing.assert_array_equal(loads.spread_out(counts, 3), spread)
    np.testing.assert_array_equal(loads.busiest_rows(counts, 3), [[6, 7, 0]])
    # 7 | 6 | 5, then 4 to the rank of 5, 3 to that of 6, 2 to that of 7, 1 to one that has a place left.
    np.testing.assert_array_equal(loads._dealt(counts, 3), [[[7, 2, 1], [6, 3, 0], [5, 4, 0]]])


def test_levels_fill_the_emptiest_and_empty_the_fullest() -> None:
    counts, target = np.array([[[1.0, 2.0, 6.0], [4.0, 8.0, 9.0]]]), np.array([[12.0, 15.0]])
    found = loads._levelled(counts, target, 10.0)
    np.testing.assert_allclose(found, [[[3, 3, 6], [4, 5.5, 5.5]]], atol=1e-6)


def test_uniform_draws_are_independent() -> None:
    """8,192 copies over 8 experts: 1,024 each, and a variance of 8,192 x 1/8 x 7/8."""
    rows = expert_rows("uniform", 4096, 2, 8, 1, samples=400)
    np.testing.assert_array_equal(rows.sum(axis=1), 8192)
    assert rows.mean() == 1024
    assert rows.var() == pytest.approx(896, rel=0.1)
