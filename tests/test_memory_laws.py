"""The memory laws part by part, by hand: states, buffers, what a token leaves in a layer, what exchanges take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.costs import memory
from moesim.costs.exchange_memory import Exchange, exchange_buffers, exchange_bytes
from moesim.costs.memory import Shards, Split
from moesim.specs.model import ModelSpec
from moesim.specs.workload import PrecisionSpec

BF16, FP8 = PrecisionSpec(), PrecisionSpec(compute="fp8")
PLAIN: dict[str, Any] = {
    "name": "small", "layers": 4, "moe_layers": 4, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "n_experts": 8,
    "top_k": 2, "d_ff_expert": 32, "vocab": 100,
}  # fmt: skip
ONE = Split(expert=1, inputs=1)
EXCHANGE = Exchange(
    tokens=100.0, sent=200.0, received=300.0, distinct=0.5, dispatch=3.0, combine=5.0,
    hidden=256, experts=16, ranks=12, domain=8, multiprocessors=21,
)  # fmt: skip


def model(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate({**PLAIN, **changes})


def layer(
    rows: float = 2.0,
    recompute: tuple[str, ...] = (),
    precision: PrecisionSpec = BF16,
    split: Split = ONE,
    **changes: Any,
) -> memory.TokenLayer:
    return memory.token_layer_bytes(model(**changes), precision, rows, frozenset(recompute), split)


def test_states_by_their_shards() -> None:
    found = memory.state_bytes(100.0, Shards(2, 4, 5), BF16)
    assert found == {"weights": 100.0, "gradients": 100.0, "optimizer": 240.0}
    uneven = memory.state_bytes(100.0, Shards(3, 7, 11), BF16)
    assert uneven == pytest.approx({"weights": 200 / 3, "gradients": 400 / 7, "optimizer": 1200 / 11}, rel=1e-12)
    lean = PrecisionSpec(gradients="bf16", optimizer="adam-bf16-moments")
    assert memory.state_bytes(100.0, Shards(1, 1, 1), lean) == {
        "weights": 200.0,
        "gradients": 200.0,
        "optimizer": 800.0,
    }


def test_gathered_buffers_are_two_and_never_more_than_what_is_sharded() -> None:
    """Weights in bf16 and, twice, gradients in bf16; of four shards three quarters come from others."""
    assert memory.gathered_bytes(100.0, 10.0, Shards(4, 4, 4), BF16) == 20.0 + 40.0
    assert memory.gathered_bytes(100.0, 90.0, Shards(4, 4, 4), BF16) == 150.0 + 300.0
    assert memory.gathered_bytes(100.0, 90.0, Shards(1, 4, 4), BF16) == 300.0
    half = PrecisionSpec(gradients="bf16")
    assert memory.gathered_bytes(100.0, 90.0, Shards(4, 4, 4), half) == 150.0 + 150.0
    assert memory.gathered_bytes(100.0, 10.0, Shards(1, 1, 4), BF16) == 0.0


def test_channels_and_communicators() -> None:
    """Two buffers each way between stages, two of keys and values on a ring; two heads over four ranks stand twice."""
    assert memory.channel_bytes(model(), 10.0, 40.0, 1) == (4 * 2 * 64 * 10, 4 * 64 * 40)
    assert memory.channel_bytes(model(), 10.0, 40.0, 2)[1] == 4 * 64 * 40 / 2
    assert memory.channel_bytes(model(), 10.0, 40.0, 4)[1] == 4 * 64 * 40 * 2 / 4
    assert memory.communicator_bytes() == 4 * 2**20 * 2 * 16


def test_the_update_copies_gradients_of_bf16() -> None:
    shards, half = Shards(1, 1, 4), PrecisionSpec(gradients="bf16")
    assert memory.optimizer_step_bytes(100.0, shards, half) == 100.0
    assert memory.optimizer_step_bytes(100.0, shards, BF16) == 0.0
    kept = PrecisionSpec(gradients="bf16", optimizer="adam-bf16-moments")
    assert memory.optimizer_step_bytes(100.0, shards, kept) == 0.0


def test_an_attention_block_and_its_experts() -> None:
    """Stream and norm, queries, keys and values (64 + 32 + 32), statistics of four heads, the output."""
    attention = 2 * 64 + 2 * 64 + 2 * 128 + 4 * 4 + 2 * 64
    # Stream, the norm's output that the router reads; two rows of input, two gates and the product; 8 experts' logits.
    experts = 2 * 64 + 2 * 64 + 2 * (2 * 64 + 32 * (2 * 2 + 2)) + 8 * 8
    assert layer() == memory.TokenLayer(attention, 256.0, experts)
    assert layer().largest == attention + experts
    plain = layer(gated=False)
    assert plain.experts == experts - 2 * 32 * 2
    assert layer(split=Split(expert=2, inputs=1)).experts == experts - 2 * 16 * 6
    both = layer(n_shared_experts=1, shared_expert_width=16)
    assert both.experts == experts + 16 * 6
    beside = layer(dense_beside_experts=True, d_ff_dense=48, n_shared_experts=0)
    assert beside.experts == experts + 48 * 6
    assert beside.dense == 256.0 + 48 * 6
    assert layer(split=Split(expert=1, inputs=2)).attention == attention + 4 * 64
    # Half of the layers attend to an encoder as well.
    decoder = layer(arch="encoder-decoder", enc_layers=2, dec_layers=2)
    assert decoder.attention == attention + (2 * 128 + 4 * 4 + 2 * 64) / 2
    assert layer(split=Split(expert=1, inputs=1, keys=2)).attention == attention + 2 * 64


def test_narrow_products_keep_narrow_inputs() -> None:
    narrow = layer(precision=FP8)
    # The norm's output as the product reads it, the attention's output in both formats; the router's input stays bf16.
    assert narrow.attention == 2 * 64 + 64 + 2 * 128 + 4 * 4 + 3 * 64
    assert narrow.experts == 2 * 64 + 2 * 64 + 2 * (64 + 32 * (2 * 2 + 1)) + 8 * 8
    assert memory.input_bytes(BF16) == memory.input_bytes(PrecisionSpec(compute="fp16")) == 2.0
    assert memory.input_bytes(FP8) == 1.0


@pytest.mark.parametrize(
    ("module", "attention", "experts"),
    [
        ("layernorm", 128.0, 128.0),
        ("core_attn", 16.0, 0.0),
        ("moe_act", 0.0, 2 * 32 * 2.0),
        ("shared_experts", 0.0, 16 * 6.0),
        ("moe", 0.0, 2 * (128 + 192) + 64 + 96.0),
        ("mlp", 0.0, 0.0),
    ],
)
def test_what_runs_again_is_not_kept(module: str, attention: float, experts: float) -> None:
    shared: dict[str, Any] = {"n_shared_experts": 1, "shared_expert_width": 16, "d_ff_dense": 48}
    whole, less = layer(**shared), layer(recompute=(module,), **shared)
    assert whole.attention - less.attention == attention
    assert whole.experts - less.experts == experts
    assert whole.dense - less.dense == {"layernorm": 128.0, "mlp": 48 * 6.0}.get(module, 0.0)
    assert layer(recompute=("full",)) == memory.TokenLayer(128.0, 0.0, 0.0)
    assert layer(recompute=("full",), split=Split(1, 2)).attention == 256.0


def test_latent_attention_keeps_its_latents() -> None:
    """Queries and keys of 8 + 4, values of 16, four heads each; latents of 24 and 12, and the rope's 4."""
    latent = {"q_lora_rank": 24, "kv_lora_rank": 12, "qk_nope": 8, "qk_rope": 4, "v_head": 16}
    wide = 4 * 12 + 4 * (12 + 16)
    rest = 2 * 64 + 2 * 64 + 4 * 4 + 2 * 64
    found = layer(mla=latent, n_kv_heads=4)
    assert found.attention == rest + 2 * wide + 2 * 36 + 2 * (36 + 4)
    again = layer(mla=latent, n_kv_heads=4, recompute=("mla_up_proj",))
    assert again.attention == rest + 2 * (36 + 4)
    twice = layer(mla=latent, n_kv_heads=4, split=Split(1, 2))
    assert twice.attention - found.attention == 4 * 64 + 2 * 36 + 2 * (36 + 4)


