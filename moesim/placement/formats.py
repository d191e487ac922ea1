"""A placement as the files that serving engines read.

- `sglang`: `{"physical_to_logical_map": [[expert of each slot] for each layer of the model]}` for
  `--init-expert-location FILE.json` with `--ep-num-redundant-experts` (sglang/srt/eplb/expert_location.py,
  `compute_initial_expert_location_metadata`, which passes every key on, so that there is no other). Dense layers have
  rows too; they hold the experts in order.
- `tensorrt-llm`: YAML with `num_slots`, `initial_global_assignments` (the MoE layer's place in the model -> expert of
  each slot) and `layer_updates_per_iter: 0`, for `moe_config.load_balancer` (examples/wide_ep/ep_load_balancer).
- `vllm`: `[[expert of each slot] for each MoE layer]`, vLLM's own `physical_to_logical_map` [MoE layers, slots]. Its
  releases up to 0.32 compute that map themselves and read none; the list is what the open proposals read
  (vllm-project/vllm#49572, `eplb_config.initial_expert_map_path`).
- `vllm-ascend`: `{"moe_layer_count", "layer_list": [{"layer_id", "device_count", "device_list": [{"device_id",
  "device_expert"}]}]}` for its `expert_map_path` (vllm_ascend/eplb/core/eplb_utils.py).
- `json`: everything moesim knows of it, slots by rank.

In all of them slots are counted rank by rank: of P slots on R ranks the first P/R are rank 0's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from moesim.errors import UnknownNameError, UserError
from moesim.files import write_whole
from moesim.placement.placement import Placement


class Plan(NamedTuple):
    """A placement, the place in the model of each of its layers [L], how many layers the model has, and its story."""

    placement: Placement
    model_layers: tuple[int, ...]
    layers_of_model: int
    story: dict[str, Any]


def document(plan: Plan, format_: str) -> Any:
    """The plan as plain data of a format of `FORMATS`."""
    if format_ not in FORMATS:
        raise UnknownNameError("plan format", format_, FORMATS)
    if len(plan.model_layers) != plan.placement.layers or max(plan.model_layers) >= plan.layers_of_model:
        raise UserError(f"layers {plan.model_layers} are not those of a model of {plan.layers_of_model} layers")
    return FORMATS[format_](plan)


def render(plan: Plan, format_: str) -> str:
    """The plan as the text of its file."""
    data = document(plan, format_)
    if format_ == "tensorrt-llm":
        return str(yaml.safe_dump(data, default_flow_style=None, sort_keys=False, width=1 << 20))
    return json.dumps(data) + "\n"


def suffix(format_: str) -> str:
    """How the names of a format's files end."""
    return ".yaml" if format_ == "tensorrt-llm" else ".json"


def write(plan: Plan, format_: str, path: Path) -> None:
    """Writes the plan's file; raises `FileError` where it cannot."""
    write_whole(path, render(plan, format_))


def _sglang(plan: Plan) -> dict[str, Any]:
    placement = plan.placement
    in_order = (np.arange(placement.physical.shape[1]) % placement.experts).tolist()
    rows: list[Sequence[int]] = [in_order] * plan.layers_of_model
    for layer, slots in zip(plan.model_layers, placement.physical.tolist(), strict=True):
        rows[layer] = slots
    return {"physical_to_logical_map": rows}


def _tensorrt_llm(plan: Plan) -> dict[str, Any]:
    slots = dict(zip(plan.model_layers, plan.placement.physical.tolist(), strict=True))
    return {
        "num_slots": plan.placement.physical.shape[1],
        "initial_global_assignments": slots,
        "layer_updates_per_iter": 0,
    }


def _vllm(plan: Plan) -> list[list[int]]:
    return [list(slots) for slots in plan.placement.physical.tolist()]


def _vllm_ascend(plan: Plan) -> dict[str, Any]:
    layers = [
        {
            "layer_id": layer,
            "device_count": len(ranks),
            "device_list": [{"device_id": rank, "device_expert": slots} for rank, slots in enumerate(ranks)],
        }
        for layer, ranks in enumerate(plan.placement.expert_of_slot.tolist())
    ]
    return {"moe_layer_count": len(layers), "layer_list": layers}


def _json(plan: Plan) -> dict[str, Any]:
    placement = plan.placement
    return {
        "experts": placement.experts,
        "ranks": placement.ranks,
        "slots_per_rank": placement.slots,
        "redundant": placement.redundant,
        **plan.story,
        "model_layers": list(plan.model_layers),
        "expert_of_slot": placement.expert_of_slot.tolist(),
    }


FORMATS: dict[str, Callable[[Plan], Any]] = {
    "sglang": _sglang,
    "vllm": _vllm,
    "vllm-ascend": _vllm_ascend,
    "tensorrt-llm": _tensorrt_llm,
    "json": _json,
}
