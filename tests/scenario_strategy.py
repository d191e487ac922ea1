"""Random scenarios, legal by construction: training and serving, as documents that `moesim.load` takes.

One law of what goes with what, under two kinds of dice: hypothesis (`training`, `serving`: shrinks towards the first of
every choice) and a plain seeded generator (`random_document`, for long runs).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, TypeVar

from hypothesis import strategies as st

from moesim.scenario.degrees import divisors

T = TypeVar("T")
Pick = Callable[[Sequence[T]], T]
Document = dict[str, Any]

GPUS = ("h100-sxm", "a100-sxm-80g", "h800-sxm", "h20-sxm", "b200-sxm", "gb200-nvl72", "mi300x", "l40s", "tpu-v4")
FABRICS = ("rail-optimized-400g", "single-switch", "fat-tree-nonblocking", "fat-tree-2to1", "dual-plane-400g", "efa-v3")
NO_FP8 = ("a100-sxm-80g", "tpu-v4")
UNLIKE_NODES = ("gb200-nvl72", "l40s", "tpu-v4")  # they keep the fabric that goes with them
# Those that draw every token's scores, from hash on, take seconds: one in ten of the others.
QUICK = ("model-default", "sigmoid-top-k", "deepseek-v3", "switch", "gshard")
ROUTERS = (*QUICK * 4, "hash", "expert-choice", "top-p")
LOADS: tuple[Any, ...] = (
    "uniform",
    "bias-balanced",
    "aux-loss-balanced",
    {"zipf": 0.3},
    {"zipf": 0.8},
    {"log_normal": 0.5},
    {"log_normal": 0.3, "sequence_tilt": 0.7},
    "deepseek-v3-like",
    "mixtral-like",
)
DIALECTS = ("megatron", "switch", "gshard", "deepspeed", "tutel", "megablocks", "v-moe", "mesh-tf")
MOST_GPUS = 64


@st.composite
def training(draw: st.DrawFn, moe: bool | None = None, exchanges: bool | None = None) -> Document:
    """Training scenarios; `moe` asks for experts or none, `exchanges` for several expert-parallel ranks."""
    return training_document(lambda options: draw(st.sampled_from(options)), moe, exchanges)


@st.composite
def serving(draw: st.DrawFn) -> Document:
    """Serving scenarios under closed arrivals, which no deployment refuses for their rate."""
    return serving_document(lambda options: draw(st.sampled_from(options)))


def random_document(kind: str, seed: int, index: int) -> Document:
    """The `index`-th document of a seed, without hypothesis."""
    dice = random.Random(f"{kind} {seed} {index}")
    return (training_document if kind == "training" else serving_document)(dice.choice)


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism, and the GPUs they fill."""

    tensor: int
    pipeline: int
    context: int
    data: int

    @property
    def stage(self) -> int:
        """GPUs of a pipeline stage."""
        return self.tensor * self.context * self.data

    @property
    def gpus(self) -> int:
        """GPUs of all stages."""
        return self.stage * self.pipeline


