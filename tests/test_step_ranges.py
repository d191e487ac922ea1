"""Ranges after a few steps of one's own, and of stacks that no row tells: nine in ten further steps lie inside.

Fits are drawn by the hundred, so steps are priced along the law's slopes, taken once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest

import moesim
from moesim.calibration import step_fit
from moesim.calibration.step_entries import own_reach
from moesim.calibration.step_fit import STACKS, fit, known, read_steps
from moesim.calibration.step_rows import Floats, Name, Step
from moesim.randomness import Streams
from moesim.validation.cases import SHIPPED, Case, read

RATE = "tokens_per_second_per_gpu"
LEFT_OUT = ("nemo-24.07", "moe-parallel-folding")
# Layers, width, heads, tensor, pipeline, GPUs, batch, micro-batch, TFLOP/s a GPU by the paper's count of products:
# Megatron-LM on A100, arXiv:2104.04473, table 1.
MEGATRON = (
    (24, 2304, 24, 1, 1, 32, 512, 16, 137),
    (30, 3072, 32, 2, 1, 64, 512, 16, 138),
    (36, 4096, 32, 4, 1, 128, 512, 16, 142),
    (40, 6144, 48, 8, 1, 256, 1024, 8, 135),
    (48, 8192, 64, 8, 2, 512, 1536, 4, 138),
)
# GPUs, format, tokens/s a GPU of Llama 3.1 8B on H100, compiled: torchtitan, arXiv:2410.06511, tables 1 and 2.
TORCHTITAN = ((8, "bf16", 6674.0), (8, "fp8", 9409.0), (128, "bf16", 6482.0), (128, "fp8", 9319.0))


def megatron(row: tuple[int, ...]) -> Case:
    layers, width, heads, tensor, pipeline, gpus, batch, micro, rate = row
    flops = 96 * 2048 * layers * width**2 * (1 + 2048 / (6 * width) + 51200 / (16 * layers * width))
    model = {"name": "gpt", "layers": layers, "moe_layers": 0, "d_model": width, "n_heads": heads, "n_kv_heads": heads,
             "head_dim": width // heads, "d_ff_dense": 4 * width, "vocab": 51200, "gated": False}  # fmt: skip
    return published(
        "megatron-lm",
        {"model": model, "cluster": {"gpu": "a100-sxm-80g", "gpus": gpus}, "recompute": "full",
         "parallelism": {"tensor": tensor, "pipeline": pipeline, "data_sharding": "none"},
         "workload": {"sequence_length": 2048, "global_batch": batch, "micro_batch": micro},
         "overlap": {"data_parallel": False}},
        2048 * rate * 1e12 / flops,
    )  # fmt: skip


def torchtitan(row: tuple[int, str, float]) -> Case:
    gpus, word, rate = row
    return published(
        "torchtitan",
        {"model": "llama-3.1-8b", "cluster": {"gpu": "h100-sxm", "gpus": gpus}, "precision": {"compute": word},
         "parallelism": {"data_sharding": "full"}, "recompute": ["core_attn"],
         "workload": {"sequence_length": 8192, "global_batch": 2 * gpus, "micro_batch": 2}},
        rate,
    )  # fmt: skip


def published(stack: str, scenario: dict[str, Any], rate: float) -> Case:
    return Case(f"{stack}/{rate:g}", "train_step", "", {RATE: rate}, scenario={**scenario, "stack": stack})


class Line:
    """The law along its slopes: log times linear in log coefficients."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.start = step_fit._coefficients(steps)
        said = np.log(step_fit.predict(steps, self.start))
        slopes = step_fit._slopes(steps, self.start, said)
        self.said = {step.id: (base, row) for step, base, row in zip(steps, said, slopes, strict=True)}
        self.place = {name: at for at, name in enumerate(self.start)}

    def predict(self, steps: Sequence[Step], values: Mapping[Name, float]) -> Floats:
        moves = np.zeros(len(self.place))
        for name, value in values.items():
            moves[self.place[name]] = log(value / self.start[name])
        return np.exp([self.said[step.id][0] + self.said[step.id][1] @ moves for step in steps])


