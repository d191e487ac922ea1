"""The screening against the closed form that it stands for: every answer of random legal layouts, and its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from screening_fixture import Case, drawn

import moesim
from moesim.costs.memory import verdict
from moesim.screening import run as screening_run
from moesim.screening import scenario_of, screen
from moesim.screening.columns import columns
from moesim.screening.exchanges import NAMES, resolved
from moesim.screening.memo import Memo
from moesim.screening.memory import PARTS
from moesim.screening.reference import one_by_one
from moesim.specs.workload import OffloadSpec
from moesim.step.model import StepModel

CASES = (
    Case("deepseek-v3", "h800-sxm", 512, "deepseek-v3-like", compute="fp8-block"),
    Case("deepseek-v3", "gb200-nvl72", 576, "bias-balanced", sharding="gradients"),
    Case("qwen3-235b-a22b", "gb200-nvl72", 144, "uniform"),
    Case("mixtral-8x7b", "h100-sxm", 128, "mixtral-like", sharding="full"),
    Case("gpt-oss-120b", "b200-sxm", 128, {"zipf": 0.4}),
    Case("olmoe-1b-7b", "h100-sxm", 64, "uniform", sharding="none"),
    Case("llama-3.1-70b", "h100-sxm", 256, "uniform"),
    Case("deepseek-v2", "mi300x", 128, {"log_normal": 1.2, "sequence_tilt": 0.7}),
)
EXACT = 1e-6
"""Where nothing is interpolated but exchanges of loads between the least and the most uneven one."""
LONG = 0.015
"""Where a long schedule is extended from two shorter ones."""
SAME = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}-{case.gpu}")
def test_screening_is_the_closed_form(case: Case) -> None:
    base, choices, candidates = drawn(case, 8, 7)
    found = screen(base, choices, candidates)
    true = one_by_one(base, choices, candidates, lambda share: None)
    step, exposed, bubble, dropped = true[:, :4].T
    assert np.median(np.abs(found.step_seconds / step - 1)) < EXACT
    np.testing.assert_allclose(found.step_seconds, step, rtol=LONG)
    np.testing.assert_allclose(found.exposed_communication_seconds, exposed, rtol=2e-3, atol=1e-3 * step.min())
    assert np.abs(found.bubble_seconds - bubble).max() < LONG * step.max()
    np.testing.assert_allclose(found.dropped_fraction, dropped, atol=1e-9)
    np.testing.assert_allclose(found.memory_parts, true[:, 4:], rtol=EXACT, atol=1.0)
    np.testing.assert_allclose(found.memory_bytes, true[:, 4:].sum(axis=1), rtol=EXACT)
    have = base.cluster.gpu.memory
    said = [[verdict(need, have) for need in needs] for needs in (found.memory_bytes, true[:, 4:].sum(axis=1))]
    assert said[0] == said[1]


def test_summary_of_estimate_says_the_same() -> None:
    base, choices, candidates = drawn(CASES[0], 4, 11)
    found = screen(base, choices, candidates)
    for row in range(len(candidates)):
        summary = moesim.estimate(scenario_of(base, choices, candidates, row), even_if_infeasible=True).summary
        told = {
            "step_time": found.step_seconds,
            "exposed_communication_time": found.exposed_communication_seconds,
            "memory_per_gpu": found.memory_bytes,
            "dropped_token_fraction": found.dropped_fraction,
        }
        for name, values in told.items():
            assert values[row] == pytest.approx(summary[name].value, rel=LONG, abs=1e-9), name


def test_automatic_dispatcher_is_the_movers() -> None:
    base, choices, candidates = drawn(CASES[1], 12, 3)
    every = np.zeros(len(candidates), dtype=np.int64)
    automatic = type(candidates)(**{**vars(candidates), "dispatcher": every})
    found = resolved(columns(base, choices, automatic))
    wanted = [
        StepModel(scenario_of(base, choices, automatic, row)).mover.dispatcher.name for row in range(len(automatic))
    ]
    several = automatic.expert > 1
    assert [NAMES[place] for place in found[several]] == list(np.array(wanted)[several])


def test_blocks_and_order_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    base, choices, candidates = drawn(CASES[3], 12, 5)
    whole = screen(base, choices, candidates)
    backwards = np.arange(len(candidates))[::-1]
    monkeypatch.setattr(screening_run, "BLOCK", 5)
    again = screen(base, choices, candidates.rows(backwards))
    np.testing.assert_allclose(again.step_seconds[backwards], whole.step_seconds, **SAME)
    np.testing.assert_allclose(again.memory_parts[backwards], whole.memory_parts, **SAME)


def test_same_candidates_give_the_same_bytes() -> None:
    base, choices, candidates = drawn(CASES[4], 10, 2)
    first, second = (screen(base, choices, candidates) for _ in range(2))
    for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
        assert one == other if isinstance(one, tuple) else one.tobytes() == other.tobytes()


def test_threads_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    base, choices, candidates = drawn(CASES[0], 12, 6)
    monkeypatch.setattr(screening_run, "BLOCK", 3)
    found = []
    for workers in (1, 3):
        monkeypatch.setattr(screening_run, "WORKERS", workers)
        # Another object of the same choices: nothing is known of it from before.
        found.append(screen(base, replace(choices), candidates))
    for name in ("step_seconds", "exposed_communication_seconds", "bubble_seconds", "memory_parts", "dropped_fraction"):
        assert getattr(found[0], name).tobytes() == getattr(found[1], name).tobytes()


def test_small_batches_say_what_one_large_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laws that were asked for a batch answer for the next one, and are not asked again."""
    base, choices, candidates = drawn(CASES[2], 12, 8)
    asked: list[str] = []
    answer = Memo.answer

    def heard(memo: Memo, name: str, key: object, ask: Callable[[], Any]) -> Any:
        return answer(memo, name, key, lambda: (asked.append(name), ask())[1])

    monkeypatch.setattr(Memo, "answer", heard)
    alone = [screen(base, replace(choices), candidates.rows(slice(row, row + 1))) for row in range(len(candidates))]
    apart = len(asked)
    asked.clear()
    joined = [screen(base, choices, candidates.rows(slice(row, row + 1))) for row in range(len(candidates))]
    assert len(asked) < apart
    for one, other in zip(alone, joined, strict=True):
        np.testing.assert_allclose(other.step_seconds, one.step_seconds, **SAME)
        np.testing.assert_allclose(other.memory_parts, one.memory_parts, **SAME)


