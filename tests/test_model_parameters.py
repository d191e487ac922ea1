"""Parameters and FLOPs of the catalog's models against the reference table, published totals, and published FLOPs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moesim import catalog
from moesim.specs import parameters
from moesim.specs.model import LatentAttention, ModelSpec

REFERENCE = Path(__file__).parents[1].parent / "shared" / "reference" / "models.json"
MODELS = catalog.names("models")
WITH_TOTAL = [name for name in MODELS if catalog.load("models", name).published_total]
WITH_ACTIVE = [name for name in MODELS if catalog.load("models", name).published_active]

LINEAR_LAYERS = "projections of linear or state-space layers have another shape than this attention"
NO_REFERENCE_TOTAL = {
    "qwen3-next-80b-a3b": LINEAR_LAYERS,
    "minimax-text-01": LINEAR_LAYERS,
    "jamba-v0.1": LINEAR_LAYERS,
    "sparse-1t-a50b": "ours, not in the reference",
    "qwen3-32b": "of serving cases, not in the reference",
}
NO_REFERENCE_ACTIVE = {
    **NO_REFERENCE_TOTAL,
    "nllb-moe-54b": "the reference leaves the router out of this model's active parameters alone",
    **dict.fromkeys(("soft-moe-s16", "soft-moe-l16", "soft-moe-h14"), "the reference gives none: slots mix all tokens"),
}
ROUNDED_NAME = "the table's figure is a rounded name: 18 x 2048 x 2 x 1024 x 8192 = 618B is the experts alone of '600B'"
PUBLISHED_TOTAL_DIFFERS = {
    **{name: ROUNDED_NAME for name in MODELS if name.startswith("gshard-")},
    "glam-64b-64e": "published as 1.2T, rounded",
    "jamba-v0.1": LINEAR_LAYERS,
}
WITHOUT_EMBEDDING = {
    "deepseek-v2-lite": "2.4B leaves the input embedding out",
    "glam-8b-64e": "9.8B leaves the embedding out",
    "glm-4.5": "32B leaves the input embedding out",
    "gpt-oss-120b": "5.1B leaves the input embedding out",
    "gpt-oss-20b": "3.6B leaves the input embedding out",
}
PUBLISHED_ACTIVE_DIFFERS = {
    "qwen3-next-80b-a3b": "published as '3B', rounded down; " + LINEAR_LAYERS,
    "minimax-text-01": LINEAR_LAYERS,
    "jamba-v0.1": LINEAR_LAYERS,
    "glm-4.5-air": "published as '12B', rounded down from 12.8B without the input embedding",
    "minimax-m2": "published as '10B', rounded down from 10.4B without the input embedding",
}


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, object]]:
    if not REFERENCE.exists():
        pytest.skip("the reference table is not beside this checkout")
    return {entry["id"]: entry for entry in json.loads(REFERENCE.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("name", sorted(set(MODELS) - NO_REFERENCE_TOTAL.keys()))
def test_total_is_the_reference_to_the_parameter(name: str, reference: dict[str, dict[str, object]]) -> None:
    assert parameters.count(catalog.load("models", name)).total == reference[name]["computed_total_params"]


@pytest.mark.parametrize("name", sorted(set(MODELS) - NO_REFERENCE_ACTIVE.keys()))
def test_active_is_the_reference_to_the_parameter(name: str, reference: dict[str, dict[str, object]]) -> None:
    assert parameters.count(catalog.load("models", name)).active == reference[name]["computed_active_params"]


@pytest.mark.parametrize(
    ("name", "short"), [("qwen3-next-80b-a3b", 0.17), ("minimax-text-01", 0.21), ("jamba-v0.1", 0.15)]
)
def test_hybrid_models_fall_short_by_what_their_note_says(
    name: str, short: float, reference: dict[str, dict[str, object]]
) -> None:
    counted, known = parameters.count(catalog.load("models", name)), reference[name]
    assert 0.95 * known["computed_total_params"] < counted.total < known["computed_total_params"]
    assert (1 - short) * known["computed_active_params"] < counted.active < known["computed_active_params"]


def test_every_reference_model_is_modelled_or_says_why_not(reference: dict[str, dict[str, object]]) -> None:
    assert set(reference) <= set(MODELS) | set(catalog.not_modelled())
    assert not set(MODELS) & set(catalog.not_modelled())


@pytest.mark.parametrize("name", WITH_TOTAL)
def test_total_against_the_published_figure(name: str) -> None:
    model = catalog.load("models", name)
    assert model.published_total is not None
    error = abs(parameters.count(model).total / model.published_total - 1)
    assert (error > 0.03) == (name in PUBLISHED_TOTAL_DIFFERS)
    assert error < 0.07


@pytest.mark.parametrize("name", WITH_ACTIVE)
def test_active_against_the_published_figure(name: str) -> None:
    model = catalog.load("models", name)
    assert model.published_active is not None
    counted = parameters.count(model)
    active = counted.active - (counted.embedding if name in WITHOUT_EMBEDDING else 0)
    assert (abs(active / model.published_active - 1) > 0.03) == (name in PUBLISHED_ACTIVE_DIFFERS)


@pytest.mark.parametrize(
    ("name", "sequence_length", "flops"),
    [
        ("deepseek-v3", 4096, 260.6e9),
        ("llama-3.1-8b", 8192, 51.5e9),
        ("llama-3.1-70b", 8192, 449e9),
        ("llama-3.1-405b", 8192, 2524e9),
        ("qwen3-30b-a3b", 4096, 23.1e9),
    ],
)
def test_flops_per_token_are_the_published_ones(name: str, sequence_length: int, flops: float) -> None:
    model = catalog.load("models", name)
    assert parameters.flops_per_token(model, sequence_length) == pytest.approx(flops, rel=0.002)


def test_synthetic_sparse_model_is_a_trillion_with_fifty_billion_active() -> None:
    counted = parameters.count(catalog.load("models", "sparse-1t-a50b"))
    assert counted.total == pytest.approx(1e12, rel=0.02)
    assert counted.active == pytest.approx(50e9, rel=0.02)


def test_mtp_module_of_deepseek_v3_is_counted_apart() -> None:
    """The weights' README states 11.5B of its own, beside shared embedding and head."""
    model = catalog.load("models", "deepseek-v3")
    counted = parameters.count(model)
    assert counted.mtp == pytest.approx(11.5e9, rel=0.015)
    assert counted.total == parameters.count(model.model_copy(update={"mtp_layers": 0})).total


