"""Fits the dense GEMM and the expert layer law on measurements, per GPU generation, format and kernel family.

The table has the columns of `moesim.measurement.columns`, GPUs and formats by the catalog's names. Least squares on log
time with a soft L1 loss, held weakly to the datasheet's coefficients so that few rows still give a whole set.
N rows, S samples, E local experts (padded).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from moesim import catalog
from moesim.costs.kernels.choice import DEFAULT_KERNEL, Floats, datasheet_compute, family, watts
from moesim.costs.kernels.experts import ExpertWork, experts_law
from moesim.costs.kernels.formats import number_format, peak
from moesim.costs.kernels.gemm import gemm_law
from moesim.costs.kernels.loads import expert_rows, is_known
from moesim.errors import UserError

Law = Callable[[Mapping[str, float]], Floats]
Sieve = tuple[str, Callable[[pd.DataFrame], Any]]

SLOWER = 1.35
LEAST_ROWS = 5
UNKNOWN = "unknown"
# The loss is square within this error of log time and linear beyond; a prior's pull is one row's of this error where a
# number is `_PRIOR` away in log from the datasheet's.
_SPREAD, _PRIOR = 0.1, 0.7
_SHARES = ("compute", "memory", "quantize")
_BOUNDS = {
    "base": (1e-7, 1e-2),
    "loop": (1e-9, 1e-4),
    "fill": (1.0, 5000.0),
    "row": (1e-11, 1e-6),
    "expert": (1e-9, 1e-4),
}
_SHARE_BOUNDS, _OTHER_BOUNDS = (0.02, 0.98), (0.05, 200.0)
_NUMBERS = {
    "gemm": ("base", "compute", "memory", "loop", "fill", "quantize"),
    "expert_gemm": ("base", "compute", "memory", "hidden_bytes", "row", "token", "expert"),
}
_ENTRY = {"gemm": "kernel-gemm", "expert_gemm": "kernel-experts"}
_RANGES = {"gemm": ("m", "n", "k"), "expert_gemm": ("hidden", "inter", "presented_tokens")}
_DRAWS = 6
_FEW_RANKS = 8


@dataclass(frozen=True)
class FittedSet:
    """Coefficients of calibration `calibration` for `key` (a generation or a GPU), `dtype` and kernel family `kernel`.

    `entry` is what its file holds at coefficients -> key -> dtype (families -> kernel -> key -> dtype): the law's
    numbers, the GPUs, the range and `residual` (median, p90, bias of predicted / measured - 1 over the rows fitted);
    `release_factors` is the time of each other release over the newest one's.
    """

    calibration: str
    key: str
    dtype: str
    kernel: str
    entry: dict[str, Any]
    used: int
    left_out: dict[str, int] = field(default_factory=dict)
    release_factors: dict[str, float] = field(default_factory=dict)


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
        _OTHER_PRODUCT,
        ("mis-tuned", lambda rows: mistuned(rows, ("m", "n", "k"), (), ("gpu", "software", "kernel"))),
        ("its weights lay in a cache", _cached),
    )
    return _fit_all(table, "gemm", (by, most), sieves)


def fit_experts(table: pd.DataFrame, by: str = "generation", most: int = 2500) -> Fits:
    """Coefficients of `kernel-experts` from rows of kind "expert_gemm", a set for each `by`, format and kernel family.

    Rows that time something else are left out: Triton kernels of one rank among several that hold remote tokens on its
    first expert, kernels that route again by groups, tables of wide expert parallelism.
    """
    same = ("gpu", "software", "kernel", "hidden", "inter", "top_k", "experts", "load")
    sieves: tuple[Sieve, ...] = (
        ("a load of no known law", lambda rows: ~_readable(rows)),
        ("a table of wide parallelism", lambda rows: _column(rows, "slots").notna() | _column(rows, "what").notna()),
        ("remote tokens on the first expert", _remote),
        ("routed again by groups", lambda rows: (rows["family"] == "trtllm-gen") & (rows["expert_parallel"] > 1)),
        _OTHER_PRODUCT,
        ("an older release, of a shape that the newest has or on many ranks", _superseded),
        ("mis-tuned", lambda rows: mistuned(rows, ("tokens",), ("expert_tensor", "expert_parallel"), same)),
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


def mistuned(
    table: pd.DataFrame, more: Sequence[str], less: Sequence[str], same: Sequence[str], slower: float = SLOWER
) -> NDArray[np.bool_]:
    """Whether a row [N] takes `slower` times as long as one with no less of any of `more`, no more of any of `less`.

    Rows are held against those with equal columns `same` only: a kernel library's tuner chose badly for such a row.
    """
    flagged = np.zeros(len(table), dtype=np.bool_)
    rows = table.reset_index(drop=True)
    for _, group in rows.groupby([name for name in same if name in rows], dropna=False, sort=False):
        keys = [*(group[name] for name in more), *(-group[name] for name in less)]
        places = [np.unique(key, return_inverse=True) for key in keys]
        at = tuple(place for _, place in places)
        least = np.full([len(values) for values, _ in places], np.inf)
        np.minimum.at(least, at, group["time"].to_numpy(dtype=np.float64))
        for axis in range(least.ndim):
            least = np.flip(np.minimum.accumulate(np.flip(least, axis), axis), axis)
        flagged[group.index.to_numpy()] = group["time"].to_numpy() > slower * least[at]
    return flagged


def errors(rows: pd.DataFrame, values: Mapping[str, float], dtype: str) -> Floats:
    """log(predicted / measured) [N] of rows of one kind and format under a set's numbers."""
    result: Floats = np.log(law_of(rows, dtype)(values) / rows["time"].to_numpy(dtype=np.float64))
    return result


