"""Synthetic results with the shape of real ones: a 1F1B pipeline timed operation by operation, skewed routing, traffic.

Numbers are made up, their relations are not: streams never overlap themselves, parts add up, counts are conserved.
P stages, M microbatches, L layers, R ranks, E experts, S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.columns import OPERATIONS, SUMMARY
from moesim.provenance import Basis, Quantity
from moesim.results.result import Result

LAYER_FORWARD = (
    ("attention", "compute", 1.9e-3),
    ("router", "compute", 0.1e-3),
    ("dispatch", "communication", 1.1e-3),
    ("experts", "compute", 2.4e-3),
    ("combine", "communication", 1.6e-3),
)
LAYER_BACKWARD = tuple((kind, stream, 2 * time) for kind, stream, time in reversed(LAYER_FORWARD))
PARTS = {
    "attention": "attention",
    "router": "router",
    "experts": "experts",
    "exposed dispatch": "dispatch",
    "exposed combine": "combine",
    "data parallel": "gradient reduction",
    "optimizer": "optimizer",
}
HBM = 80e9


@dataclass(frozen=True)
class Shape:
    """How large the synthetic run is; the default is quick, `LARGE` has about 200,000 operations."""

    stages: int = 4
    microbatches: int = 16
    layers: int = 16
    ranks: int = 16
    experts: int = 64
    samples: int = 4
    seed: int = 7
    slow_network: float = 1.0


LARGE = Shape(stages=16, microbatches=156, layers=128, ranks=64, experts=256)


def simulated(shape: Shape | None = None, name: str = "small-moe", question: str = "Does it fit?") -> Result:
    """A result of the simulation road."""
    shape = shape or Shape()
    operations = _operations(shape)
    breakdown = _breakdown(operations, shape)
    memory = {
        **{"weights": 5.3e9, "gradients": 2.7e9, "optimizer": 3.8e9},
        **{"expert weights": 16.0e9, "expert gradients": 8.0e9, "expert optimizer": 9.4e9},
        **{"activations": 18.9e9, "dispatch buffers": 2.1e9, "libraries and fragmentation": 4.0e9},
    }
    return Result(
        name=name,
        question=question,
        road="simulate",
        scenario=scenario(name, question, shape),
        summary=_summary(breakdown, memory),
        breakdown=breakdown,
        memory=memory,
        notes=("routing profile deepseek-v3-like is fitted on another model's traces", "one group of 4 simulated"),
        operation_columns=operations,
        routing_columns=_routing(shape),
        traffic=_traffic(shape),
    )


def estimated(name: str = "small-moe", question: str = "Does it fit?") -> Result:
    """A result of the closed-form road: no operations."""
    return replace(simulated(name=name, question=question), road="estimate", operation_columns=None)


def dense(name: str = "small-dense", question: str = "How much does routing cost?") -> Result:
    """An estimate of a model without routed experts: nothing routed, nothing dispatched."""
    return replace(estimated(name, question), routing_columns=None, traffic=None)


def scenario(name: str, question: str, shape: Shape) -> dict[str, Any]:
    """A filled-in scenario as plain data."""
    return {
        "name": name,
        "question": question,
        "model": {"name": "small-moe", "layers": shape.layers, "experts": shape.experts, "top_k": 8},
        "cluster": {"gpu": {"name": "h100-sxm", "memory": HBM}, "gpus": shape.stages * shape.ranks},
        "parallelism": {"pipeline": shape.stages, "expert": shape.ranks, "tensor": 1},
        "workload": {"kind": "training", "sequence_length": 4096, "total_tokens": None},
        "simulation": {"seed": shape.seed, "jitter": 0.0},
    }


def _slots(stage: int, shape: Shape) -> list[tuple[str, int]]:
    """1F1B: the ordered (phase, microbatch) of one stage."""
    warm = min(shape.stages - stage - 1, shape.microbatches)
    order = [("forward", m) for m in range(warm)]
    for m in range(shape.microbatches - warm):
        order += [("forward", m + warm), ("backward", m)]
    return order + [("backward", m) for m in range(shape.microbatches - warm, shape.microbatches)]


def _schedule(shape: Shape, forward: float, backward: float) -> Iterator[tuple[int, str, int, float]]:
    """(stage, phase, microbatch, begin) of every slot, in an order in which inputs are ready."""
    pending = [_slots(stage, shape) for stage in range(shape.stages)]
    free = [0.0] * shape.stages
    done: dict[tuple[int, str, int], float] = {}
    while any(pending):
        for stage, slots in enumerate(pending):
            while slots:
                phase, m = slots[0]
                peer = stage - 1 if phase == "forward" else stage + 1
                needs = (peer, phase, m) if 0 <= peer < shape.stages else (stage, "forward", m)
                at_source = phase == "forward" and peer < 0
                if not at_source and needs not in done:
                    break
                begin = max(free[stage], 0.0 if at_source else done[needs] + 0.2e-3)
                free[stage] = done[stage, phase, m] = begin + (forward if phase == "forward" else backward)
                slots.pop(0)
                yield stage, phase, m, begin


def _operations(shape: Shape) -> dict[str, NDArray[Any]]:
    per_stage = shape.layers // shape.stages
    templates = {
        "forward": _template(LAYER_FORWARD, list(range(per_stage)), shape),
        "backward": _template(LAYER_BACKWARD, list(range(per_stage))[::-1], shape),
    }
    span = {phase: float(template["end_mean"][-1]) for phase, template in templates.items()}
    parts: list[dict[str, NDArray[Any]]] = []
    for stage, phase, microbatch, begin in _schedule(shape, span["forward"], span["backward"]):
        template = templates[phase]
        part = dict(template)
        for column in ("begin", "end", "begin_mean", "end_mean"):
            part[column] = template[column] + begin
        n = len(template["kind"])
        fixed = {"step": 0, "stage": stage, "chunk": stage, "microbatch": microbatch}
        part |= {column: np.full(n, value, np.int32) for column, value in fixed.items()}
        part["layer"] = template["layer"] + np.int32(stage * per_stage)
        parts.append(part)
    parts.append(_tail(shape, max(float(part["end"].max()) for part in parts)))
    return {column: np.concatenate([part[column] for part in parts]) for column in OPERATIONS}


def _template(layer: tuple[tuple[str, str, float], ...], order: list[int], shape: Shape) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(shape.seed)
    kind, stream, time = (np.array(values * len(order)) for values in zip(*layer, strict=True))
    sent = stream == "communication"
    time = time * np.where(sent, shape.slow_network, 1.0) * rng.uniform(0.9, 1.2, len(time))
    end = np.cumsum(time)
    spread = 0.05 * time
    n = len(time)
    return {
        "layer": np.repeat(np.array(order, np.int32), len(layer)),
        "phase": np.full(n, "forward" if layer is LAYER_FORWARD else "backward"),
        "kind": kind,
        "stream": stream,
        "begin": end - time - spread,
        "end": end + spread,
        "begin_mean": end - time,
        "end_mean": end,
        "busy_mean": 0.95 * time,
        "bytes_up": np.where(sent, 3.1e9, 0.0),
        "bytes_out": np.where(sent, 1.2e9, 0.0),
        "rows": np.where(kind == "experts", 524288.0, 0.0),
        "basis": np.where(sent, "measured", "fitted"),
    }


def _tail(shape: Shape, begin: float) -> dict[str, NDArray[Any]]:
    """Gradient reduction and optimizer update of every stage."""
    n = 2 * shape.stages
    start = begin + np.tile([0.0, 0.060], shape.stages)
    stop = start + np.tile([0.060, 0.025], shape.stages)
    none = np.full(n, -1, np.int32)
    zero = np.zeros(n)
    stage = np.repeat(np.arange(shape.stages, dtype=np.int32), 2)
    return {
        **{"step": none * 0, "stage": stage, "chunk": stage, "microbatch": none, "layer": none},
        "phase": np.full(n, "step"),
        "kind": np.tile(["gradient reduction", "optimizer"], shape.stages),
        "stream": np.full(n, "data-parallel"),
        **{"begin": start, "end": stop, "begin_mean": start, "end_mean": stop, "busy_mean": stop - start},
        **{"bytes_up": zero, "bytes_out": zero + 2e9, "rows": zero},
        "basis": np.full(n, "fitted"),
    }


def _breakdown(operations: dict[str, NDArray[Any]], shape: Shape) -> dict[str, float]:
    """Seconds by kind, mean over stages; what is left of the step is waiting for other stages."""
    time = operations["end_mean"] - operations["begin_mean"]
    parts = {
        name: float(time[operations["kind"] == kind].sum()) / shape.stages
        for name, kind in PARTS.items()
        if kind in operations["kind"]
    }
    return {**parts, "pipeline bubble": float(operations["end"].max()) - sum(parts.values())}


def _summary(breakdown: dict[str, float], memory: dict[str, float]) -> dict[str, Quantity]:
    step, exchange = sum(breakdown.values()), breakdown["exposed dispatch"] + breakdown["exposed combine"]
    values: dict[str, tuple[float, float, Basis, str]] = {
        "step_time": (step, 0.08, "fitted", "fitted on published step times"),
        "tokens_per_second": (2**22 / step, 0.08, "fitted", ""),
        "model_flops_utilization": (0.312, 0.08, "fitted", "causal attention halved"),
        "communication_time": (exchange, 0.2, "measured", ""),
        "exposed_communication_time": (exchange, 0.2, "measured", "no overlap"),
        "dispatch_time": (breakdown["exposed dispatch"], 0.2, "measured", ""),
        "combine_time": (breakdown["exposed combine"], 0.2, "measured", ""),
        "pipeline_bubble_time": (breakdown["pipeline bubble"], 0.1, "fitted", ""),
        "bytes_scale_out_per_gpu": (6.1e9, 0.0, "derived", ""),
        "dropped_token_fraction": (0.0, 0.0, "derived", "dropless"),
        "expert_load_max_over_mean": (2.31, 0.1, "fitted", "mean over layers and samples"),
        "balancedness": (0.71, 0.1, "fitted", "SGLang's definition"),
        "memory_per_gpu": (sum(memory.values()), 0.1, "derived", ""),
        "fits_in_memory": (sum(memory.values()) / HBM, 0.1, "derived", "fits"),
        "total_parameters": (6.7e10, 0.0, "datasheet", ""),
        "active_parameters": (3.7e9, 0.0, "datasheet", ""),
        "flops_per_token": (2.3e10, 0.0, "derived", ""),
        "gpu_hours": (181_000.0, 0.08, "fitted", ""),
        "cost": (362_000.0, 0.08, "assumed", "2 $ an hour, the user's price"),
    }
    return {
        name: Quantity.within(value, SUMMARY[name].unit, relative, basis, note)
        for name, (value, relative, basis, note) in values.items()
    }


def _routing(shape: Shape) -> dict[str, NDArray[Any]]:
    """[L, S, E] token counts under a log-normal popularity that stays with the layer."""
    rng = np.random.default_rng(shape.seed)
    L, S, E = shape.layers, shape.samples, shape.experts
    popularity = rng.lognormal(0.0, 0.6, (L, 1, E))
    chance = popularity / popularity.sum(-1, keepdims=True)
    tokens = rng.multinomial(4096 * 8, np.broadcast_to(chance, (L, S, E)))
    layer, sample, expert = np.indices((L, S, E)).astype(np.int32)
    return {
        "layer": layer.ravel(),
        "sample": sample.ravel(),
        "expert": expert.ravel(),
        "rank": (expert // (E // shape.ranks)).ravel(),
        "tokens": tokens.ravel().astype(np.int64),
        "kept": np.minimum(tokens, int(2.0 * tokens.mean())).ravel().astype(np.int64),
    }


def _traffic(shape: Shape) -> NDArray[np.float64]:
    """[R, R] bytes: every source sends more to the popular destinations."""
    rng = np.random.default_rng(shape.seed)
    popularity = rng.lognormal(0.0, 0.4, shape.ranks)
    return np.outer(rng.uniform(0.95, 1.05, shape.ranks), popularity / popularity.mean()) * 7.3e6