def test_progress_grows_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    base, choices, candidates = drawn(CASES[5], 6, 1)
    monkeypatch.setattr(screening_run, "BLOCK", 2)
    monkeypatch.setattr(screening_run, "AT_ONCE", 4)
    heard: list[float] = []
    screen(base, choices, candidates, lambda what, share: heard.append(share))
    assert heard == sorted(heard)
    assert heard[-1] == pytest.approx(1.0)
    assert len(heard) == 3


def test_no_candidates_are_no_answers() -> None:
    base, choices, candidates = drawn(CASES[5], 1, 1)
    found = screen(base, choices, candidates.rows(slice(0, 0)))
    assert found.memory_parts.shape == (0, len(PARTS))
    assert found.step_seconds.size == 0


def test_scenario_of_a_candidate_forgets_what_was_known_of_the_base() -> None:
    base, choices, candidates = drawn(CASES[6], 6, 9)
    assert base.microbatches
    for row in range(len(candidates)):
        found = scenario_of(base, choices, candidates, row)
        data = found.cluster.gpus // (candidates.tensor * candidates.pipeline * candidates.context)[row]
        assert found.microbatches == base.workload.global_batch // (data * candidates.micro_batch[row])
        assert found.key != base.key


def test_experts_in_host_memory_are_answered_one_by_one() -> None:
    base, choices, candidates = drawn(CASES[5], 3, 4)
    offload = OffloadSpec(resident=1, host_bandwidth=5e10)
    kept = base.model_copy(update={"placement": base.placement.model_copy(update={"offload": offload})})
    found = screen(kept, choices, candidates)
    true = one_by_one(kept, choices, candidates, lambda share: None)
    np.testing.assert_array_equal(found.step_seconds, true[:, 0])
    assert (found.memory_bytes < screen(base, choices, candidates).memory_bytes).any()
