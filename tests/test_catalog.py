"""The catalog: every number has a source, the overlay adds and overrides, and no bad file gets through or crashes."""

from __future__ import annotations

import json
import os
import time
from datetime import date
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from moesim import catalog
from moesim.catalog import huggingface, recorded
from moesim.catalog.yaml_files import MAX_BYTES, parse_mapping, read_mapping
from moesim.errors import FileError, ScenarioError, UnknownNameError, UserError
from moesim.provenance import Basis
from moesim.randomness import Streams
from moesim.routing.profile import RoutingProfile
from moesim.routing.profile_draws import ProfileDraws
from moesim.routing.profile_law import plain_law
from moesim.specs import parameters
from moesim.specs.base import SourcedSpec
from moesim.specs.model import ModelSpec
from moesim.traces import store

NOUNS = [(kind, name) for kind in ("models", "gpus", "fabrics", "profiles") for name in catalog.names(kind)]
UNSOURCED = {"name", "title", "note", "sources", "domains"}

GPUS = (
    "a100-sxm-80g a100-pcie-80g h100-sxm h100-pcie h800-sxm h200-sxm h20-sxm b200-sxm b300-sxm gb200-nvl72 gb300-nvl72 "
    "l40s rtx-pro-6000-server mi300x mi355x tpu-v3 tpu-v4 tpu-v5e tpu-v5p rtx-4090 jetson-orin-agx-64g"
)
FABRICS = (
    "none single-switch rail-optimized-200g rail-optimized-400g rail-optimized-800g fat-tree-2to1 fat-tree-nonblocking "
    "dual-plane-400g nvl72-400g nvl72-800g tpu-torus-2d tpu-torus-3d pcie-400g efa-v2 efa-v3 roce-400g "
    "infiniband-ndr-400g infiniband-xdr-800g"
)
PROFILES = "uniform deepseek-v3-like mixtral-like olmoe-like gpt-oss-like bias-balanced aux-loss-balanced collapsed"


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(catalog.OVERLAY_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("kind", "expected"), [("gpus", GPUS), ("fabrics", FABRICS), ("profiles", PROFILES)])
def test_names(kind: str, expected: str) -> None:
    assert set(expected.split()) <= set(catalog.names(kind))


@pytest.mark.parametrize(("kind", "name"), NOUNS)
def test_every_number_has_a_source(kind: str, name: str) -> None:
    noun = catalog.load(kind, name)
    assert isinstance(noun, SourcedSpec)
    assert noun.name == name
    fields = set(type(noun).model_fields) | {""}
    assert set(noun.sources) <= fields, "a source for a field that does not exist"
    for field in noun.model_fields_set - UNSOURCED:
        source = noun.sources.get(field, noun.sources.get(""))
        assert source is not None, field
        assert source.basis in get_args(Basis)
        assert source.where
        assert date.fromisoformat(source.date)


def test_no_name_is_given_twice_and_the_index_misses_none() -> None:
    data = Path(catalog.__file__).parent / "data"
    for kind in catalog.kinds():
        files = [path for path in (data / f"{kind}.yaml", *(data / kind).glob("*.yaml")) if path.exists()]
        keys = [key for path in files if path.stem != "not_modelled" for key in read_mapping(path) if key != "sources"]
        assert sorted(keys) == list(catalog.names(kind))


def test_gpu_numbers_are_the_reference_ones() -> None:
    h100, h800, tpu = (catalog.load("gpus", name) for name in ("h100-sxm", "h800-sxm", "tpu-v5p"))
    assert (h100.bf16, h100.fp8, h100.memory, h100.nic_bandwidth) == (989e12, 1978e12, 85899345920, 50e9)
    assert catalog.load("gpus", "b300-sxm").memory == 288400343040
    assert h100.basis("bf16", "memory", "power") == "datasheet"
    assert h100.basis("bf16", "multiprocessors") == "assumed"
    assert (h800.scale_up_bandwidth, h800.basis("bf16")) == (200e9, "assumed")
    assert (tpu.scale_up_kind, tpu.torus_dimensions, tpu.gpus_per_domain) == ("torus", 3, 8960)


def test_router_rules() -> None:
    v3, v2 = (catalog.load("models", name).router for name in ("deepseek-v3", "deepseek-v2"))
    assert (v3.rule, v3.bias, v3.groups, v3.top_groups, v3.group_score, v3.scale) == (
        "sigmoid-top-k", True, 8, 4, "top2-sum", 2.5,
    )  # fmt: skip
    assert (v2.rule, v2.renormalize, v2.groups, v2.top_groups, v2.group_score, v2.scale) == (
        "softmax-top-k", False, 8, 3, "max", 16.0,
    )  # fmt: skip