def summary(error: Floats) -> dict[str, float]:
    """Median, 90th percentile and bias of predicted / measured - 1 from log errors [N]."""
    size = np.abs(np.expm1(error))
    numbers = (np.median(size), np.quantile(size, 0.9), np.expm1(np.median(error)))
    return {name: round(float(number), 4) for name, number in zip(("median", "p90", "bias"), numbers, strict=True)}


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
    rows, skipped = _prepared(table, kind, how[0])
    sets = []
    for names, group in rows.groupby(["key", "dtype", "family"]):
        key, dtype, kernel = (str(name) for name in names)
        left_out: dict[str, int] = {}
        for reason, sieve in sieves:
            drop = np.asarray(sieve(group), dtype=np.bool_)
            if drop.any():
                left_out[reason] = int(drop.sum())
                group = group[~drop]
            if not len(group):
                break
        if len(group) < LEAST_ROWS:
            why = f"fewer than {LEAST_ROWS} rows of {dtype} on {key}"
            skipped[why] = skipped.get(why, 0) + len(group)
            continue
        if len(group) > how[1]:
            group = group.iloc[np.linspace(0, len(group) - 1, how[1]).astype(np.int64)]
        sets.append(_fit_set(group, (key, dtype, kernel), left_out))
    return Fits(tuple(sets), skipped)