def test_gradients_of_the_fullest_module() -> None:
    """The stream's, and attention's of queries, keys, values and output, or an FFN's of inner values and input."""
    attention = 2 * (128 + 64)
    assert memory.gradient_pass_bytes(model(), 1.0, ONE) == 128 + max(attention, 2 * (64 + 3 * 32))
    assert memory.gradient_pass_bytes(model(), 3.0, ONE) == 128 + 2 * 3 * (64 + 3 * 32)
    assert memory.gradient_pass_bytes(model(), 3.0, Split(2, 1)) == 128 + 2 * 3 * (64 + 3 * 16)
    assert memory.gradient_pass_bytes(model(), 1.0, Split(1, 2, 2)) == 256 + 2 * (128 + 64 + 64)
    dense = model(moe_layers=0, n_experts=0, d_ff_dense=200)
    assert memory.gradient_pass_bytes(dense, 9.0, ONE) == 128 + 2 * (64 + 3 * 200)
    assert memory.gradient_pass_bytes(dense, 9.0, Split(1, 2)) == 256 + 2 * (128 + 3 * 200)
    mixed = model(d_ff_dense=200)
    assert memory.gradient_pass_bytes(mixed, 1.0, ONE) == 128 + attention
    np.testing.assert_array_equal(memory.gradient_pass_bytes(model(), np.array([1.0, 3.0]), ONE), [512.0, 1088.0])