def _inclusion(weights: np.ndarray, choices: int) -> np.ndarray:
    """Probability that an expert is among the `choices` of a token: p = 1 - exp(-tau w), tau by bisection on sum p."""
    low, high = np.zeros(len(weights)), np.full(len(weights), 1e9)
    for _ in range(100):
        middle = np.sqrt(np.maximum(low, 1e-12) * high)
        over = (1 - np.exp(-middle[:, None] * weights)).sum(1) > choices
        high, low = np.where(over, middle, high), np.where(over, low, middle)
    return 1 - np.exp(-high[:, None] * weights)


def _loads(name: str, experts: int, choices: int, sequences: int) -> list[np.ndarray]:
    """Mean tokens [S, E] by sequence and expert, for 80 layers."""
    profile, draw = catalog.load("profiles", name), np.random.default_rng(7)
    spread = profile.log_normal if profile.log_normal is not None else 0.0
    loads = []
    for sigma in np.linspace(*(spread if isinstance(spread, tuple) else (spread, spread)), 80):
        static = sigma * draw.standard_normal(experts)
        tilt = (
            profile.sequence_tilt * draw.standard_normal((sequences, experts)) if sequences else np.zeros((1, experts))
        )
        loads.append(_inclusion(np.exp(static + tilt), choices))
    return loads


@pytest.mark.parametrize(
    ("name", "experts", "choices", "sequences", "low", "high"),
    [
        ("uniform", 64, 6, 3, 1.0, 1.0),
        ("deepseek-v3-like", 256, 8, 100, 5.0, 6.5),
        ("mixtral-like", 8, 2, 100, 1.08, 1.33),
        ("olmoe-like", 64, 8, 100, 2.3, 3.02),
        ("bias-balanced", 64, 6, 0, 1.03, 1.05),  # no sequences: what is static, as over endless sequences
        ("aux-loss-balanced", 64, 6, 0, 1.45, 1.55),
        ("collapsed", 256, 4, 0, 15.5, 20.0),
    ],
)
def test_profiles_reproduce_the_imbalance_they_cite(
    name: str, experts: int, choices: int, sequences: int, low: float, high: float
) -> None:
    """Median over layers of the hottest expert's load over the mean, tokens of all sequences together."""
    totals = [load.mean(0) for load in _loads(name, experts, choices, sequences)]
    assert low - 1e-9 <= np.median([load.max() / load.mean() for load in totals]) <= high + 1e-9


def test_gpt_oss_is_as_uneven_as_measured() -> None:
    """5.03 times the mean on the hottest of 32 experts in one sequence of 511 tokens, 2.52 (1.95 to 3.78) on all."""
    fitted = RoutingProfile.load(recorded.find("fitted", str(catalog.load("profiles", "gpt-oss-like").fitted)))
    draws = ProfileDraws(
        fitted, router_law=plain_law(32, 4), layers=24, ranks=100, tokens_per_rank=511, sequences_per_rank=1,
        streams=Streams(0), mix={}, moment=None, blocks=False,
    )  # fmt: skip
    single, whole = [], []
    for layer in range(24):
        choices = draws.draw(layer, 0, 0, 100).choices.reshape(100, -1)
        loads = np.stack([np.bincount(sequence, minlength=32) for sequence in choices]) * 32 / choices.shape[1]
        single.append(loads.max(axis=1).mean())
        whole.append(loads.mean(axis=0).max())
    assert np.mean(single) == pytest.approx(5.03, rel=0.06)
    assert np.median(whole) == pytest.approx(2.52, rel=0.15)


