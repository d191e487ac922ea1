"""What tensor parallelism leaves undivided: activations without sequence parallelism, keys and values of few heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import moesim
from moesim.costs.memory import channel_bytes, token_layer_bytes
from moesim.costs.tensor_split import attention_products, attention_widths, key_value_copies
from moesim.errors import ScenarioError
from moesim.specs import parameters
from moesim.specs.workload import PrecisionSpec
from moesim.step.memory import memory_by_rank, split_of
from moesim.step.model import StepModel

# A GPT-3 layer: two matrices of 4 h in the feed-forward layer, as many key-value heads as heads.
GPT: dict[str, Any] = {
    "model": {"base": "gpt-3-175b", "layers": 8},
    "cluster": {"gpu": "h100-sxm", "gpus": 64},
    "workload": {"global_batch": 64, "sequence_length": 2048},
}
FEW_HEADS: dict[str, Any] = {
    "layers": 8, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "d_ff_dense": 16384, "vocab": 32000,
}  # fmt: skip


def scenario(tensor: int, sequence_parallel: bool = True, **changes: Any) -> moesim.Scenario:
    layout = {"tensor": tensor, "sequence_parallel": sequence_parallel}
    return moesim.load({**GPT, **changes, "parallelism": {**layout, **changes.get("parallelism", {})}})


def layer_bytes(chosen: moesim.Scenario, recompute: frozenset[str] = frozenset()) -> float:
    """Activations of one layer in units of sequence x batch x hidden width, the softmax' statistics left out."""
    model = chosen.model
    kept = token_layer_bytes(model, PrecisionSpec(), 0.0, recompute, split_of(chosen))
    own = kept.attention + kept.dense - 4.0 * model.n_heads
    return own / chosen.parallelism.tensor / model.d_model


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_activations_are_those_of_korthikanti(tensor: int) -> None:
    """arXiv:2205.05198, table 2, without dropout masks and with fused attention: 8 + 24/t of a layer; with sequence
    parallelism 32/t."""
    assert layer_bytes(scenario(tensor, False)) == pytest.approx(8 + 24 / tensor)
    assert layer_bytes(scenario(tensor, True)) == pytest.approx(32 / tensor)


def test_recomputed_norms_and_layers_hold_whole_inputs_without_sequence_parallelism() -> None:
    norms = layer_bytes(scenario(8, False), frozenset({"layernorm"}))
    assert norms == pytest.approx(4 + 24 / 8)  # their outputs are not kept, their inputs are
    whole = token_layer_bytes(
        scenario(8).model, PrecisionSpec(), 0.0, frozenset({"full"}), split_of(scenario(8, False))
    )
    assert whole.attention / 8 / scenario(8).model.d_model == pytest.approx(2.0)


def test_without_sequence_parallelism_the_step_needs_more_of_both() -> None:
    for tensor in (2, 8):
        shared, whole = (scenario(tensor, split) for split in (True, False))
        sizes = [memory_by_rank(StepModel(chosen), None)[0]["activations"] for chosen in (shared, whole)]
        assert sizes[1] / sizes[0] == pytest.approx((8 + 24 / tensor) / (32 / tensor), rel=0.02)
        one, other = (StepModel(chosen).prices for chosen in (shared, whole))
        # Norms and residuals of all tokens of the group, on every rank: d_model x (tensor - 1) more to pass over.
        more = one._passes(one.tokens * shared.model.d_model * (tensor - 1), one.data["attention_passes"])
        assert other.attention.total - one.attention.total == pytest.approx(more.total)
        assert other.scores == one.scores
        more = one._passes(one.tokens * shared.model.d_model * (tensor - 1), one.data["dense_passes"])
        assert other.dense.total - one.dense.total == pytest.approx(more.total)


