"""Fits of what a user times beside products and exchanges: attention, memory-bound passes, launches.

Few coefficients from few rows: shares of the datasheet's rates and the constant start of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moesim import catalog
from moesim.calibration.solve import Floats, Name, solve
from moesim.calibration.statistics import Residual, far_off, residual, weights
from moesim.costs.kernels import attention_time, launch_time, pass_bytes
from moesim.costs.kernels.choice import choose
from moesim.errors import UserError
from moesim.specs.gpu import GpuSpec

ATTENTION, PASSES = "kernel-attention", "kernel-passes"
LAUNCH = "launch"
# Share of the multiprocessors at which products take all of an attention kernel's time.
_CROWDED = 1e-9
_LEAST_ROWS = 3


@dataclass(frozen=True)
class OwnSet:
    """Numbers of calibration `calibration` for a GPU (`key`), format and, for passes, the pass `what`; `kept` are those
    that the rows do not tell, as shipped."""

    calibration: str
    key: str
    dtype: str
    what: str
    numbers: dict[str, float]
    residual: Residual
    kept: tuple[str, ...] = ()


def fit_attention(rows: pd.DataFrame) -> tuple[list[OwnSet], dict[str, str]]:
    """A set for each GPU and format of rows of kind "attention", and why others have none."""
    return _by_gpu(rows, ["gpu", "dtype"], ATTENTION, _attention)


def fit_passes(rows: pd.DataFrame) -> tuple[list[OwnSet], dict[str, str]]:
    """A set for each GPU, format and pass of rows of kind "memory_bound", and one of each GPU's launches."""
    launches = rows["kind"] == LAUNCH
    rows = rows.assign(what=rows["what"].where(~launches, LAUNCH) if "what" in rows else LAUNCH)
    rows["dtype"] = rows["dtype"].where(~launches, "bf16") if "dtype" in rows else "bf16"
    return _by_gpu(rows, ["gpu", "dtype", "what"], PASSES, _pass)


def own_entries(sets: list[OwnSet]) -> dict[str, dict[str, Any]]:
    """The entries' coefficients: by GPU, format and, for passes, pass."""
    found: dict[str, dict[str, Any]] = {}
    for made in sets:
        place = found.setdefault(made.calibration, {}).setdefault("coefficients", {})
        place = place.setdefault(made.key, {}).setdefault(made.dtype, {})
        if made.what:
            place = place.setdefault(made.what, {})
        place |= {**made.numbers, "residual": made.residual.as_dict()}
        if made.kept:
            place["kept"] = list(made.kept)
    return found


def _by_gpu(rows: pd.DataFrame, words: list[str], calibration: str, fit: Any) -> tuple[list[OwnSet], dict[str, str]]:
    sets, left_out = [], dict[str, str]()
    for key, same in rows.groupby(words, sort=True):
        label = " ".join([calibration, *map(str, key)])
        if len(same) < _LEAST_ROWS:
            left_out[label] = f"{len(same)} rows, fewer than {_LEAST_ROWS}"
            continue
        try:
            made = fit(catalog.load("gpus", str(key[0])), same.reset_index(drop=True), *map(str, key[1:]))
        except UserError as error:
            left_out[label] = str(error)
            continue
        sets.append(made)
    return sets, left_out


def _attention(gpu: GpuSpec, rows: pd.DataFrame, dtype: str) -> OwnSet:
    """Shares of the peak forward and backward, and the start, where the rows tell them."""
    chosen = dict(choose(ATTENTION, gpu, dtype).values)
    backward = (rows["direction"] == "backward").to_numpy()
    products, bytes_ = _attention_parts(gpu, rows, dtype, chosen)

    def predict(values: Mapping[Name, float]) -> Floats:
        share = np.where(backward, chosen["backward"] / values["backward",], chosen["forward"] / values["forward",])
        return np.asarray(values["base",] + np.hypot(products * share, bytes_))

    start: dict[Name, float] = {(name,): float(chosen[name]) for name in ("forward", "backward", "base")}
    numbers, miss, kept = _solved(rows, start, predict, f"attention rows of {dtype} on {gpu.name}")
    return OwnSet(ATTENTION, gpu.name, dtype, "", {**chosen, **numbers}, miss, kept)