def test_recorded_routings_are_named_and_say_where_they_come_from() -> None:
    for name in recorded.names("traces"):
        meta = store.load(recorded.find("traces", name)).meta
        assert meta.device, name
        assert not name.startswith("cpu-") or "cpu" in meta.device, "a CPU's trace is never called a GPU's"
    for name in recorded.names("fitted"):
        meta = RoutingProfile.load(recorded.find("fitted", name)).meta
        assert meta.source, name
        assert meta.goodness, name
        assert recorded.find("fitted", name).stat().st_size <= 500_000
    with pytest.raises(UnknownNameError, match="nearest: cpu-small-switch-top-1"):
        recorded.find("traces", "cpu-small-switch-top1")
    with pytest.raises(FileError, match="it is a folder"):
        recorded.find("traces", "moesim/catalog")


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'deepseek-v33'; nearest: deepseek-v3"):
        catalog.load("models", "deepseek-v33")
    with pytest.raises(UnknownNameError, match="unknown gpu 'h100'"):
        catalog.raw("gpus", "h100")
    with pytest.raises(UnknownNameError, match="unknown catalog kind 'gpu'; nearest: gpus"):
        catalog.names("gpu")
    with pytest.raises(UnknownNameError, match="kind of noun"):
        catalog.load("calibrations", "memory")
    with pytest.raises(UserError, match=r"base-layers.*a routing algorithm"):
        catalog.load("models", "base-layers")


def test_raw_is_a_fresh_plain_copy() -> None:
    first = catalog.raw("gpus", "h100-sxm")
    assert "name" not in first
    assert first["bf16"] == "989 TFLOP/s"
    first["sources"][""]["basis"] = "measured"
    assert catalog.raw("gpus", "h100-sxm")["sources"][""]["basis"] == "datasheet"


def test_loading_three_entries_is_fast() -> None:
    start = time.process_time()
    for kind, name in (("models", "qwen3-30b-a3b"), ("gpus", "mi300x"), ("fabrics", "roce-400g")):
        catalog.load(kind, name)
    assert time.process_time() - start < 0.1  # 0.011 s measured with nothing cached, 0.001 s after


def test_overlay_adds_overrides_and_derives(overlay: Path) -> None:
    (overlay / "gpus.yaml").write_text(
        "h100-sxm: {base: h100-sxm, memory: 96 GB}\n"
        "mine: {base: h100-sxm, power: 500 W, sources: {power: {basis: measured, where: wall meter}}}\n"
    )
    (overlay / "models").mkdir()
    (overlay / "models" / "own.yaml").write_text(
        "tiny: {layers: 2, d_model: 64, n_heads: 2}\nwide: {base: deepseek-v3, router: {scale: 1.0}}\n"
    )
    assert {"mine", "h100-sxm", "h200-sxm"} <= set(catalog.names("gpus"))
    h100, mine = catalog.load("gpus", "h100-sxm"), catalog.load("gpus", "mine")
    assert (h100.memory, h100.bf16) == (96e9, 989e12)
    assert (h100.basis("memory"), h100.basis("bf16")) == ("assumed", "datasheet")
    assert h100.sources["memory"].where == str(overlay / "gpus.yaml")
    assert (mine.memory, mine.basis("power")) == (96e9, "measured")
    assert catalog.load("models", "tiny").layers == 2
    assert catalog.load("models", "wide").router.groups == 8
    assert catalog.load("models", "wide").router.scale == 1.0


