"""Reads a Hugging Face `config.json` into the fields of a model; nothing of it is executed.

One function a family of `model_type`; key names and router rules follow the transformers sources of each family.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesim.catalog.yaml_files import read_text
from moesim.errors import FileError, Problem, ScenarioError, UserError, nearest_hint, shorten

Fields = dict[str, Any]

# A recurrent state of some width costs a token what attention to so many keys does.
_LINEAR = "linear or state-space layers are priced as attention with a window of one state"


def from_config(path: Path) -> Fields:
    """The fields of `ModelSpec` that a `config.json` states, plain and with sources.

    Raises `FileError` where the file cannot be read as a JSON object, `UserError` where its `model_type` is not known,
    `ScenarioError` with every number that is missing or not a number.
    """
    document = _read_object(path)
    text = document.get("text_config")
    if isinstance(text, dict):  # multimodal: the language model's part
        document = {**text, "model_type": text.get("model_type", document.get("model_type"))}
    kind = str(document.get("model_type", ""))
    if kind not in _FAMILIES:
        what = f"unknown model_type {shorten(kind)!r}" if kind else "no model_type"
        raise UserError(f"{path}: {what}{nearest_hint(kind, _FAMILIES)}; known: {', '.join(sorted(_FAMILIES))}")
    config = _Config(document)
    fields = _FAMILIES[kind](config)
    if config.problems:
        raise ScenarioError(config.problems, str(path))
    fields["name"] = path.parent.name if path.name == "config.json" and path.parent.name else path.stem
    fields["sources"] = {"": {"basis": "datasheet", "where": f"{path.name}, model_type {kind}"}}
    return {field: value for field, value in fields.items() if value is not None}


def _read_object(path: Path) -> Fields:
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise FileError(f"{path}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: not JSON that can be read: nested too deep or a number too long") from error
    if not isinstance(document, dict):
        raise FileError(f"{path}: expected a JSON object, got {shorten(document)}")
    return document


class _Config:
    """Typed look-ups in a configuration; what is missing or of the wrong kind is collected."""

    def __init__(self, document: Fields, prefix: str = "") -> None:
        self.document = document
        self.prefix = prefix
        self.problems: list[Problem] = []

    def number(self, *keys: str, default: int | None = None) -> int | None:
        """The whole number under the first key that is there; `default` where none is."""
        key = next((key for key in keys if self.document.get(key) is not None), None)
        if key is None:
            return default
        value = self.document[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.problems.append(Problem(self.prefix + key, f"expected a whole number, got {shorten(value)}"))
            return default
        return value

    def required(self, *keys: str) -> int:
        """The same, at least 1, where the family cannot do without; what is missing is reported and stands as 1."""
        if all(self.document.get(key) is None for key in keys):
            self.problems.append(Problem(self.prefix + keys[0], "is required"))
        value = self.number(*keys, default=1)
        if value == 0:
            self.problems.append(Problem(self.prefix + keys[0], "must be at least 1, got 0"))
        return value or 1

    def real(self, key: str, default: float) -> float:
        """The number under a key."""
        value = self.document.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.problems.append(Problem(self.prefix + key, f"expected a number, got {shorten(value)}"))
            return default
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """The truth value under a key."""
        value = self.document.get(key)
        return default if value is None else bool(value)

    def part(self, key: str) -> _Config:
        """A nested object, which reports into the same list."""
        value = self.document.get(key)
        inner = _Config(value if isinstance(value, dict) else {}, f"{key}.")
        inner.problems = self.problems
        return inner


def _common(config: _Config) -> Fields:
    return {
        "layers": config.required("num_hidden_layers", "n_layers"),
        "d_model": config.required("hidden_size", "d_model"),
        "n_heads": config.required("num_attention_heads", "n_heads"),
        "n_kv_heads": config.number("num_key_value_heads"),
        "head_dim": config.number("head_dim"),
        "vocab": config.required("vocab_size"),
        "tied_embeddings": config.flag("tie_word_embeddings"),
        "sequence_length": config.number("max_position_embeddings", "max_seq_len"),
        "mtp_layers": config.number("num_nextn_predict_layers", default=0),
    }


def _dense(config: _Config) -> Fields:
    return {**_common(config), "d_ff_dense": config.required("intermediate_size")}


def _mistral(config: _Config) -> Fields:
    return _windowed(_dense(config), config.number("sliding_window"), full=0)


def _windowed(fields: Fields, window: int | None, full: int, note: str | None = None) -> Fields:
    """`fields` with a window in all layers but `full` of them, spread evenly."""
    layers: int = fields["layers"]
    if not window or full >= layers:
        return fields
    # The last of each `full_attention_every` layers is full: none where there are fewer layers.
    every = layers // full if full else layers + 1
    return {**fields, "sliding_window": window, "full_attention_every": every, "note": note}


def _mixture(config: _Config, dense_first: int = 0, period: int = 1, **fields: Any) -> Fields:
    """The fields of a mixture: `dense_first` dense layers, then the last of each `period` layers sparse."""
    common = _common(config)
    layers: int = common["layers"]
    if dense_first and period > 1:
        config.problems.append(Problem("", f"{dense_first} dense layers and then 1 of {period} sparse: not known"))
    if dense_first:
        sparse, pattern = max(0, layers - dense_first), f"all except first {dense_first}"
    else:
        sparse, pattern = layers // max(1, period), f"every {period}" if period > 1 else "all"
    if sparse == layers:
        fields.pop("d_ff_dense", None)
    return {**common, "moe_layers": sparse, "moe_layer_pattern": pattern, **fields}


def _deepseek(config: _Config) -> Fields:
    """DeepSeek (MoE, V2, V3), Kimi-K2 and GLM-4.5: shared experts beside routed ones, dense layers first."""
    width = config.required("moe_intermediate_size")
    shared = config.number("n_shared_experts", default=0) or 0
    latent = config.document.get("kv_lora_rank") is not None
    fields = _mixture(
        config,
        dense_first=config.number("first_k_dense_replace", default=0) or 0,
        period=config.number("moe_layer_freq", default=1) or 1,
        d_ff_dense=config.required("intermediate_size"),
        n_experts=config.required("n_routed_experts"),
        top_k=config.required("num_experts_per_tok"),
        d_ff_expert=width,
        n_shared_experts=shared,
        shared_expert_width=shared * width,
        mla=_latent(config) if latent else None,
        router=_deepseek_router(config),
    )
    return {**fields, "n_kv_heads": None, "head_dim": None} if latent else fields


def _latent(config: _Config) -> Fields:
    return {
        "q_lora_rank": config.number("q_lora_rank", default=0),
        "kv_lora_rank": config.required("kv_lora_rank"),
        "qk_nope": config.required("qk_nope_head_dim"),
        "qk_rope": config.required("qk_rope_head_dim"),
        "v_head": config.required("v_head_dim"),
    }


def _deepseek_router(config: _Config) -> Fields:
    """`noaux_tc` is DeepSeek-V3's rule with a selection bias; glm4_moe, which names no method, has the same."""
    method = config.document.get("topk_method")
    kind = config.document.get("model_type")
    biased = method == "noaux_tc" or kind == "glm4_moe"
    scoring = config.document.get("scoring_func") or ("sigmoid" if biased else "softmax")
    router: Fields = {
        "rule": f"{scoring}-top-k",
        "renormalize": config.flag("norm_topk_prob", default=biased),
        "scale": config.real("routed_scaling_factor", 1.0),
        "bias": biased,
    }
    groups = config.number("n_group", default=1) or 1
    if groups > 1 and method != "greedy":
        router["groups"] = groups
        router["top_groups"] = config.number("topk_group", default=1) or 1
        router["group_score"] = "top2-sum" if biased else "max"
    return router