def test_verdicts_at_their_bounds() -> None:
    found = [memory.verdict(share, 1.0) for share in (0.5, 0.9, 0.901, 1.15, 1.151)]
    assert found == ["fits", "fits", "tight", "tight", "infeasible"]


def test_buffers_of_plain_exchanges() -> None:
    assert exchange_buffers("nccl-all-to-all", EXCHANGE) == (0.0, 500 * 3.0, 500 * 5.0)
    assert exchange_bytes("nccl-all-to-all", EXCHANGE, False) == 2500.0
    assert exchange_bytes("nccl-all-to-all", EXCHANGE, True) == 4000.0


def test_buffers_of_deepep() -> None:
    """Ten channels of 21 SMs; rings of 288 tokens for 8 peers; of 128 both ways for each of several whole domains."""
    token = 2 * 256 + 2056
    near, far = 10 * 8 * 288 * token, 10 * 1 * 128 * token * 2
    assert exchange_buffers("deepep-normal", EXCHANGE) == (near, 150 * 3.0, 250 * 5.0)
    two = replace(EXCHANGE, ranks=16)
    assert exchange_buffers("deepep-normal", two)[0] == near + 2 * far
    alone = replace(EXCHANGE, ranks=4)
    assert exchange_buffers("deepep-normal", alone)[0] == 10 * 4 * 256 * token
    wide = replace(EXCHANGE, ranks=72, domain=72)
    assert exchange_buffers("deepep-normal", wide)[0] == 10 * 72 * 560 * token


def test_buffers_of_deepep_at_low_latency() -> None:
    """A message of 16 bytes and 256 values in bf16, or in fp8 with two scales; back with a 64th more; all twice."""
    few = replace(EXCHANGE, tokens=9.5)
    there, back, room = 16 + 512, 512 + 4, 16 * 10
    assert exchange_buffers("deepep-low-latency", few) == (
        2 * (room * back + room * there),
        room * 3.0,
        room * 5.0,
    )
    # One expert: what is sent there, with its header, takes more than what comes back.
    alone = replace(EXCHANGE, tokens=10.0, experts=1)
    assert exchange_buffers("deepep-low-latency", alone)[0] == 2 * (10 * there + 10 * there)


def test_buffers_of_hybrid_ep() -> None:
    assert exchange_buffers("hybrid-ep", EXCHANGE) == (12 * 100 * 8.0, 0.0, 100 * 5.0)
