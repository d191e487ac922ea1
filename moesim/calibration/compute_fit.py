"""Fits the dense GEMM and the expert layer law on measurements, per GPU generation, format and kernel family.

The table has the columns of `moesim.measurement.columns`, GPUs and formats by the catalog's names. Least squares on log
time with a soft L1 loss, held weakly to the datasheet's coefficients so that few rows still give a whole set.
N rows, S samples, E local experts (padded).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from moesim import catalog
from moesim.calibration.compute_rows import (
    CACHED,
    ENTRY,
    MISTUNED,
    OTHER_PRODUCT,
    Sieve,
    cached,
    column,
    mistuned,
    prepared,
    readable,
    releases_of,
    remote,
    sieved,
    superseded,
    thinned,
)
from moesim.calibration.statistics import far_off
from moesim.costs.kernels.choice import DEFAULT_KERNEL, Floats, datasheet_compute, watts
from moesim.costs.kernels.experts import ExpertWork, experts_law
from moesim.costs.kernels.formats import number_format, peak
from moesim.costs.kernels.gemm import gemm_law
from moesim.costs.kernels.loads import expert_rows

Law = Callable[[Mapping[str, float]], Floats]

LEAST_ROWS = 5
# The loss is square within this error of log time and linear beyond; a prior's pull is one row's of this error where a
# number is `_PRIOR` away in log from the datasheet's.
_SPREAD, _PRIOR = 0.1, 0.7
_PULL = _SPREAD / _PRIOR
_STEP = 0.5
_SHARES = ("compute", "memory", "quantize")
_BOUNDS = {
    "base": (1e-7, 1e-2),
    "loop": (1e-9, 1e-4),
    "fill": (1.0, 5000.0),
    "row": (1e-11, 1e-6),
    "expert": (1e-9, 1e-4),
    "fullest": (1e-11, 1e-6),
}
_SHARE_BOUNDS, _OTHER_BOUNDS = (0.02, 0.98), (0.05, 200.0)
_NUMBERS = {
    "gemm": ("base", "compute", "memory", "loop", "fill", "quantize"),
    "expert_gemm": ("base", "compute", "memory", "hidden_bytes", "row", "token", "expert", "fullest"),
}
_RANGES = {"gemm": ("m", "n", "k"), "expert_gemm": ("hidden", "inter", "presented_tokens")}
_DRAWS = 6


@dataclass(frozen=True)
class FittedSet:
    """Coefficients of calibration `calibration` for `key` (a generation or a GPU), `dtype` and kernel family `kernel`.

    `entry` is what its file holds at coefficients -> key -> dtype (families -> kernel -> key -> dtype): the law's
    numbers, the GPUs, the range and `residual` (median, p90, bias of predicted / measured - 1 over the rows fitted, and
    the `range` that holds 90 % of all rows, the mis-tuned too); `release_factors` is the time of each other release
    over the newest one's; `kept` are numbers that the rows do not tell, as shipped.
    """

    calibration: str
    key: str
    dtype: str
    kernel: str
    entry: dict[str, Any]
    used: int
    left_out: dict[str, int] = field(default_factory=dict)
    release_factors: dict[str, float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fits:
    """The sets fitted, and the rows of groups that give none, by reason."""

    sets: tuple[FittedSet, ...]
    skipped: dict[str, int]


def fit_gemm(table: pd.DataFrame, by: str = "generation", most: int = 6000) -> Fits:
    """Coefficients of `kernel-gemm` from rows of kind "gemm", a set for each `by` ("generation" or "gpu") and format.

    At most `most` rows of a set are fitted, drawn evenly over them.
    """
    sieves: tuple[Sieve, ...] = (
        OTHER_PRODUCT,
        (MISTUNED, lambda rows: mistuned(rows, ("m", "n", "k"), (), ("gpu", "software", "kernel"))),
        (CACHED, cached),
    )
    return _fit_all(table, "gemm", (by, most), sieves)


def fit_experts(table: pd.DataFrame, by: str = "generation", most: int = 2500) -> Fits:
    """Coefficients of `kernel-experts` from rows of kind "expert_gemm", a set for each `by`, format and kernel family.

    Rows that time something else are left out: Triton kernels of one rank among several that hold remote tokens on its
    first expert, kernels that route again by groups, tables of wide expert parallelism.
    """
    same = ("gpu", "software", "kernel", "hidden", "inter", "top_k", "experts", "load")
    sieves: tuple[Sieve, ...] = (
        ("a load of no known law", lambda rows: ~readable(rows)),
        ("a table of wide parallelism", lambda rows: column(rows, "slots").notna() | column(rows, "what").notna()),
        ("remote tokens on the first expert", remote),
        ("routed again by groups", lambda rows: (rows["family"] == "trtllm-gen") & (rows["expert_parallel"] > 1)),
        OTHER_PRODUCT,
        ("an older release, of a shape that the newest has or on many ranks", superseded),
        (MISTUNED, lambda rows: mistuned(rows, ("tokens",), ("expert_tensor", "expert_parallel"), same)),
    )
    return _fit_all(table, "expert_gemm", (by, most), sieves)


def entries(fits: Sequence[FittedSet]) -> dict[str, Any]:
    """The calibration entries that the sets make: {"kernel-gemm": {"coefficients": {key: {dtype: ...}}}, ...}."""
    found: dict[str, Any] = {}
    for made in fits:
        place = found.setdefault(made.calibration, {})
        above = place if made.kernel == DEFAULT_KERNEL else place.setdefault("families", {})
        name = "coefficients" if made.kernel == DEFAULT_KERNEL else made.kernel
        above.setdefault(name, {}).setdefault(made.key, {})[made.dtype] = made.entry
    return found


def errors(rows: pd.DataFrame, values: Mapping[str, float], dtype: str) -> Floats:
    """log(predicted / measured) [N] of rows of one kind and format under a set's numbers."""
    result: Floats = np.log(law_of(rows, dtype)(values) / rows["time"].to_numpy(dtype=np.float64))
    return result


