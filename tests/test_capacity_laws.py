"""The kernels of capacity number by number: words to uniforms, races to gates, who is next; by hand or a plain twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import exp1
from test_capacity_overflow import mix, word_of

from moesim.routing import _capacity_kernels as kernels
from moesim.routing.capacity import DIALECTS, CapacityRule
from moesim.routing.overflow import _falling, gates_of, settle
from moesim.specs.routing import CapacitySpec

STEP, WORD = 0x9E3779B97F4A7C15, 2**64 - 1
HALF, SEED = 1 << 63, 0xDEADBEEFCAFEF00D


def uniform(word: int) -> float:
    """The upper 52 bits of a word and a half, over 2^52."""
    return ((word >> 12) + 0.5) / 2.0**52


def of_token(seed: int, token: int, draw: int) -> float:
    """The draw-th number of a token's own stream."""
    return uniform(mix((word_of(seed, kernels.GATE_SALT, token) + draw * STEP) & WORD))


def plain_times(choices: np.ndarray, weights: np.ndarray, row: np.ndarray, seed: int) -> np.ndarray:
    """Arrivals of each token's choices: the next after Exp(what is left of the weights)."""
    times = np.full(choices.shape, math.inf)
    for t, chosen in enumerate(choices):
        now, left = 0.0, weights[row[t]].sum()
        for k, expert in enumerate(chosen):
            if expert < weights.shape[1]:
                now -= math.log(of_token(seed, t, k + 1)) / max(left, weights[row[t], expert])
                left -= weights[row[t], expert]
                times[t, k] = now
    return times


def plain_rest(chosen: np.ndarray, weight: np.ndarray, last: float, seed: int, token: int) -> float:
    """The other experts' sum: log-normal with the mean and variance of 1 / (t + X / w), X from Exp(1)."""
    others = np.array([w for e, w in enumerate(weight) if e not in chosen and w > 0.0])
    means = others * np.exp(others * last) * exp1(others * last)
    mean, variance = means.sum(), (others * (1 / last - means) - means**2).sum()
    spread = math.log1p(min(variance, mean / last) / mean**2)
    radius = math.sqrt(-2.0 * math.log(of_token(seed, token, len(chosen) + 1)))
    normal = radius * math.cos(2.0 * math.pi * of_token(seed, token, len(chosen) + 2))
    return mean * math.exp(math.sqrt(spread) * normal - spread / 2)


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """30 tokens of three rows of ten experts, four choices each, some fewer; one expert that nobody can choose."""
    generator = np.random.default_rng(3)
    weights = np.exp(generator.standard_normal((3, 10)))
    weights[:, 9] = 0.0
    row = np.arange(30) % 3
    choices = np.argsort(-(np.log(weights[row, :9]) + generator.gumbel(size=(30, 9))), axis=1)[:, :4].astype(np.uint16)
    choices[::5, 2:] = 10
    return choices, weights, row


def test_a_word_is_a_number_between_0_and_1() -> None:
    for word in (0, 1, 4095, 4096, HALF, WORD, 0x123456789ABCDEF0):
        assert kernels.uniform(np.uint64(word)) == uniform(word)
    assert kernels.uniform(np.uint64(0)) == 2.0**-53
    assert kernels.uniform(np.uint64(WORD)) == 1.0 - 2.0**-53


def test_a_choice_among_the_open_is_in_proportion_and_takes_what_is_not_held() -> None:
    weight, open_ = np.array([1.0, 2.0, 5.0, 1.0, 0.0]), np.array([0, 1, 3, 4], np.int32)
    held = np.array([0, 0, 0, 7, 0, 0], np.int32)
    # Of 0, 1, 4 with weights 1, 2, 0: a third of the words, then the rest; 3 is held, 2 is not open.
    for share, place in ((0.0, 0), (0.333, 0), (0.334, 1), (0.999999, 1)):
        assert kernels.draw_open(weight, open_, held, 7, np.uint64(int(share * 2**64))) == place
    # Stamped by another token, 3 is free: four in all.
    for share, place in ((0.249, 0), (0.251, 1), (0.749, 1), (0.751, 2)):
        assert kernels.draw_open(weight, open_, held, 8, np.uint64(int(share * 2**64))) == place
    assert kernels.draw_open(weight, open_[:0], held, 7, np.uint64(5)) == -1
    assert kernels.draw_open(weight, np.array([3, 4], np.int32), held, 7, np.uint64(HALF)) == -1


