"""The torch twins of the router rules, of capacity and of the losses choose as the numpy ones do, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim.errors import UnknownNameError, UserError
from moesim.routing.assignment import NO_EXPERT
from moesim.routing.capacity import CapacityRule
from moesim.routing.overflow import settle
from moesim.routing.routers import router
from moesim.routing.routers.base import Batch
from moesim.routing.routers.bias_update import update_bias
from moesim.routing.routers.losses import load_balancing_loss
from moesim.routing.routers.losses import z_loss as numpy_z_loss
from moesim.specs.model import RouterSpec
from moesim.specs.routing import CapacitySpec

torch = pytest.importorskip("torch", reason="torch is not installed (extra `trace`)")

from moesim.traces import torch_routers as twins  # noqa: E402

TOKENS = 96
CASES: list[tuple[dict[str, Any], int, int, bool]] = [
    ({"rule": "softmax-top-k"}, 16, 4, False),
    ({"rule": "softmax-top-k", "renormalize": False, "scale": 16.0}, 64, 8, False),
    ({"rule": "softmax-top-k", "groups": 8, "top_groups": 3}, 32, 6, False),
    ({"rule": "noisy-top-k", "noise": 0.5}, 16, 4, False),
    ({"rule": "switch-top-1"}, 8, 1, False),
    ({"rule": "gshard-top-2"}, 8, 2, False),
    ({"rule": "gshard-top-2", "second_threshold": 0.5}, 8, 2, False),
    ({"rule": "sigmoid-top-k"}, 64, 8, False),
    ({"rule": "sigmoid-top-k", "bias": True, "scale": 2.5}, 64, 8, True),
    (
        {"rule": "sigmoid-top-k", "bias": True, "groups": 8, "top_groups": 4, "group_score": "top2-sum"},
        64,
        8,
        True,
    ),
    ({"rule": "softmax-top-k", "bias": True, "groups": 4, "top_groups": 2}, 16, 4, True),
    ({"rule": "expert-choice"}, 8, 2, False),
    ({"rule": "expert-choice"}, 16, 3, False),
    ({"rule": "top-p", "top_p": 0.6, "max_choices": 5}, 16, 4, False),
    ({"rule": "top-p", "top_p": 0.3, "renormalize": False}, 16, 4, False),
]


def logits_of(kind: str, generator: np.random.Generator, experts: int) -> np.ndarray:
    logits = generator.normal(0.0, 1.5, (TOKENS, experts))
    if kind == "float64":
        return logits
    if kind == "float32":
        return logits.astype(np.float32).astype(np.float64)
    # Quarters are full of ties, within a token and between tokens; the last rows are all equal.
    tied = np.round(logits * 4) / 4
    tied[-8:] = 0.5
    return tied


@pytest.mark.parametrize("kind", ["float64", "float32", "ties"])
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda index: f"{index}-{CASES[index][0]['rule']}")
def test_numpy_and_torch_choose_alike(case: int, kind: str) -> None:
    parameters, experts, top_k, biased = CASES[case]
    spec = RouterSpec(**parameters)
    rule = router(spec, experts, top_k)
    for seed in range(40):
        generator = np.random.default_rng([case, seed])
        logits = logits_of(kind, generator, experts)
        bias = np.round(generator.normal(0, 0.1, experts), 2) if biased else None
        sequences = (1, 4)[seed % 2]
        batch = Batch(sequence=np.repeat(np.arange(sequences), TOKENS // sequences))
        expected = rule.choose(logits, bias, batch)
        torch_bias = None if bias is None else torch.from_numpy(bias)
        found = twins.choose(spec, torch.from_numpy(logits), top_k, torch_bias, sequences=sequences)
        np.testing.assert_array_equal(found.experts.numpy(), expected.experts)
        np.testing.assert_allclose(found.weights.numpy(), expected.weights, rtol=1e-6, atol=1e-6)


def test_ties_go_to_the_lower_expert_and_the_earlier_token() -> None:
    even = torch.zeros(4, 6)
    assert twins.choose(RouterSpec(), even, 3).experts.tolist() == [[0, 1, 2]] * 4
    grouped = RouterSpec(groups=3, top_groups=2)
    assert twins.choose(grouped, even, 4).experts.tolist() == [[0, 1, 2, 3]] * 4
    by_expert = twins.choose(RouterSpec(rule="expert-choice"), even, 3).experts
    assert by_expert.tolist() == [[0, 1, 2, 3, 4, 5]] * 2 + [[NO_EXPERT] * 6] * 2


def test_gradients_reach_the_logits_through_the_weights() -> None:
    for parameters, experts, top_k, _ in CASES:
        if parameters["rule"] == "top-p" or (parameters["rule"] == "softmax-top-k" and top_k == experts):
            continue
        logits = torch.randn(24, experts, generator=torch.Generator().manual_seed(1), requires_grad=True)
        weights = twins.choose(RouterSpec(**parameters), logits, top_k).weights
        (weights * torch.arange(1, weights.shape[1] + 1)).sum().backward()
        assert torch.isfinite(logits.grad).all()
        assert (logits.grad.abs().sum(dim=1) > 0).float().mean() > 0.5


def test_the_second_of_gshard_is_drawn_with_its_chance() -> None:
    spec = RouterSpec(rule="gshard-top-2", second_threshold=0.5)
    T = 40_000
    logits = torch.tensor([[1.0, 0.0, -9.0, -9.0]]).repeat(T, 1)
    second = torch.sigmoid(torch.tensor(-1.0)).item()
    found = twins.choose(spec, logits, 2, generator=torch.Generator().manual_seed(3))
    used = (found.experts[:, 1] != NO_EXPERT).float().mean().item()
    chance = 2 * second
    assert abs(used - chance) < 4 * (chance * (1 - chance) / T) ** 0.5
    assert (found.weights[found.experts == NO_EXPERT] == 0).all()


def test_noise_is_drawn_from_the_generator_alone() -> None:
    spec = RouterSpec(rule="noisy-top-k", noise=1.0)
    logits = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        twins.choose(spec, logits, 2, generator=torch.Generator().manual_seed(seed)).experts for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("priority", ["position", "probability", "batch-prioritized"])
@pytest.mark.parametrize("order", ["choice-major", "token-major"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_capacity_keeps_the_same_copies(priority: str, order: str, factor: float) -> None:
    spec = CapacitySpec(factor=factor, dialect="megatron", priority=priority, order=order)
    rule = CapacityRule.of(spec)
    for seed in range(20):
        logits = logits_of(("float64", "ties")[seed % 2], np.random.default_rng(seed), 8)
        choice = twins.choose(RouterSpec(), torch.from_numpy(logits), 3)
        rows = rule.capacity(TOKENS, 8, 3)
        experts = choice.experts.numpy()
        settled = settle(rule, experts, np.full(8, rows), gates=choice.weights.numpy())
        kept = twins.keep(spec, choice, rows).numpy()
        np.testing.assert_array_equal(kept, settled.choices != 8)
        assert np.bincount(experts[kept], minlength=8).max() <= rows


def test_capacity_by_hand() -> None:
    experts = torch.tensor([[0, 1], [0, 1], [1, 0], [0, NO_EXPERT]])
    weights = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.8, 0.0]])
    choice = twins.Choice(experts, weights)

    def kept(**parameters: Any) -> list[list[bool]]:
        return twins.keep(CapacitySpec(factor=1.0, dialect="switch", **parameters), choice, 2).tolist()

    assert kept() == [[True, True], [True, False], [True, False], [False, False]]
    assert kept(order="token-major") == [[True, True], [True, True], [False, False], [False, False]]
    assert kept(priority="probability") == [[False, True], [True, False], [True, False], [True, False]]


def test_random_priority_keeps_as_many() -> None:
    choice = twins.choose(RouterSpec(), torch.from_numpy(logits_of("float64", np.random.default_rng(0), 8)), 3)
    spec = CapacitySpec(factor=1.0, priority="random")
    first, second = (twins.keep(spec, choice, 20, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    by_expert = [torch.bincount(choice.experts[kept], minlength=8) for kept in (first, second)]
    assert torch.equal(*by_expert)


def test_losses_and_the_bias_are_those_of_the_numpy_rules() -> None:
    generator = np.random.default_rng(5)
    logits = generator.normal(0, 2, (TOKENS, 8))
    torch_logits = torch.from_numpy(logits)
    experts = twins.choose(RouterSpec(), torch_logits, 2).experts
    probabilities = torch.softmax(torch_logits, dim=-1).numpy()
    expected = load_balancing_loss(probabilities, experts.numpy())
    assert twins.balancing_loss(RouterSpec(), torch_logits, experts).item() == pytest.approx(expected, rel=1e-6)
    assert twins.z_loss(torch_logits).item() == pytest.approx(numpy_z_loss(logits), rel=1e-5)
    counts = generator.integers(0, 50, (3, 8))
    bias = generator.normal(0, 0.1, (3, 8))
    moved = twins.moved_bias(torch.from_numpy(bias), torch.from_numpy(counts), 0.01)
    np.testing.assert_array_equal(moved.numpy(), update_bias(bias, counts, 0.01))


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(UnknownNameError, match="router rule that can be trained"):
        twins.choose(RouterSpec(rule="hash"), torch.zeros(2, 4), 1)
    choice = twins.choose(RouterSpec(), torch.zeros(2, 4), 2)
    with pytest.raises(UserError, match="next-best"):
        twins.keep(CapacitySpec(factor=1.0, overflow="next-best"), choice, 1)