def summary(error: Floats) -> dict[str, float]:
    """Median, 90th percentile and bias of predicted / measured - 1 from log errors [N]."""
    size = np.abs(np.expm1(error))
    numbers = (np.median(size), np.quantile(size, 0.9), np.expm1(np.median(error)))
    return {name: round(float(number), 4) for name, number in zip(("median", "p90", "bias"), numbers, strict=True)}


def reach(error: Floats) -> float:
    """The relative range, to either side of a prediction, that holds 90 % of log errors [N]."""
    return round(float(np.expm1(np.quantile(np.abs(error), 0.9))), 4)


def law_of(rows: pd.DataFrame, dtype: str) -> Law:
    """The law of the rows' kind over a table's rows, to be given coefficients; of experts the mean over draws."""
    kind = number_format(dtype)
    gpus = {name: catalog.load("gpus", name) for name in rows["gpu"].unique()}
    rates = rows["gpu"].map({name: peak(gpu, kind)[0] for name, gpu in gpus.items()}).to_numpy(dtype=np.float64)
    widths = rows["gpu"].map({name: gpu.memory_bandwidth for name, gpu in gpus.items()}).to_numpy(dtype=np.float64)
    if rows["kind"].iloc[0] == "gemm":
        m, n, k = (rows[name].to_numpy(dtype=np.float64) for name in ("m", "n", "k"))
        return lambda values: gemm_law(values, m, n, k, (kind, rates, widths))
    work, on = _work(rows), (kind, rates[:, None], widths[:, None])
    return lambda values: experts_law(values, work, on).mean(axis=-1)


def _work(rows: pd.DataFrame) -> ExpertWork:
    """The rows' counts [N, S, E], padded with idle experts."""
    counts = [_counts(row) for row in rows.to_dict("records")]
    local = np.array([count.shape[-1] for count in counts], dtype=np.float64)
    padded = np.zeros((len(counts), _DRAWS, int(local.max())))
    for place, count in zip(padded, counts, strict=True):
        place[:, : count.shape[-1]] = count
    names = ["hidden", "inter", "tokens", "expert_tensor", "top_k"]
    hidden, inter, tokens, split, top_k = rows[names].to_numpy(dtype=np.float64).T[:, :, None]
    return ExpertWork(padded, hidden, inter / split, tokens, local=local[:, None], presented_rows=tokens * top_k)


def _counts(row: Mapping[Any, Any]) -> Floats:
    given = row.get("rows")
    if isinstance(given, str | list):
        return np.asarray(json.loads(given) if isinstance(given, str) else given, dtype=np.float64)[None]
    tokens, top_k, experts, ranks = (int(row[name]) for name in ("tokens", "top_k", "experts", "expert_parallel"))
    return expert_rows(str(row["load"]), tokens, top_k, experts, ranks, samples=_DRAWS)


def _fit_all(table: pd.DataFrame, kind: str, how: tuple[str, int], sieves: Sequence[Sieve]) -> Fits:
    rows, skipped = prepared(table, kind, how[0])
    sets = []
    for names, group in rows.groupby(["key", "dtype", "family"]):
        key, dtype, kernel = (str(name) for name in names)
        group, badly, left_out = sieved(group, sieves)
        if len(group) < LEAST_ROWS:
            why = f"fewer than {LEAST_ROWS} rows of {dtype} on {key}"
            skipped[why] = skipped.get(why, 0) + len(group)
            continue
        group, badly = thinned(group, badly, how[1])
        made = _fit_set(group, badly, (key, dtype, kernel), left_out)
        if isinstance(made, str):
            skipped[made] = skipped.get(made, 0) + len(group)
            continue
        sets.append(made)
    return Fits(tuple(sets), skipped)