def test_the_best_of_the_open() -> None:
    score, held = np.array([0.5, 0.9, 0.1, 0.9]), np.array([0, 3, 0, 0, 0], np.int32)
    assert kernels.best_open(score, np.array([0, 1, 2], np.int32), held, 1) == 1
    assert kernels.best_open(score, np.array([0, 1, 2], np.int32), held, 3) == 0
    assert kernels.best_open(score, np.array([2, 1, 3], np.int32), held, 0) == 1
    assert kernels.best_open(score, np.array([1], np.int32), held, 3) == -1
    assert kernels.best_open(-score, np.array([0, 2], np.int32), held, 1) == 1


def test_copies_of_full_experts_line_up() -> None:
    """Experts 1 and 2 are full; tokens come last to first."""
    choices, over = np.array([1, 0, 2, 3, 0, 2], np.uint16), np.array([False, True, True, False])
    for choice_major, lined in ((True, [2, 0, 5]), (False, [5, 2, 0])):
        queue = np.empty(6, np.int32)
        count = kernels.find_contested(choices, 2, np.array([2, 1, 0], np.int32), over, choice_major, queue)
        assert queue[:count].tolist() == lined


def test_random_keys_are_of_the_copy_and_end_with_its_place() -> None:
    queue, keys = np.array([4, 0, 9], np.int32), np.empty(3, np.uint64)
    kernels.random_keys(queue, np.uint64(SEED), keys)
    for place, (copy, key) in enumerate(zip(queue.tolist(), keys.tolist(), strict=True)):
        assert key & 0xFFFFFFFF == place
        assert key >> 32 == word_of(SEED, kernels.ORDER_SALT, copy) >> 32


def test_streams_of_different_use_have_nothing_in_common() -> None:
    words = [{word_of(seed, salt, index) for index in range(64) for seed in range(4)} for salt in salts()]
    assert len(set.union(*words)) == 3 * 64 * 4


def salts() -> tuple[int, ...]:
    """Salts of the order, of what overflows, and of gates."""
    return int(kernels.ORDER_SALT), int(kernels.OVERFLOW_SALT), int(kernels.GATE_SALT)


def test_races_by_the_plain_twin() -> None:
    choices, weights, row = drawn()
    times = np.empty(choices.shape)
    kernels.draw_times(choices.ravel(), weights, row.astype(np.int32), np.uint64(SEED), times)
    np.testing.assert_allclose(times, plain_times(choices, weights, row, SEED), rtol=1e-12)


@pytest.mark.parametrize("gating", ["softmax", "renormalized", "sigmoid"])
def test_gates_by_the_plain_twin(gating: str) -> None:
    """Of a softmax the others' sum is read from a table whose rows are an eighth of a log apart."""
    choices, weights, row = drawn()
    times = plain_times(choices, weights, row, SEED)
    powers = 1.0 / times
    if gating == "sigmoid":
        exact = powers / (1.0 + powers)
    else:
        total = powers.sum(axis=1)
        if gating == "softmax":
            there = [np.isfinite(one) for one in times]
            total = total + [
                plain_rest(chosen, weights[row[t]], times[t][there[t]][-1], SEED, t) for t, chosen in enumerate(choices)
            ]
        exact = powers / total[:, None]
    found = gates_of(choices, weights, row, SEED, gating)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, exact, rtol=0.01 if gating == "softmax" else 1e-6)


def test_a_sum_between_two_rows_without_the_chosen() -> None:
    table = np.array([[1.0, 2.0, 4.0, 7.0], [3.0, 2.0, 8.0, 13.0], [0.0, 0.0, 0.0, 0.0]])
    of = np.array([0, 3], np.uint16)  # 3: none
    assert kernels.unchosen(0.25, of, table) == pytest.approx(0.75 * 6 + 0.25 * 10)
    assert kernels.unchosen(1.5, of, table) == pytest.approx(0.5 * 10)
    assert kernels.unchosen(2.0, of, table) == 0.0
    assert kernels.unchosen(0.0, np.array([0, 1, 2], np.uint16), table) == 0.0
    assert kernels.unchosen(0.0, np.array([2, 2], np.uint16), table) == 0.0


def test_one_row_of_the_table() -> None:
    """Mean and variance of 1 / (t + X / w) at t and an eighth of a log later; what is never chosen has none."""
    weight, mean, variance = np.array([0.5, 0.0, 3.0]), np.empty((2, 4)), np.empty((2, 4))
    kernels.tabulate(weight, math.log(0.7), mean, variance)
    for p, t in enumerate((0.7, 0.7 * math.exp(0.125))):
        u = weight[[0, 2]] * t
        exact = weight[[0, 2]] * np.exp(u) * exp1(u)
        spread = weight[[0, 2]] * (1 / t - exact) - exact**2
        assert mean[p, [0, 2]] == pytest.approx(exact, rel=1e-9)
        assert variance[p, [0, 2]] == pytest.approx(spread, rel=1e-7)
        assert (mean[p, 1], variance[p, 1]) == (0.0, 0.0)
        assert (mean[p, 3], variance[p, 3]) == (pytest.approx(exact.sum()), pytest.approx(spread.sum()))


