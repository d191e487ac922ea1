"""The robust fit on log time: what is known comes back, what rows do not tell is kept and said so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from moesim.calibration.solve import Floats, Name, solve

SIZE = np.geomspace(1e3, 1e9, 60)
START: dict[Name, float] = {("law", "alpha"): 1e-5, ("law", "rate"): 1e11}


def line(values: Mapping[Name, float]) -> Floats:
    return np.asarray(values["law", "alpha"] + SIZE / values["law", "rate"])


def test_known_coefficients_come_back_through_noise() -> None:
    truth: dict[Name, float] = {("law", "alpha"): 3e-5, ("law", "rate"): 4e10}
    noisy = line(truth) * np.exp(0.05 * np.random.default_rng(0).normal(size=SIZE.size))
    found = solve(START, line, noisy, np.ones(SIZE.size))
    assert found.kept == {}
    for name, value in truth.items():
        assert found.values[name] == pytest.approx(value, rel=4 * found.errors[name])
        assert 0.002 < found.errors[name] < 0.05


def test_a_few_blocked_runs_do_not_bend_the_fit() -> None:
    truth: dict[Name, float] = {("law", "alpha"): 3e-5, ("law", "rate"): 4e10}
    seconds = line(truth)
    seconds[::10] *= 50
    found = solve(START, line, seconds, np.ones(SIZE.size))
    assert found.values["law", "rate"] == pytest.approx(4e10, rel=0.05)
    assert found.values["law", "alpha"] == pytest.approx(3e-5, rel=0.05)


def test_a_row_of_no_weight_is_not_heard() -> None:
    truth: dict[Name, float] = {("law", "alpha"): 3e-5, ("law", "rate"): 4e10}
    seconds, weights = line(truth), np.ones(SIZE.size)
    seconds[:20], weights[:20] = 1.0, 0.0
    found = solve(START, line, seconds, weights)
    assert found.values["law", "rate"] == pytest.approx(4e10, rel=0.01)


def test_what_no_row_feels_is_kept_and_told() -> None:
    start = {**START, ("law", "unused"): 7.0}
    found = solve(start, line, line(START), np.ones(SIZE.size))
    assert found.values["law", "unused"] == 7.0
    assert found.kept == {("law", "unused"): "no row depends on it"}


def test_of_two_that_only_count_together_one_is_kept() -> None:
    def product(values: Mapping[Name, float]) -> Floats:
        return np.asarray(values["law", "alpha"] + SIZE / (values["law", "rate"] * values["law", "share"]))

    start = {**START, ("law", "share"): 0.8}
    found = solve(start, product, line({**START, ("law", "rate"): 5e10}), np.ones(SIZE.size))
    assert list(found.kept) == [("law", "share")]
    assert found.values["law", "share"] == 0.8
    assert found.values["law", "rate"] == pytest.approx(5e10 / 0.8, rel=1e-3)


def test_fewer_rows_than_coefficients_keep_what_is_too_much() -> None:
    few = SIZE[:2]

    def short(values: Mapping[Name, float]) -> Floats:
        return np.asarray(values["law", "alpha"] + few / values["law", "rate"])

    found = solve(START, short, short(START), np.ones(2))
    assert len(found.errors) <= 1
    assert any("too few" in reason or "do not determine" in reason for reason in found.kept.values())