def _qwen(config: _Config) -> Fields:
    """Qwen2-MoE, Qwen3-MoE and Qwen3-Next."""
    shared = config.number("shared_expert_intermediate_size", default=0) or 0
    dense = config.document.get("mlp_only_layers")
    fields = _mixture(
        config,
        dense_first=len(dense) if isinstance(dense, list) else 0,
        period=config.number("decoder_sparse_step", default=1) or 1,
        n_experts=config.required("num_experts"),
        top_k=config.required("num_experts_per_tok"),
        d_ff_dense=config.number("intermediate_size"),
        d_ff_expert=config.required("moe_intermediate_size"),
        n_shared_experts=1 if shared else 0,
        shared_expert_width=shared,
        router={"rule": "softmax-top-k", "renormalize": config.flag("norm_topk_prob")},
    )
    interval = config.number("full_attention_interval", default=1) or 1
    return _windowed(fields, config.number("linear_key_head_dim"), fields["layers"] // interval, _LINEAR)


def _local_experts(config: _Config, renormalize: bool = True, rule: str = "softmax-top-k") -> Fields:
    """Mixtral and its kin: every layer sparse, `intermediate_size` an expert's width."""
    return _mixture(
        config,
        n_experts=config.required("num_local_experts", "num_experts"),
        top_k=config.required("num_experts_per_tok", "experts_per_token"),
        d_ff_expert=config.required("intermediate_size"),
        router={"rule": rule, "renormalize": renormalize},
    )


def _mixtral(config: _Config) -> Fields:
    return _windowed(_local_experts(config), config.number("sliding_window"), full=0)


def _olmoe(config: _Config) -> Fields:
    return _local_experts(config, renormalize=config.flag("norm_topk_prob"))


def _phimoe(config: _Config) -> Fields:
    return _local_experts(config, renormalize=False)


def _gpt_oss(config: _Config) -> Fields:
    """Every other layer has a window unless `layer_types` says otherwise."""
    fields = _local_experts(config)
    full = _count(config.document.get("layer_types"), "full_attention", default=fields["layers"] // 2)
    return _windowed(fields, config.number("sliding_window"), full)


def _minimax_text(config: _Config) -> Fields:
    fields = _local_experts(config)
    full = _count(config.document.get("attn_type_list"), 1, default=fields["layers"])
    full = _count(config.document.get("layer_types"), "full_attention", default=full)
    width = fields["head_dim"] or max(1, fields["d_model"] // fields["n_heads"])
    return _windowed(fields, width, full, _LINEAR)


def _count(kinds: Any, wanted: object, default: int) -> int:
    return kinds.count(wanted) if isinstance(kinds, list) else default


def _minimax_m2(config: _Config) -> Fields:
    fields = _local_experts(config, rule="sigmoid-top-k")
    fields["router"]["bias"] = config.flag("use_routing_bias", default=True)
    return fields


def _dbrx(config: _Config) -> Fields:
    experts = config.part("ffn_config")
    return {
        **_mixture(config),
        "n_kv_heads": config.part("attn_config").required("kv_n_heads"),
        "n_experts": experts.required("moe_num_experts"),
        "top_k": experts.required("moe_top_k"),
        "d_ff_expert": experts.required("ffn_hidden_size"),
        "router": {"rule": "softmax-top-k", "renormalize": bool(experts.real("moe_normalize_expert_weights", 1.0))},
    }


def _llama4(config: _Config) -> Fields:
    """One shared expert of an expert's width; the sigmoid of the one best logit scales the expert's input."""
    width = config.required("intermediate_size")
    return _mixture(
        config,
        period=config.number("interleave_moe_layer_step", default=1) or 1,
        n_experts=config.required("num_local_experts"),
        top_k=config.required("num_experts_per_tok"),
        d_ff_dense=config.number("intermediate_size_mlp"),
        d_ff_expert=width,
        n_shared_experts=1,
        shared_expert_width=width,
        router={"rule": "sigmoid-top-k", "renormalize": False},
    )


def _jamba(config: _Config) -> Fields:
    width = config.required("intermediate_size")
    fields = _mixture(
        config,
        period=config.number("expert_layer_period", default=2) or 2,
        n_experts=config.required("num_experts"),
        top_k=config.required("num_experts_per_tok"),
        d_ff_dense=width,
        d_ff_expert=width,
        router={"rule": "softmax-top-k", "renormalize": False},
    )
    # An element of the state costs three multiply-adds a token, a key two for each of the model's channels.
    state = (config.number("mamba_expand", default=2) or 2) * (config.number("mamba_d_state", default=16) or 16)
    period = config.number("attn_layer_period", default=8) or 8
    return _windowed(fields, 3 * state // 2, fields["layers"] // period, _LINEAR)


_FAMILIES: dict[str, Callable[[_Config], Fields]] = {
    **dict.fromkeys(("deepseek", "deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe"), _deepseek),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "qwen3_next"), _qwen),
    **dict.fromkeys(("llama", "qwen2", "qwen3"), _dense),
    **dict.fromkeys(("llama4", "llama4_text"), _llama4),
    **dict.fromkeys(("minimax", "minimax_text_01"), _minimax_text),
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "phimoe": _phimoe,
    "gpt_oss": _gpt_oss,
    "minimax_m2": _minimax_m2,
    "dbrx": _dbrx,
    "jamba": _jamba,
}