def test_gates_of_arrivals() -> None:
    times, rest = np.array([[0.5, 2.0, math.inf]]), np.array([1.5])
    for law, exact in (
        (kernels.SOFTMAX, [2 / 4, 0.5 / 4, 0.0]),
        (kernels.RENORMALIZED, [2 / 4, 0.5 / 4, 0.0]),
        (kernels.SIGMOID, [2 / 3, 1 / 3, 0.0]),
    ):
        gates = np.empty((1, 3), np.float32)
        kernels.fill_gates(times, rest, law, gates)
        assert gates[0] == pytest.approx(exact)


def test_the_others_sum_of_every_token() -> None:
    """The last to arrive stands at the table's end, between two of its rows like the others."""
    choices, weights, row = drawn()
    times, rest = plain_times(choices, weights, row, SEED), np.zeros(30)
    tokens = np.flatnonzero(row == 1)
    kernels.rest_of_row(choices.ravel(), weights[1], tokens, times, np.uint64(SEED), rest)
    last = np.array([one[np.isfinite(one)][-1] for one in times])
    exact = [plain_rest(choices[t], weights[1], last[t], SEED, t) for t in tokens.tolist()]
    np.testing.assert_allclose(rest[tokens], exact, rtol=0.003)
    assert not rest[row != 1].any()


def test_no_choice_is_spelt_in_two_ways() -> None:
    choices, weights, row = drawn()
    named = np.where(choices == 10, -1, choices.astype(int))
    np.testing.assert_array_equal(gates_of(named, weights, row, 5), gates_of(choices, weights, row, 5))
    assert (gates_of(named, weights, row, 5)[named < 0] == 0.0).all()


def test_values_fall_whatever_their_sign_and_equal_ones_keep_their_order() -> None:
    values = np.array([0.5, -2.0, 3.0, 0.5, -0.25, 0.0, -2.0, 3.0], np.float32)
    assert _falling(values).tolist() == [2, 7, 0, 3, 5, 4, 1, 6]


def test_tutel_rounds_tokens_up_to_whole_ones_of_each_expert() -> None:
    """64 tokens over 16 experts are 4, 65 are 5, each of two choices by itself."""
    found = [DIALECTS["tutel"].rows(1.0, tokens, 16, 2) for tokens in (64, 65, 80, 81)]
    assert found == [8, 10, 10, 12]


def test_only_those_who_say_so_stop_at_the_number_of_tokens() -> None:
    found = {name: rule.rows(64.0, 10, 2, 1) for name, rule in DIALECTS.items()}
    assert found == {**dict.fromkeys(DIALECTS, 320), "mesh-tf": 10}
    assert not CapacityRule(1.0, DIALECTS["megatron"]).per_rank


def test_two_rows_of_the_table_hold_all_between_them() -> None:
    """The first token's last arrival is on a row, the other's most of a step behind it, whatever lies between."""
    weights, seed = np.array([[1.0, 3.0, 0.5, 2.0]]), 7
    times = np.array([[0.2, 0.8], [0.1, 0.8 * math.exp(0.97 * kernels.STRIDE)]])
    choices, rest = np.array([[0, 1], [3, 1]], np.uint16), np.zeros(2)
    kernels.rest_of_row(choices.ravel(), weights[0], np.arange(2), times, np.uint64(seed), rest)
    exact = [plain_rest(chosen, weights[0], times[t, 1], seed, t) for t, chosen in enumerate(choices)]
    np.testing.assert_allclose(rest, exact, rtol=0.003)


def test_others_that_weigh_a_trillionth_are_nothing() -> None:
    """Less than a billionth of the least chosen one's own power is left out, more is not."""
    times, choices, seed = np.array([[0.2, 0.25]]), np.array([[0, 1]], np.uint16), 7
    for other, there in ((1e-12, False), (1e-8, True)):
        weight, rest = np.array([1.0, 1.0, other]), np.full(1, -1.0)
        kernels.rest_of_row(choices.ravel(), weight, np.arange(1), times, np.uint64(seed), rest)
        assert (rest[0] > 0.0) == there
        assert rest[0] >= 0.0


def test_what_is_random_is_of_seed_0_unless_said() -> None:
    choices, weights, row = drawn()
    np.testing.assert_array_equal(gates_of(choices, weights, row), gates_of(choices, weights, row, 0, "softmax"))
    rule = CapacityRule(1.0, DIALECTS["megatron"].changed(CapacitySpec(factor=1.0, priority="random")), "reroute")
    rows, found = np.full(10, 3), []
    for seed in ({}, {"seed": 0}, {"seed": 1}):
        found.append(settle(rule, choices, rows, **seed).choices)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