@pytest.fixture(scope="module")
def families() -> dict[str, list[Step]]:
    """Steps by stack; those that the catalog holds under another name, so that it does not."""
    cases = [case for case in read([SHIPPED / "train-step.yaml"]) if not case.known]
    found = {"megatron-lm": list(map(megatron, MEGATRON)), "torchtitan": list(map(torchtitan, TORCHTITAN))}
    for stack in LEFT_OUT:
        own = [case for case in cases if case.scenario and case.scenario["stack"] == stack]
        own = own[:: max(1, len(own) // 12)]
        found[stack] = [replace(case, scenario={**(case.scenario or {}), "stack": f"our {stack}"}) for case in own]
    return {stack: read_steps(own) for stack, own in found.items()}


@pytest.fixture(scope="module")
def line(families: dict[str, list[Step]]) -> Line:
    return Line([step for own in families.values() for step in own])


def judged(line: Line, own: list[Step], others: list[Step]) -> tuple[Floats, float]:
    """Misses in log time of other steps after a fit to one's own, and the reach of the range then stated."""
    made = fit(own)
    misses = np.log(made.predicted / [step.seconds for step in own])
    spread = known((STACKS, "time_factor", own[0].scenario.stack))
    return np.log(line.predict(others, made.values) / [step.seconds for step in others]), own_reach(
        misses, spread, float("inf")
    )


@pytest.mark.parametrize("count", [1, 3, 10])
def test_ranges_after_a_few_own_steps_hold_nine_in_ten_others(
    families: dict[str, list[Step]], line: Line, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Of stacks that were left out, as they are, a tenth faster and half as slow again."""
    monkeypatch.setattr(step_fit, "predict", line.predict)
    draw, hits = Streams(0).generator(f"test/own steps/{count}"), list[bool]()
    for factor in (0.9, 1.0, 1.5):
        for steps in families.values():
            off = [replace(step, seconds=factor * step.seconds) for step in steps]
            for _ in range(30 if len(off) > count + 1 else 0):
                order = draw.permutation(len(off))
                misses, reach = judged(line, [off[at] for at in order[:count]], [off[at] for at in order[count:]])
                hits += (np.abs(misses) <= reach).tolist()
    assert len(hits) >= 300
    assert 0.80 <= np.mean(hits) <= 0.97, np.mean(hits)


def test_one_own_step_more_than_halves_the_error_of_a_stack_that_is_off(
    families: dict[str, list[Step]], line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published steps of stacks that no row of the catalog tells, each in turn the one that was measured. Where the law
    is right already, one step brings its own scatter in, and little more."""
    monkeypatch.setattr(step_fit, "predict", line.predict)
    for stack, steps in families.items():
        before = np.log(line.predict(steps, {}) / [step.seconds for step in steps])
        after = [
            np.abs(judged(line, [step], [other for other in steps if other is not step])[0]).mean() for step in steps
        ]
        if stack in LEFT_OUT:
            assert np.mean(after) < np.abs(before).mean() + 0.03
        else:
            assert np.mean(after) < 0.5 * np.abs(before).mean()


def test_more_own_steps_narrow_the_range_towards_their_scatter() -> None:
    reaches = [own_reach(np.full(count, 0.02), 0.25, float("inf")) for count in (1, 3, 10, 100)]
    assert reaches == sorted(reaches, reverse=True)
    assert 0.13 < reaches[0] < 0.2
    assert reaches[-1] < 0.05
    # A stack that the catalog holds is not known less for a step that agrees, but for one that does not.
    assert own_reach(np.array([0.01]), 0.06, 0.08) == 0.08
    assert own_reach(np.array([0.2]), 0.06, 0.08) > 0.3


SCENARIO = {
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 64},
    "parallelism": {"expert": 8, "data_sharding": "optimizer"},
    "workload": {"kind": "training", "sequence_length": 4096, "global_batch": 64, "micro_batch": 1},
    "routing": {"load": "uniform"},
}


@pytest.mark.parametrize("stack", [{}, {"stack": "torchtitan"}])
def test_an_unlisted_stack_is_assumed_and_its_range_holds_how_stacks_differ(stack: dict[str, str]) -> None:
    listed = moesim.estimate(moesim.load({**SCENARIO, "stack": "megatron-bridge-26.02"}))
    found = moesim.estimate(moesim.load({**SCENARIO, **stack}))
    step, before = found.summary["step_time"], listed.summary["step_time"]
    assert step.value == before.value
    assert before.high / before.value < 1.15
    assert before.value / before.low < 1.15
    assert min(step.high / step.value, step.value / step.low) >= 1.2
    assert step.high / step.value > 1.4 > step.value / step.low
    assert step.basis == "assumed"
    assert any(
        "megatron-bridge-26.02 answered" in note and "20 % faster to 45 % slower" in note for note in found.notes
    )
    assert "software stack: megatron-bridge-26.02" in listed.notes