def _attention_parts(
    gpu: GpuSpec, rows: pd.DataFrame, dtype: str, chosen: Mapping[str, float]
) -> tuple[Floats, Floats]:
    """Seconds of the rows' products and of their bytes under the shipped numbers: products alone count on few SMs."""
    words = ["tokens", "length", "heads", "kv_heads", "head_dim", "value_dim"]
    products, bytes_ = np.empty(len(rows)), np.empty(len(rows))
    for (causal, direction), same in rows.groupby(["causal", "direction"], sort=True):
        sizes: list[Any] = [same[word].to_numpy(dtype=np.float64) for word in words]
        how: Any = (bool(causal), str(direction), dtype)
        whole = np.asarray(attention_time(gpu, *sizes, *how).seconds) - chosen["base"]
        crowded = np.asarray(attention_time(gpu, *sizes, *how, free_share=_CROWDED).seconds) - chosen["base"]
        at = same.index.to_numpy()
        products[at] = crowded * _CROWDED
        bytes_[at] = np.sqrt(np.maximum(whole**2 - products[at] ** 2, 0.0))
    return products, bytes_


def _pass(gpu: GpuSpec, rows: pd.DataFrame, dtype: str, what: str) -> OwnSet:
    """Start and share of the bandwidth of one pass; of launches the start alone."""
    data = catalog.calibration(PASSES)
    measured = rows["time"].to_numpy(dtype=np.float64)
    if what == LAUNCH:
        base = float(f"{np.median(measured):.4g}")
        _refuse(np.full(measured.size, launch_time(gpu).seconds), measured, f"launches on {gpu.name}")
        return OwnSet(PASSES, gpu.name, dtype, what, {"base": base}, residual(np.full(measured.size, base), measured))
    name = str(data["spellings"].get(what, what))
    if name not in data["passes"]:
        raise UserError(f"{len(rows)} rows of a pass that no law takes")
    shape, sheet = data["passes"][name], data["datasheet"]["bf16"][name]
    hosts = data["host_bandwidth"]
    width = hosts.get(gpu.generation, hosts["other"]) if shape.get("host") else gpu.memory_bandwidth
    each = np.array([pass_bytes(name, dtype, top_k) for top_k in _choices(rows)])
    wire = rows["elements"].to_numpy(dtype=np.float64) * each / float(width)

    def predict(values: Mapping[Name, float]) -> Floats:
        return np.asarray(values["base",] + wire / values["memory",])

    start: dict[Name, float] = {("memory",): float(sheet["memory"]), ("base",): float(sheet["base"])}
    numbers, miss, kept = _solved(rows, start, predict, f"{name} rows of {dtype} on {gpu.name}")
    return OwnSet(PASSES, gpu.name, dtype, name, numbers, miss, kept)


def _choices(rows: pd.DataFrame) -> list[float | None]:
    if "top_k" not in rows:
        return [None] * len(rows)
    return [None if pd.isna(value) else float(value) for value in rows["top_k"]]


def _solved(
    rows: pd.DataFrame, start: dict[Name, float], predict: Any, what: str
) -> tuple[dict[str, float], Residual, tuple[str, ...]]:
    """Numbers, misses, and the numbers kept as shipped; raises `UserError` for rows of something else."""
    measured = rows["time"].to_numpy(dtype=np.float64)
    _refuse(predict(start), measured, what)
    found = solve(start, predict, measured, weights(rows))
    numbers = {name: value for (name,), value in found.values.items()}
    return numbers, residual(found.predicted, measured), tuple(name for (name,) in found.kept)


def _refuse(predicted: Floats, measured: Floats, what: str) -> None:
    strange = far_off(predicted, measured, what)
    if strange:
        raise UserError(strange)