def test_parts_by_hand() -> None:
    """A model small enough for pencil and paper: width 8, 2 heads of 4, vocabulary 10, 1 dense and 1 MoE layer."""
    model = ModelSpec(
        layers=2, moe_layers=1, d_model=8, n_heads=2, n_kv_heads=1, head_dim=4, d_ff_dense=16,
        n_experts=4, top_k=2, d_ff_expert=6, n_shared_experts=1, shared_expert_width=5, vocab=10,
    )  # fmt: skip
    counted = parameters.count(model)
    assert counted.attention_per_layer == 8 * 8 + 2 * 8 * 4 + 8 * 8
    assert counted.dense_ffn_per_layer == 3 * 8 * 16
    assert counted.router_per_layer == 8 * 4
    assert counted.expert == 3 * 8 * 6
    assert counted.shared_experts_per_layer == 3 * 8 * 5
    assert (counted.embedding, counted.head) == (80, 80)
    body = 2 * 192 + 384 + 32 + 120
    assert (counted.total, counted.active) == (body + 4 * 144 + 160, body + 2 * 144 + 160)
    assert parameters.flops_per_token(model, 6) == 3 * (2 * (body + 2 * 144) + 2 * 6 * 2 * 8 + 2 * 80)


def test_latent_attention_by_hand() -> None:
    latent = LatentAttention(q_lora_rank=3, kv_lora_rank=5, qk_nope=4, qk_rope=2, v_head=7)
    model = ModelSpec(layers=1, d_model=8, n_heads=2, mla=latent)
    compressed = 8 * 3 + 3 * 2 * 6
    rest = 8 * (5 + 2) + 5 * 2 * (4 + 7) + 2 * 7 * 8
    assert parameters.attention_parameters(model) == compressed + rest
    plain = model.model_copy(update={"mla": latent.model_copy(update={"q_lora_rank": 0})})
    assert parameters.attention_parameters(plain) == 8 * 2 * 6 + rest
    # causal: half of 10 keys, a multiply and an add in each of 2 heads for 6 + 7 elements
    assert parameters.score_flops_per_token(model, 10) == 5 * 2 * 2 * 13


def _keys(model: ModelSpec, sequence_length: int) -> float:
    """Keys that one token of the mean layer attends to."""
    return parameters.score_flops_per_token(model, sequence_length) / (4 * model.n_heads * model.head)


def test_attention_masks() -> None:
    causal = ModelSpec(layers=4, d_model=8, n_heads=2)
    assert _keys(causal, 100) == 50
    assert _keys(causal.model_copy(update={"arch": "vision-encoder"}), 100) == 100
    both = causal.model_copy(update={"arch": "encoder-decoder", "enc_layers": 2, "dec_layers": 2})
    assert _keys(both, 100) == (2 * 100 + 2 * (50 + 100)) / 4


def test_sliding_window_is_the_mean_over_positions_of_what_they_see() -> None:
    model = ModelSpec(layers=4, d_model=8, n_heads=2, sliding_window=128, full_attention_every=2)
    seen = sum(min(position + 0.5, 128) for position in range(4096)) / 4096
    assert _keys(model, 4096) == pytest.approx((2048 + seen) / 2, rel=1e-4)
    assert _keys(model, 100) == 50, "a sequence shorter than the window is plain causal"
    none_full = model.model_copy(update={"full_attention_every": 5})
    assert _keys(none_full, 4096) == pytest.approx(seen, rel=1e-3)


def test_encoder_decoder_counts_cross_attention() -> None:
    model = ModelSpec(arch="encoder-decoder", layers=4, enc_layers=2, dec_layers=2, d_model=8, n_heads=2)
    assert parameters.count(model).total == 6 * parameters.attention_parameters(model)


@pytest.mark.parametrize("name", MODELS)
def test_as_many_sparse_layers_as_stated(name: str) -> None:
    """st-moe-l has 27 + 27 layers, every fourth of each half sparse; a pattern over all 54 may hold one more."""
    model = catalog.load("models", name)
    surplus = model.layer_kinds.count("moe") - model.moe_layers
    assert surplus in ((0, 1) if name == "st-moe-l" else (0,))