def test_overlay_is_noticed_when_it_changes_or_goes(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = overlay / "gpus.yaml"
    file.write_text("mine: {bf16: 1 TFLOP/s, memory: 1 GB, memory_bandwidth: 1 GB/s}\n")
    assert catalog.load("gpus", "mine").bf16 == 1e12
    file.write_text("mine: {bf16: 2 TFLOP/s, memory: 1 GB, memory_bandwidth: 1 GB/s}\n")
    os.utime(file, ns=(1, 1))
    assert catalog.load("gpus", "mine").bf16 == 2e12
    monkeypatch.delenv(catalog.OVERLAY_VARIABLE)
    assert "mine" not in catalog.names("gpus")


def test_bad_overlay_entry_names_file_key_and_all_problems(overlay: Path) -> None:
    (overlay / "gpus.yaml").write_text("mine: {bf61: 1 TFLOP/s, memory: 80 s, memory_bandwidth: -3}\n")
    with pytest.raises(ScenarioError) as caught:
        catalog.raw("gpus", "mine")
    text = str(caught.value)
    assert str(overlay / "gpus.yaml") in text
    assert "mine.bf61: unknown key; nearest: bf16" in text
    assert "mine.bf16: is required" in text
    assert "mine.memory: " in text
    assert "'s' is a unit of s" in text
    assert "mine.memory_bandwidth: must be at least" in text
    assert len(caught.value.problems) == 4


def test_bad_overlay_key_inside_a_part(overlay: Path) -> None:
    (overlay / "models.yaml").write_text("mine: {base: mixtral-8x7b, router: {renormalise: true}}\n")
    with pytest.raises(ScenarioError, match=r"mine\.router\.renormalise: unknown key; nearest: renormalize"):
        catalog.load("models", "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {base: other}\nother: {base: mine}\n", "circle: mine -> other -> mine"),
        ("mine: {base: h100-smx}\n", "nearest: h100-sxm"),
        ("mine: 3\n", "mine: expected a mapping"),
        ("mine: [\n", "line"),
    ],
)
def test_broken_overlay_files(overlay: Path, text: str, message: str) -> None:
    (overlay / "gpus.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        catalog.load("gpus", "mine")


def test_overlay_that_is_not_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(catalog.OVERLAY_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileError, match=r"MOESIM_CATALOG=.*nowhere: is not a folder"):
        catalog.names("gpus")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"---\n...\n", "is empty"),
        (b"- a\n- b\n", "expected a mapping of keys, got a list"),
        (b"just words\n", "expected a mapping of keys, got a value"),
        (b"a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is given twice"),
        (b"x: {k: 1, k: 2}\n", "the key 'k' is given twice"),
        (b"a: [1, 2\nb: 3\n", "line 2, column"),
        (b"a:\n\t- b\n", "line 2, column 1"),
        (b"a: caf\xe9\n", r"is not UTF-8 text \(byte 6\)"),
        ("a: 1".encode("utf-16"), "is not UTF-8 text"),
        (b"a: \x00\n", "character"),
        (b"1: a\n", "the key 1 is not text"),
        (b"? [a, b]\n: c\n", "a key must be text or a number, got a collection"),
        (b"a: 1\n---\nb: 2\n", "a second document starts here"),
        (b"a: !!python/object/apply:os.system [ls]\n", "tag 'python/object/apply:os.system' is not read"),
        (b"a: !!set {b}\n", "tag 'set' is not read"),
        (b"a: !!int x\n", "'x' is not a int"),
        (b"a: " + b"9" * 6000, "longer than the 100 characters of a number"),
        (b"a: *b\n", "b"),
        (b"a: " + b"[" * 5000, "nested deeper than 40 levels"),
        (b"a: " + b"{b: " * 100_000, "nested deeper than 40 levels"),
        (b"- " * 50_000, "nested deeper than 40 levels"),
        (b"a: &a [x]\nb: [" + b"*a, " * 101 + b"]\n", "more than 100 aliases"),
        (b"a: [" + b"0," * 100_001 + b"]\n", "more than 100,000 values"),
        (b"a: &a {<<: [b]}\n", "<< merges a mapping"),
    ],
)
def test_refused_files_say_why_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        read_mapping(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_alias_bomb_is_refused_before_it_unfolds() -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    start = time.process_time()
    with pytest.raises(FileError, match="more than 100,000 values"):
        parse_mapping("\n".join(lines), "bomb")
    assert time.process_time() - start < 0.5


def test_folders_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a folder"):
        read_mapping(tmp_path)
    with pytest.raises(FileError, match="no such file"):
        read_mapping(tmp_path / "absent.yaml")
    with pytest.raises(FileError, match=r"cannot be read|no such file"):
        read_mapping(tmp_path / ("x" * 300))
    with pytest.raises(FileError, match=r"cannot be read|no such file"):
        read_mapping(Path("a\0b"))
    (tmp_path / "huge.yaml").write_bytes(b"a: " + b"x" * MAX_BYTES)
    with pytest.raises(FileError, match="larger than 2 MiB"):
        read_mapping(tmp_path / "huge.yaml")
    if Path("/dev/zero").exists():
        with pytest.raises(FileError, match="not a regular file"):
            read_mapping(Path("/dev/zero"))


def test_plain_yaml_reads_as_written() -> None:
    text = "\ufeffa: &x {b: 1, c: [1.5, true, null, 'on']}\nd: {<<: *x, b: 2}\ne: 2026-11-22\nf: {1.25: x}\n"
    inner = [1.5, True, None, "on"]
    assert parse_mapping(text.removeprefix("\ufeff"), "text") == {
        "a": {"b": 1, "c": inner},
        "d": {"b": 2, "c": inner},
        "e": "2026-11-22",
        "f": {1.25: "x"},
    }


HEAD = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 100}
CONFIGS: dict[str, dict[str, object]] = {
    "deepseek-v3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
        "moe_layer_freq": 1, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
    },
    "deepseek-v2": {
        "model_type": "deepseek_v2", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_hidden_layers": 60, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400,
        "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy", "scoring_func": "softmax",
        "norm_topk_prob": False, "routed_scaling_factor": 16.0,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 27, "num_attention_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "topk_method": "greedy", "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    },
    "glm-4.5-air": {
        "model_type": "glm4_moe", "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "n_group": 1,
        "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1,
        "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "vocab_size": 151552,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "vocab_size": 151936,
    },
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False,
        "vocab_size": 151936,
    },
    "qwen3-next-80b-a3b": {
        "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 256, "num_experts": 512, "num_experts_per_tok": 10,
        "norm_topk_prob": True, "full_attention_interval": 4, "linear_key_head_dim": 128, "vocab_size": 151936,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "sliding_window": None, "vocab_size": 32000,
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
        "norm_topk_prob": False, "vocab_size": 50304,
    },
    "gpt-oss-120b": {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 128,
        "num_experts_per_tok": 4, "sliding_window": 128, "vocab_size": 201088,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
    },
    "llama-3.1-8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    },
    "llama-4-maverick": {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
            "num_local_experts": 128, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "vocab_size": 202048,
        },
    },
    "dbrx": {
        "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "max_seq_len": 32768,
        "vocab_size": 100352,
        "attn_config": {"kv_n_heads": 8, "clip_qkv": 8},
        "ffn_config": {
            "ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4, "moe_normalize_expert_weights": 1,
        },
    },
    "phi-3.5-moe": {
        "model_type": "phimoe", "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2,
        "vocab_size": 32064,
    },
    "minimax-m2": {
        "model_type": "minimax_m2", "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 256,
        "num_experts_per_tok": 8, "use_routing_bias": True, "vocab_size": 200064,
    },
    "minimax-text-01": {
        "model_type": "minimax_text_01", "hidden_size": 6144, "intermediate_size": 9216, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 32,
        "num_experts_per_tok": 2, "attn_type_list": ([0] * 7 + [1]) * 10, "vocab_size": 200064,
    },
    "jamba-v0.1": {
        "model_type": "jamba", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_experts": 16, "num_experts_per_tok": 2,
        "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 8, "mamba_d_state": 16,
        "mamba_expand": 2, "vocab_size": 65536,
    },
}  # fmt: skip