@pytest.mark.parametrize("heads", [8, 2, 1])
def test_each_rank_computes_at_least_one_key_value_head(heads: int) -> None:
    """By hand: queries and output are divided, keys and values by as many ranks as there are heads."""
    model = {**FEW_HEADS, "n_kv_heads": heads}
    one = StepModel(scenario(1, model=model)).prices
    spec, rates = one.model, one.rates
    for tensor in (2, 4, 8, 16, 32):
        prices = StepModel(scenario(tensor, model=model)).prices
        divided = min(tensor, heads)
        flops = 2 * 4096 * 128 * 2 * 2048 * (32 / tensor + heads / divided)
        passed = 2048 * (4096 / tensor + 32 * 128 / tensor + 2 * heads * 128 / divided)
        expected = 3 * flops / rates.gemm
        expected += one._passes(passed, one.data["attention_passes"]).total
        expected += one.scores / tensor * (1 + one.data["score_backward"])
        assert prices.attention.total == pytest.approx(expected)
        assert int(key_value_copies(spec, tensor)) == tensor // divided


def test_copies_of_keys_and_values_are_kept_and_go_round_the_ring() -> None:
    spec = scenario(1, model=FEW_HEADS).model
    four, sixteen = (
        token_layer_bytes(spec, PrecisionSpec(), 0.0, frozenset(), split_of(scenario(tensor, model=FEW_HEADS)))
        for tensor in (4, 16)
    )
    assert sixteen.attention - four.attention == pytest.approx(2.0 * spec.kv_width)  # two ranks hold each head
    assert attention_widths(spec, 2) == spec.qkv_width + spec.kv_width
    rings = channel_bytes(spec, 1.0, 1.0, np.array([1, 8, 16, 32]))[1]
    assert rings == pytest.approx(4.0 * spec.kv_width / np.array([1, 8, 8, 8]))


def test_ranks_that_share_a_key_value_head_store_it_each() -> None:
    """Queries and output divided by all ranks, keys and values by as many as there are heads."""
    layer = 4096 * 128 * 2
    for tensor in (4, 8, 16, 32):
        held = StepModel(scenario(tensor, model={**FEW_HEADS, "vocab": 0})).held[0].dense
        dense = 3 * 4096 * 16384 / tensor
        assert held == pytest.approx(8 * (layer * (32 / tensor + 8 / min(tensor, 8)) + dense))


def test_latent_attention_divides_keys_and_values_as_heads() -> None:
    latent = moesim.load({**GPT, "model": "deepseek-v3", "parallelism": {"tensor": 8}}).model
    assert int(key_value_copies(latent, 64)) == 1
    plain = parameters.attention_parameters(latent)
    assert attention_products(latent, 1, 1) == plain
    mla = latent.mla
    assert mla is not None
    down = latent.d_model * (mla.q_lora_rank + mla.kv_lora_rank + mla.qk_rope)
    assert attention_products(latent, 1, 8) == plain + 7 * down


def test_copies_are_told_in_a_note() -> None:
    eight, sixteen = (
        moesim.estimate(scenario(tensor, model=FEW_HEADS), even_if_infeasible=True).notes for tensor in (8, 16)
    )
    assert not any("key-value heads" in note for note in eight)
    assert any("tensor 16 is above the 8 key-value heads: 2 ranks hold" in note for note in sixteen)


@pytest.mark.parametrize(
    ("model", "tensor", "words"),
    [
        ({}, 3, ["32 attention heads and 8 key-value heads and", "allowed: 1, 2, 4, 8, 16, 32; nearest: 2"]),
        ({"n_heads": 24, "head_dim": 128}, 12, ["8 key-value heads", "nearest: 8"]),
        ({"d_ff_dense": 16388}, 8, ["the dense layers' width 16388", "allowed: 1, 2, 4; nearest: 4"]),
        (
            {"moe_layers": 8, "n_experts": 8, "top_k": 2, "d_ff_expert": 4096, "shared_expert_width": 4098},
            4,
            ["the shared experts' width 4098", "allowed: 1, 2; nearest: 2"],
        ),
    ],
)
def test_what_does_not_divide_is_refused(model: dict[str, Any], tensor: int, words: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(tensor, model={**FEW_HEADS, **model})
    found = {problem.where: problem.what for problem in caught.value.problems}
    assert all(word in found["parallelism.tensor"] for word in words), found


def test_a_vocabulary_is_filled_up_and_experts_widths_are_not_tensors() -> None:
    odd = {**FEW_HEADS, "vocab": 50257, "moe_layers": 8, "n_experts": 8, "top_k": 2, "d_ff_expert": 4098}
    assert scenario(4, model=odd).parallelism.tensor == 4
