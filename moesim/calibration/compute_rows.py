"""Rows of measurement tables made ready for a fit: sorted by what they measure, and sieved of what they cannot tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim import catalog
from moesim.costs.kernels.choice import DEFAULT_KERNEL, family
from moesim.costs.kernels.formats import number_format, peak
from moesim.costs.kernels.loads import is_known
from moesim.errors import UserError

Sieve = tuple[str, Callable[[pd.DataFrame], Any]]

SLOWER = 1.35
UNKNOWN = "unknown"
ENTRY = {"gemm": "kernel-gemm", "expert_gemm": "kernel-experts"}
MISTUNED, CACHED = "mis-tuned", "its weights lay in a cache"
# Rows that no fit is bent to, but that a user of the law meets all the same: the range stated covers them.
_IN_RANGE = (MISTUNED, CACHED)
_FEW_RANKS = 8


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


def sieved(group: pd.DataFrame, sieves: Sequence[Sieve]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Rows to fit, rows that ran badly, and how many are left out by reason."""
    left_out: dict[str, int] = {}
    badly = [group.iloc[:0]]
    for reason, sieve in sieves:
        drop = np.asarray(sieve(group), dtype=np.bool_) if len(group) else np.zeros(0, dtype=np.bool_)
        if not drop.any():
            continue
        left_out[reason] = int(drop.sum())
        if reason in _IN_RANGE:
            badly.append(group[drop])
        group = group[~drop]
    return group, pd.concat(badly), left_out


def thinned(group: pd.DataFrame, badly: pd.DataFrame, most: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """At most `most` rows, drawn evenly, and of those that ran badly the same share."""
    if len(group) <= most:
        return group, badly
    few = round(len(badly) * most / len(group))
    drawn = [np.linspace(0, len(rows) - 1, many).astype(np.int64) for rows, many in ((group, most), (badly, few))]
    return group.iloc[drawn[0]], badly.iloc[drawn[1]]


def prepared(table: pd.DataFrame, kind: str, by: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of one kind with `key`, `family`, and defaults for what a table may leave empty."""
    if by not in ("generation", "gpu"):
        raise UserError(f"by: expected generation or gpu, got {by!r}")
    rows = table[table["kind"] == kind].copy()
    gpus = {name: catalog.load("gpus", name) for name in rows["gpu"].unique()}
    rows["key"] = rows["gpu"].map({name: gpu.name if by == "gpu" else gpu.generation for name, gpu in gpus.items()})
    rows["software"] = column(rows, "software").astype(object).fillna("").astype(str)
    data = catalog.calibration(ENTRY[kind])
    kernels = {name: family(data, name) for name in column(rows, "kernel").dropna().unique()}
    families = {name: UNKNOWN if stranger else known for name, (known, stranger) in kernels.items()}
    rows["family"] = column(rows, "kernel").map(families).astype(object).fillna(DEFAULT_KERNEL)
    for name in ("expert_parallel", "expert_tensor"):
        rows[name] = pd.to_numeric(column(rows, name)).fillna(1)
    rows["load"] = column(rows, "load").astype(object).fillna("balanced").astype(str)
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


def column(rows: pd.DataFrame, name: str) -> pd.Series:
    """A column, empty where the table has none."""
    return rows[name] if name in rows else pd.Series(None, index=rows.index, dtype=object)


def readable(rows: pd.DataFrame) -> Any:
    """Whether a row's load is of a law that is known, or its rows are listed."""
    return rows["load"].astype(str).map(is_known) | column(rows, "rows").notna()


def remote(rows: pd.DataFrame) -> Any:
    """Whether a kernel counts other ranks' tokens as its first expert's."""
    return (rows["family"] == "triton") & rows["software"].str.startswith("sglang") & (rows["expert_parallel"] > 1)


def superseded(rows: pd.DataFrame) -> Any:
    """Rows of older releases, but for shapes that the newest lacks: those stay on few ranks, for releases treat the
    tokens of other ranks differently."""
    shapes = pd.MultiIndex.from_frame(rows[["gpu", "hidden", "inter", "experts"]])
    newest = (rows["software"] == releases_of(rows["software"])[0]).to_numpy()
    return ~newest & (shapes.isin(shapes[newest]) | (rows["expert_parallel"] > _FEW_RANKS).to_numpy())


def cached(rows: pd.DataFrame) -> Any:
    """Whether a product ended before its weights can have come from memory."""
    bandwidth = rows["gpu"].map({name: catalog.load("gpus", name).memory_bandwidth for name in rows["gpu"].unique()})
    weight = number_format(rows["dtype"].iloc[0]).weight
    return rows["n"] * rows["k"] * weight / bandwidth > rows["time"]


def releases_of(software: pd.Series) -> list[str]:
    """The releases in a table, first the newest of the product with the most rows."""
    most = _product(software)
    names = sorted(software.unique(), key=lambda name: (name.split(" ")[0] == most, _version(name)), reverse=True)
    return [str(name) for name in names]


def _product(software: pd.Series) -> str:
    """The product of most rows: "trtllm" of "trtllm 1.3.0"."""
    return str(software.str.split(" ").str[0].mode().iloc[0])


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name.partition(" ")[2]))


OTHER_PRODUCT: Sieve = (
    "another product's kernels",
    lambda rows: ~rows["software"].str.startswith(_product(rows["software"])),
)
