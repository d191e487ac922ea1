"""From a case to what the laws say: one function a kind, and a reason where there is no answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from moesim.errors import InfeasibleError, InternalError, UserError, nearest_hint, shorten
from moesim.validation.answer import Prediction, Settings
from moesim.validation.cases import BY_SCENARIO, Case
from moesim.validation.compute_kinds import attention, expert_gemm, gemm, grouped_gemm, launch, memory_bound
from moesim.validation.layer_kind import moe_layer
from moesim.validation.network_kinds import collective, dispatch_combine
from moesim.validation.places import gpu_label
from moesim.validation.routing_kind import routing
from moesim.validation.serving_kind import serving
from moesim.validation.step_kind import train_step

__all__ = ["Labels", "Prediction", "Refusal", "labels", "named", "predict", "unknown_metric"]

_OPERATIONS: dict[str, Callable[[Any, Settings], dict[str, Prediction]]] = {
    "all_to_all": collective,
    "collective": collective,
    "dispatch_combine": dispatch_combine,
    "expert_gemm": expert_gemm,
    "gemm": gemm,
    "grouped_gemm": grouped_gemm,
    "attention": attention,
    "memory_bound": memory_bound,
    "launch": launch,
    "moe_layer": moe_layer,
    "routing": routing,
}
_METRICS = {
    "latency": "time", "seconds": "time", "dispatch": "dispatch_time", "combine": "combine_time",
    "dispatch_latency": "dispatch_time", "combine_latency": "combine_time", "mfu": "model_flops_utilization",
    "tokens_per_s_per_gpu": "tokens_per_second_per_gpu", "step_seconds": "step_time",
    "busbw": "bus_bandwidth", "bus_bw": "bus_bandwidth", "algbw": "algorithm_bandwidth",
    "algo_bandwidth": "algorithm_bandwidth", "flops": "flops_per_second", "tflops": "flops_per_second",
    "tflops_per_second": "flops_per_second", "ttft": "time_to_first_token", "tpot": "time_per_output_token",
    "output_tokens_per_s_per_gpu": "output_tokens_per_second_per_gpu",
}  # fmt: skip
_BUGS = (InternalError, ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
"""What one case may not do to the others: it is told in its row."""


class Refusal(NamedTuple):
    """Why a case has no prediction."""

    reason: str


def predict(case: Case, *, calibration: str | None = None, simulate: bool = False) -> dict[str, Prediction] | Refusal:
    """Every metric that the laws know for a case, or why there is none; never raises for what a case says."""
    if case.problem:
        return Refusal(case.problem)
    settings = Settings(calibration, simulate, tuple(case.measured))
    try:
        if case.kind in BY_SCENARIO:
            return train_step(case, settings) if case.kind == "train_step" else serving(case, settings)
        return _OPERATIONS[case.kind](case.op, settings)
    except (UserError, InfeasibleError) as error:
        return Refusal(" ".join(str(error).split()))
    except _BUGS as error:
        return Refusal(f"our bug, please report: {type(error).__name__}: {shorten(str(error), 200)}")


def named(metric: str) -> str:
    """The documented name of a metric that a case calls otherwise; itself where there is none."""
    return _METRICS.get(metric.strip().lower(), metric)


def unknown_metric(case: Case, metric: str, said: dict[str, Prediction]) -> str:
    """Why a measured metric has no prediction though the case has."""
    return f"{metric} is not predicted for kind {case.kind}{nearest_hint(metric, said)}"


class Labels(NamedTuple):
    """What tables group a case by; "" where it names none."""

    gpu: str
    model: str
    library: str


def labels(case: Case) -> Labels:
    """GPU, model, and communication library or software stack of a case."""
    if case.scenario is not None:
        cluster = case.scenario.get("cluster")
        gpu = cluster.get("gpu", "") if isinstance(cluster, dict) else ""
        stack = case.scenario.get("stack", "auto")
        return Labels(gpu_label(gpu) if gpu else "", _name(case.scenario.get("model")), shorten(stack, 60))
    gpu, library = getattr(case.op, "gpu", ""), getattr(case.op, "library", None) or ""
    profile = getattr(case.op, "profile", "")
    return Labels(gpu_label(gpu) if gpu else "", shorten(profile, 60), shorten(library, 60))


def _name(model: Any) -> str:
    if isinstance(model, dict):
        model = model.get("name") or model.get("base") or "inline"
    return shorten(model, 60) if model else ""