def _prepared(table: pd.DataFrame, kind: str, by: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of one kind with `key`, `family`, and defaults for what a table may leave empty."""
    if by not in ("generation", "gpu"):
        raise UserError(f"by: expected generation or gpu, got {by!r}")
    rows = table[table["kind"] == kind].copy()
    gpus = {name: catalog.load("gpus", name) for name in rows["gpu"].unique()}
    rows["key"] = rows["gpu"].map({name: gpu.name if by == "gpu" else gpu.generation for name, gpu in gpus.items()})
    rows["software"] = _column(rows, "software").astype(object).fillna("").astype(str)
    data = catalog.calibration(_ENTRY[kind])
    kernels = {name: family(data, name) for name in _column(rows, "kernel").dropna().unique()}
    families = {name: UNKNOWN if notes else known for name, (known, notes) in kernels.items()}
    rows["family"] = _column(rows, "kernel").map(families).astype(object).fillna(DEFAULT_KERNEL)
    for name in ("expert_parallel", "expert_tensor"):
        rows[name] = pd.to_numeric(_column(rows, name)).fillna(1)
    rows["load"] = _column(rows, "load").astype(object).fillna("balanced").astype(str)
    skipped: dict[str, int] = {}
    for gpu, dtype in rows[["gpu", "dtype"]].drop_duplicates().itertuples(index=False):
        reason = _refusal(gpus[gpu], dtype)
        if reason:
            drop = (rows["gpu"] == gpu) & (rows["dtype"] == dtype)
            skipped[reason] = skipped.get(reason, 0) + int(drop.sum())
            rows = rows[~drop]
    unknown = rows["family"] == UNKNOWN
    if unknown.any():
        skipped["a kernel of no known family"] = int(unknown.sum())
    spelled = {name: number_format(str(name)).name for name in rows["dtype"].unique()}
    return rows[~unknown].assign(dtype=rows["dtype"].map(spelled)), skipped


def _refusal(gpu: Any, dtype: Any) -> str:
    try:
        peak(gpu, number_format(str(dtype)))
    except UserError as error:
        return str(error)
    return ""


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    return rows[name] if name in rows else pd.Series(None, index=rows.index, dtype=object)


def _readable(rows: pd.DataFrame) -> Any:
    return rows["load"].astype(str).map(is_known) | _column(rows, "rows").notna()


def _remote(rows: pd.DataFrame) -> Any:
    return (rows["family"] == "triton") & rows["software"].str.startswith("sglang") & (rows["expert_parallel"] > 1)


def _superseded(rows: pd.DataFrame) -> Any:
    """Rows of older releases, but for shapes that the newest lacks: those stay on few ranks, for releases treat the
    tokens of other ranks differently."""
    shapes = pd.MultiIndex.from_frame(rows[["gpu", "hidden", "inter", "experts"]])
    newest = (rows["software"] == _releases(rows["software"])[0]).to_numpy()
    return ~newest & (shapes.isin(shapes[newest]) | (rows["expert_parallel"] > _FEW_RANKS).to_numpy())


def _cached(rows: pd.DataFrame) -> Any:
    """Whether a product ended before its weights can have come from memory."""
    bandwidth = rows["gpu"].map({name: catalog.load("gpus", name).memory_bandwidth for name in rows["gpu"].unique()})
    weight = number_format(rows["dtype"].iloc[0]).weight
    return rows["n"] * rows["k"] * weight / bandwidth > rows["time"]


def _fit_set(rows: pd.DataFrame, names: tuple[str, str, str], left_out: dict[str, int]) -> FittedSet:
    key, dtype, kernel = names
    kind = str(rows["kind"].iloc[0])
    start = _start(rows, kind, dtype, kernel)
    releases = _releases(rows["software"])
    values, factors = _solve(law_of(rows, dtype), rows, start, releases)
    error = np.log(law_of(rows, dtype)(values) / rows["time"].to_numpy(dtype=np.float64))
    newest = (rows["software"] == releases[0]).to_numpy()
    gpus = [catalog.load("gpus", name) for name in sorted(rows["gpu"].unique())]
    ranges = rows
    if kind == "expert_gemm":
        ranges = rows.assign(inter=rows["inter"] / rows["expert_tensor"], presented_tokens=rows["tokens"])
    entry = {
        **{name: float(f"{value:.4g}") for name, value in values.items()},
        "gpus": [gpu.name for gpu in gpus],
        "watts_per_teraflop": float(f"{np.median([watts(gpu) for gpu in gpus]):.4g}"),
        "residual": {**summary(error[newest]), "rows": int(newest.sum())},
        "valid": {name: [float(ranges[name].min()), float(ranges[name].max())] for name in _RANGES[kind]},
    }
    if factors:
        entry["releases"] = {releases[0]: 1.0, **factors}
    return FittedSet(_ENTRY[kind], key, dtype, kernel, entry, len(rows), left_out, factors)


_OTHER_PRODUCT: Sieve = (
    "another product's kernels",
    lambda rows: ~rows["software"].str.startswith(_product(rows["software"])),
)


def _start(rows: pd.DataFrame, kind: str, dtype: str, kernel: str) -> dict[str, float]:
    """The datasheet's coefficients, from which a fit starts and to which it is held."""
    wanted = number_format(dtype)
    data = catalog.calibration(_ENTRY[kind])
    sheet = {**data["datasheet"][wanted.coefficients], **data.get("fit", {}).get(wanted.coefficients, {})}
    sheet |= data.get("traits", {}).get(kernel, {})
    gpus = [catalog.load("gpus", name) for name in rows["gpu"].unique()]
    start = {"compute": float(np.median([datasheet_compute(gpu, wanted) for gpu in gpus])), **sheet}
    return {name: float(value) for name, value in start.items()}


def _releases(software: pd.Series) -> list[str]:
    """The releases in a table, first the newest of the product with the most rows."""
    most = _product(software)
    names = sorted(software.unique(), key=lambda name: (name.split(" ")[0] == most, _version(name)), reverse=True)
    return [str(name) for name in names]


def _product(software: pd.Series) -> str:
    """The product of most rows: "trtllm" of "trtllm 1.3.0"."""
    return str(software.str.split(" ").str[0].mode().iloc[0])


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name.partition(" ")[2]))


def _solve(
    law: Law, rows: pd.DataFrame, start: dict[str, float], releases: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """The law's numbers and each other release's factor on time that meet the rows best."""
    names = [name for name in _NUMBERS[str(rows["kind"].iloc[0])] if name in start]
    fixed = {name: value for name, value in start.items() if name not in names}
    bounds = np.log([_BOUNDS.get(name, _SHARE_BOUNDS if name in _SHARES else _OTHER_BOUNDS) for name in names]).T
    prior = np.clip(np.log([max(start[name], 1e-12) for name in names]), *bounds)
    release = rows["software"].map({name: number for number, name in enumerate(releases)}).to_numpy()
    measured = np.log(rows["time"].to_numpy(dtype=np.float64))

    def distance(point: Floats) -> Floats:
        numbers, factors = point[: len(names)], np.concatenate([[0.0], point[len(names) :]])
        values = {**fixed, **dict(zip(names, np.exp(numbers), strict=True))}
        pull = np.concatenate([numbers - prior, factors[1:]]) * (_SPREAD / _PRIOR)
        return np.concatenate([np.log(law(values)) + factors[release] - measured, pull])

    others = len(releases) - 1
    limits = (np.append(bounds[0], [-2.0] * others), np.append(bounds[1], [2.0] * others))
    first = np.clip(np.append(prior, [0.0] * others), limits[0] + 1e-6, limits[1] - 1e-6)
    found = least_squares(distance, first, bounds=limits, loss="soft_l1", f_scale=_SPREAD, max_nfev=80).x
    factors = dict(zip(releases[1:], np.exp(found[len(names) :]).round(3).tolist(), strict=True))
    values = dict(zip(names, np.exp(found[: len(names)]).tolist(), strict=True))
    return {**fixed, **values}, factors