def training_document(pick: Pick[Any], moe: bool | None = None, exchanges: bool | None = None) -> Document:
    """A training scenario, one choice after the other."""
    layout = _layout(pick, exchanges)
    wanted = exchanges or moe
    model = _model(pick, layout.pipeline, pick((True, True, True, True, False)) if wanted is None else wanted)
    degrees = {"tensor": layout.tensor, "pipeline": layout.pipeline, "context": layout.context}
    document: Document = {"model": model, "cluster": _cluster(pick, layout.gpus)}
    if model["moe_layers"]:
        shared = divisors(gcd(layout.stage, model["n_experts"]))
        degrees["expert"] = pick([degree for degree in shared if degree > 1 or not exchanges])
        splits = [one for one in (1, 2, 4) if layout.stage // degrees["expert"] % one == 0]
        degrees["expert_tensor"] = pick([*splits, 1])
    work = {"sequence_length": pick((512, 1024, 2048)), "micro_batch": pick((1, 1, 2))}
    schedule, microbatches = _schedule(pick, layout.pipeline, model["layers"])
    if schedule == "interleaved-1f1b":
        degrees["virtual_pipeline"] = 2
    work["global_batch"] = microbatches * layout.data * work["micro_batch"]
    degrees["data_sharding"] = pick(("optimizer", "none", "gradients", "full"))
    tokens = work["sequence_length"] * work["micro_batch"] // layout.context // layout.tensor
    exchanged = degrees.get("expert", 1) > 1
    document |= {"parallelism": degrees, "workload": work, "schedule": {"kind": schedule}}
    document["overlap"] = _overlap(pick, schedule, layout.pipeline, model, tokens if exchanged else 0)
    document["recompute"] = pick(("none", "selective", "full", ["moe_act", "layernorm"]))
    formats = ("bf16",) if document["cluster"]["gpu"] in NO_FP8 else ("bf16", "fp8")
    document["precision"] = {"compute": pick(formats), "dispatch": pick(("bf16", "fp8-block"))}
    if model["moe_layers"]:
        document |= _routing(pick, model, degrees["expert"])
    document["stack_options"] = {"cuda_graphs": pick(("none", "full")), "fused_expert_mlp": pick((False, True))}
    document["simulation"] = {"seed": pick((0, 1, 2, 3)), "microbatch_samples": 4}
    return document


def serving_document(pick: Pick[Any]) -> Document:
    """A serving scenario, one choice after the other."""
    tensor, replicas, engines = pick((1, 2, 4)), pick((1, 2, 4, 8)), pick((1, 2))
    gpus = tensor * replicas
    model = _model(pick, 1, pick((True, True, True, False)))
    expert = pick(divisors(gcd(gpus, model["n_experts"]))) if model["moe_layers"] else 1
    cluster = {"gpu": pick(("h100-sxm", "h200-sxm", "b200-sxm", "mi300x")), "gpus": gpus * engines}
    many = pick((4, 1, 16, 64, 256))
    kind = pick(("serving", "decode", "prefill"))
    work: Document = {
        "kind": kind,
        "requests": max(100, 4 * many),
        "input_tokens": pick((512, 128, 2048, {"mean": 1000, "deviation": 600})),
        "arrivals": {"kind": "closed", "concurrency": many},
    }
    if kind != "prefill":
        work["output_tokens"] = pick((64, 16, 256, {"mean": 128, "deviation": 64}))
    engine = {"token_budget": pick((4096, 1024, 8192)), "chunked_prefill": pick((True, True, False))}
    if kind != "prefill":
        engine["speculative_tokens"] = pick((1.0, 1.0, 1.8))
    document: Document = {
        "model": model,
        "cluster": cluster,
        "instance": {"gpus": gpus, "tensor": tensor, "expert": expert},
        "workload": work,
        "engine": engine,
        "precision": {"compute": pick(("bf16", "fp8"))},
    }
    if model["moe_layers"]:
        document["routing"] = {"load": pick(LOADS)}
    return document


def _layout(pick: Pick[Any], exchanges: bool | None) -> Layout:
    tensor, pipeline, context = pick((1, 2, 4)), pick((1, 2, 4, 3)), pick((1, 1, 1, 2))
    most = MOST_GPUS // (tensor * pipeline * context)
    wide = [data for data in (4, 1, 2, 8, 16, 32) if data <= most]
    return Layout(tensor, pipeline, context, pick([data for data in wide if not exchanges or data > 1]))


def _model(pick: Pick[Any], stages: int, moe: bool) -> Document:
    """A decoder with as many layers as four stages need, even and odd."""
    heads = pick((16, 8, 32, 64))
    layers = pick((8, 12, 10, 16)) if stages > 1 else pick((4, 2, 7, 12))
    model: Document = {"layers": layers, "moe_layers": 0, "d_model": heads * pick((64, 128)), "n_heads": heads}
    model |= {"n_kv_heads": pick((heads, 8, 4)), "vocab": pick((32000, 128000)), "gated": pick((True, True, False))}
    if not moe:
        return {**model, "d_ff_dense": 4 * model["d_model"]}
    experts = pick((16, 8, 64, 32, 24))
    dense = pick((0, 0, 1, 2))
    model |= {"moe_layers": layers - min(dense, layers - 1), "n_experts": experts}
    model |= {
        "top_k": pick([k for k in (2, 1, 4, 8) if k <= experts // 4]),
        "d_ff_expert": pick((1024, 512, 2048, 4096)),
    }
    if dense:
        model["d_ff_dense"] = 4 * model["d_model"]
    if pick((False, False, True)):
        model |= {"n_shared_experts": 1, "shared_expert_width": model["d_ff_expert"]}
    return model


def _cluster(pick: Pick[Any], gpus: int) -> Document:
    cluster: Document = {"gpu": pick(GPUS), "gpus": gpus}
    if cluster["gpu"] not in UNLIKE_NODES:
        cluster["fabric"] = pick(FABRICS)
    return cluster


def _schedule(pick: Pick[Any], stages: int, layers: int) -> tuple[str, int]:
    """A schedule that so many stages allow, and a number of microbatches that suits it."""
    if stages == 1:
        return "1f1b", pick((4, 1, 2, 8, 16))
    kinds = ["1f1b", "gpipe", "zero-bubble-h1"]
    kinds += ["interleaved-1f1b", "zero-bubble-v"] * (2 * stages <= layers)
    kinds += ["dualpipe"] * (stages % 2 == 0)
    return pick(kinds), 2 * stages * pick((1, 2, 4))


def _overlap(pick: Pick[Any], schedule: str, stages: int, model: Document, tokens: int) -> Document:
    """What may run beside what; `tokens` of a GPU's microbatch, 0 where nothing is exchanged."""
    overlap: Document = {"data_parallel": pick((True, False)), "pipeline": pick((True, False))}
    if not tokens:
        return overlap
    pairs = schedule != "gpipe" and (schedule != "zero-bubble-h1" or stages == 1)
    ways = ["none", *["expert_communication"] * pairs, *["two_batch"] * (tokens % 2 == 0)]
    way = pick(ways)
    if way != "none":
        overlap[way] = True
    if model.get("n_shared_experts"):
        overlap["shared_experts"] = pick((False, True))
    if not schedule.startswith("zero-bubble"):
        overlap["weight_gradients"] = pick(("with-backward", "with-backward", "delayed"))
    return {**overlap, "interference": pick(("reserved", "beside", "none"))}


def _routing(pick: Pick[Any], model: Document, ranks: int) -> Document:
    """Router, load, capacity and placement that suit the model."""
    experts, top_k = model["n_experts"], model["top_k"]
    suits = {"switch": top_k == 1, "gshard": top_k == 2, "hash": top_k == 1, "top-p": top_k > 1}
    suits["deepseek-v3"] = experts % 8 == 0 and top_k <= experts // 2 and experts >= 16
    router = pick([name for name in ROUTERS if suits.get(name, True)])
    routing: Document = {"router": router, "load": pick(LOADS), "capacity": "dropless", "seed": pick((0, 1, 2, 3))}
    if pick((False, False, True)):
        routing["capacity"] = _capacity(pick)
    placement: Document = {"strategy": pick(("contiguous", "contiguous", "round-robin", "greedy", "global"))}
    overflows = routing["capacity"] != "dropless" and routing["capacity"]["overflow"] != "drop"
    if placement["strategy"] in ("contiguous", "global") and ranks > 1 and not overflows:
        placement["redundant_experts"] = (-experts % ranks) + pick((0, 0, ranks))
    return {"routing": routing, "placement": placement}


def _capacity(pick: Pick[Any]) -> Document:
    capacity: Document = {"factor": pick((1.25, 1.0, 2.0, 4.0)), "dialect": pick(DIALECTS)}
    return {**capacity, "overflow": pick(("drop", "drop", "next-best", "reroute")), "pad": pick((False, True))}