def _fit_set(
    rows: pd.DataFrame, badly: pd.DataFrame, names: tuple[str, str, str], left_out: dict[str, int]
) -> FittedSet | str:
    """The set of numbers, or why the rows cannot be of this GPU."""
    key, dtype, kernel = names
    kind = str(rows["kind"].iloc[0])
    start = _start(rows, kind, dtype, kernel)
    law, releases = law_of(rows, dtype), releases_of(rows["software"])
    strange = far_off(law(start), rows["time"].to_numpy(dtype=np.float64), f"{kind} rows of {dtype} on {key}")
    if strange:
        return strange
    values, factors, kept = _solve(law, rows, start, releases)
    every = pd.concat([rows, badly])
    error = errors(every, values, dtype)
    newest = (every["software"] == releases[0]).to_numpy()
    fitted = newest & (np.arange(len(every)) < len(rows))
    gpus = [catalog.load("gpus", name) for name in sorted(rows["gpu"].unique())]
    entry = {
        **{name: float(f"{value:.4g}") for name, value in values.items()},
        "gpus": [gpu.name for gpu in gpus],
        "watts_per_teraflop": float(f"{np.median([watts(gpu) for gpu in gpus]):.4g}"),
        "residual": {**summary(error[fitted]), "range": reach(error[newest]), "rows": int(fitted.sum())},
        "valid": _ranges(rows, kind),
        **({"release": releases[0]} if releases[0] else {}),
        **({"releases": factors} if factors else {}),
        **({"kept": list(kept)} if kept else {}),
    }
    return FittedSet(ENTRY[kind], key, dtype, kernel, entry, len(rows), left_out, factors, kept)


def _ranges(rows: pd.DataFrame, kind: str) -> dict[str, list[float]]:
    if kind == "expert_gemm":
        rows = rows.assign(inter=rows["inter"] / rows["expert_tensor"], presented_tokens=rows["tokens"])
    return {name: [float(rows[name].min()), float(rows[name].max())] for name in _RANGES[kind]}


def _start(rows: pd.DataFrame, kind: str, dtype: str, kernel: str) -> dict[str, float]:
    """The datasheet's coefficients, from which a fit starts and to which it is held."""
    wanted = number_format(dtype)
    data = catalog.calibration(ENTRY[kind])
    sheet = {**data["datasheet"][wanted.coefficients], **data.get("fit", {}).get(wanted.coefficients, {})}
    sheet |= data.get("traits", {}).get(kernel, {})
    gpus = [catalog.load("gpus", name) for name in rows["gpu"].unique()]
    start = {"compute": float(np.median([datasheet_compute(gpu, wanted) for gpu in gpus])), **sheet}
    return {name: float(value) for name, value in start.items()}


def _solve(
    law: Law, rows: pd.DataFrame, start: dict[str, float], releases: Sequence[str]
) -> tuple[dict[str, float], dict[str, float], tuple[str, ...]]:
    """The law's numbers and each other release's factor on time that meet the rows best, and the numbers that no row
    feels: they stay as they were."""
    names = [name for name in _NUMBERS[str(rows["kind"].iloc[0])] if name in start]
    fixed = {name: value for name, value in start.items() if name not in names}
    bounds = np.log([_BOUNDS.get(name, _SHARE_BOUNDS if name in _SHARES else _OTHER_BOUNDS) for name in names]).T
    prior = np.clip(np.log([max(start[name], 1e-12) for name in names]), *bounds)
    release = rows["software"].map({name: number for number, name in enumerate(releases)}).to_numpy()
    measured = np.log(rows["time"].to_numpy(dtype=np.float64))

    def distance(point: Floats) -> Floats:
        numbers, factors = point[: len(names)], np.concatenate([[0.0], point[len(names) :]])
        values = {**fixed, **dict(zip(names, np.exp(numbers), strict=True))}
        pull = np.concatenate([numbers - prior, factors[1:]]) * _PULL
        return np.concatenate([np.log(law(values)) + factors[release] - measured, pull])

    others = len(releases) - 1
    limits = (np.append(bounds[0], [-2.0] * others), np.append(bounds[1], [2.0] * others))
    first = np.clip(np.append(prior, [0.0] * others), limits[0] + 1e-6, limits[1] - 1e-6)
    solved = least_squares(distance, first, bounds=limits, loss="soft_l1", f_scale=_SPREAD, max_nfev=80)
    told = np.array([_told(law, {**fixed, **dict(zip(names, np.exp(prior), strict=True))}, name) for name in names])
    slopes: Floats = np.asarray(solved.jac)
    told |= np.linalg.norm(slopes[: len(measured), : len(names)], axis=0) > _PULL
    kept = tuple(name for name, known in zip(names, told, strict=True) if not known)
    found = np.append(np.where(told, solved.x[: len(names)], prior), solved.x[len(names) :])
    factors = dict(zip(releases[1:], np.exp(found[len(names) :]).round(3).tolist(), strict=True))
    values = dict(zip(names, np.exp(found[: len(names)]).tolist(), strict=True))
    return {**fixed, **values}, factors, kept


def _told(law: Law, values: Mapping[str, float], name: str) -> bool:
    """Whether the rows hold a number more firmly than its prior does."""
    moved = np.log(law({**values, name: values[name] * np.exp(_STEP)}) / law(values)) / _STEP
    return bool(np.linalg.norm(moved) > _PULL)
