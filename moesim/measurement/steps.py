"""A timed training step of a small model, and one of its expert layers, in the words of validation cases."""

from __future__ import annotations

from typing import Any

import yaml

from moesim.traces.training import TrainingConfig

Item = dict[str, Any]

_FORMATS = {"bf16": "bf16", "float32": "fp32"}


def scenario_of(config: TrainingConfig, gpu: str) -> Item:
    """The scenario of one such model on one such GPU."""
    model: Item = {
        "layers": config.layers,
        "moe_layers": len(config.model_layers),
        "d_model": config.width,
        "n_heads": config.heads,
        "vocab": config.vocabulary,
        "tied_embeddings": True,
        "n_experts": config.experts,
        "top_k": config.top_k,
        "d_ff_expert": config.expert_width,
        "router": config.router.model_dump(exclude_defaults=True) or {"rule": config.router.rule},
    }
    if len(config.model_layers) < config.layers:
        model["d_ff_dense"] = config.dense_width
    if config.shared_experts:
        shared = config.shared_experts * config.expert_width
        model |= {"n_shared_experts": config.shared_experts, "shared_expert_width": shared}
    capacity = config.capacity if isinstance(config.capacity, str) else config.capacity.model_dump(mode="json")
    return {
        "model": model,
        "cluster": {"gpu": gpu, "gpus": 1},
        "workload": {
            "sequence_length": config.sequence_length,
            "micro_batch": config.batch,
            "global_batch": config.batch,
        },
        "precision": {"compute": _FORMATS[config.precision]},
        "routing": {"load": "uniform", "capacity": capacity},
    }


def step_case(config: TrainingConfig, gpu: str, seconds: float, source: Item) -> Item:
    """A whole training step: forward, backward, gradient clipping, optimizer."""
    said = {"id": f"step/{config.name}", "kind": "train_step", "scenario": scenario_of(config, gpu)}
    return {**said, "measured": {"step_time": seconds}, "source": source}


def layer_case(config: TrainingConfig, gpu: str, seconds: float, source: Item) -> Item:
    """One layer's router and experts forward, all experts on one GPU."""
    op = {
        "gpu": gpu,
        "ranks": 1,
        "tokens": config.batch * config.sequence_length,
        "hidden": config.width,
        "inter": config.expert_width,
        "top_k": config.top_k,
        "experts": config.experts,
        "expert_dtype": _FORMATS[config.precision],
        "load": "uniform",
    }
    said = {"id": f"layer/{config.name}", "kind": "moe_layer", "op": op}
    return {**said, "measured": {"time": seconds}, "source": source}


def as_yaml(items: list[Item]) -> bytes:
    """A case file."""
    return yaml.safe_dump(items, sort_keys=False, width=110, allow_unicode=True).encode()