def _write(folder: Path, config: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_huggingface_config_gives_the_catalog_model(name: str, tmp_path: Path) -> None:
    read = ModelSpec.model_validate(huggingface.from_config(_write(tmp_path, CONFIGS[name])))
    known = catalog.load("models", name)
    assert parameters.count(read) == parameters.count(known)
    assert parameters.flops_per_token(read, 65536) == parameters.flops_per_token(known, 65536)
    assert read.layer_kinds == known.layer_kinds
    assert read.router == known.router
    assert read.basis("layers") == "datasheet"
    assert read.name == tmp_path.name


def test_mistral_window_leaves_no_layer_full(tmp_path: Path) -> None:
    config = {**HEAD, "model_type": "mistral", "intermediate_size": 128, "sliding_window": 16}
    model = ModelSpec.model_validate(huggingface.from_config(_write(tmp_path, config)))
    everywhere = 16 * (1 - 16 / (2 * 4096)) * 4 * 4 * 16
    assert parameters.score_flops_per_token(model, 4096) == pytest.approx(everywhere)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen4_moe"}, "unknown model_type 'qwen4_moe'; nearest: .*known: dbrx, deepseek, "),
        ({}, "no model_type"),
        ([1], "expected a JSON object"),
        ({**HEAD, "model_type": "mixtral"}, "num_local_experts: is required"),
        (
            {**HEAD, "model_type": "llama", "intermediate_size": "big"},
            "intermediate_size: expected a whole number",
        ),
        ({**HEAD, "model_type": "llama", "intermediate_size": 0}, "intermediate_size: must be at least 1"),
        ({**HEAD, "model_type": "llama", "hidden_size": True}, "hidden_size: expected a whole number"),
        ({**HEAD, "model_type": "dbrx"}, "attn_config.kv_n_heads: is required"),
    ],
)
def test_huggingface_mistakes(config: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        huggingface.from_config(_write(tmp_path, config))


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 200_000, b'{"a": ' + b"9" * 6000 + b"}", b"\xff", b" " * (MAX_BYTES + 1)]
)
def test_huggingface_files_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"config\.json: "):
        huggingface.from_config(path)
