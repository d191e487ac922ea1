"""Fits of the network laws: which rows belong to a law, which of its coefficients they can tell, and how well.

Every fit runs through the functions that predictions use, with trial coefficients in place of the catalog's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from moesim import catalog
from moesim.calibration import runs as calls
from moesim.calibration.foreign import CUSTOM_ALL_REDUCE
from moesim.calibration.runs import Run
from moesim.calibration.solve import Floats, Name, solve
from moesim.calibration.statistics import Residual, noise, residual, weights
from moesim.network.coefficients import Law
from moesim.network.coefficients import law as law_of

COMMON = "common"
# The generation whose latencies the shipped laws count in; others are factors of it.
REFERENCE = "hopper"
# Times this far from the shipped law are of another unit or another network, not of this law.
FOREIGN = 30.0


@dataclass(frozen=True)
class LawFit:
    """A law: its calibration, its coefficients as dotted paths, the rows it takes and how they call it.

    `latencies`: whether the rows tell the generations' latency factors too. `parts`: columns by which misses are told.
    """

    law: str
    coefficients: tuple[str, ...]
    takes: Callable[[pd.DataFrame], pd.Series]
    runs: Callable[[pd.DataFrame], list[Run]]
    parts: tuple[str, ...]
    latencies: bool = False


@dataclass(frozen=True)
class Fitted:
    """One law's fit: found and kept coefficients, misses overall, by part and with the shipped coefficients."""

    law: str
    values: dict[Name, float]
    errors: dict[Name, float]
    kept: dict[Name, str]
    residual: Residual
    shipped: Residual
    parts: dict[str, Residual]
    rows: pd.DataFrame
    noise: dict[str, float] = field(default_factory=dict)


def _collective(across: bool, words: tuple[str, ...]) -> Callable[[pd.DataFrame], pd.Series]:
    def takes(rows: pd.DataFrame) -> pd.Series:
        kind = rows["kind"].isin(("collective", "all_to_all")) & rows["collective"].isin(words)
        several = rows["ranks"] > rows["ranks_per_domain"]
        return kind & (rows["library"] == "nccl") & (rows["ranks"] > 1) & (several == across)

    return takes


def _custom_all_reduce(rows: pd.DataFrame) -> pd.Series:
    mine = (rows["library"] == CUSTOM_ALL_REDUCE) & (rows["collective"] == "all-reduce") & (rows["ranks"] > 1)
    return mine & (rows["ranks"] <= rows["ranks_per_domain"])


def _exchange(library: str) -> Callable[[pd.DataFrame], pd.Series]:
    def takes(rows: pd.DataFrame) -> pd.Series:
        mine = (rows["kind"] == "dispatch_combine") & (rows["library"] == library) & (rows["ranks"] > 1)
        return mine & ~_starved(rows, library)

    return takes


def _starved(rows: pd.DataFrame, library: str) -> pd.Series:
    """Whether so few SMs ran that a law without a term for them does not hold."""
    entry = law_of(library)
    if "token" in entry.data or "least_multiprocessors" not in entry.valid:
        return pd.Series(False, index=rows.index)
    least = float(entry.valid["least_multiprocessors"])
    return pd.Series(rows["sms"] < least)


def _exchange_law(library: str, coefficients: str, parts: tuple[str, ...]) -> LawFit:
    def runs(rows: pd.DataFrame) -> list[Run]:
        return calls.exchange_runs(rows, library)

    return LawFit(library, tuple(coefficients.split()), _exchange(library), runs, parts)


_RINGS = ("all-gather", "reduce-scatter", "all-reduce")
_NVL_PART = "{0}.alpha {0}.alpha_doubling {0}.token {0}.eta"

LAWS: tuple[LawFit, ...] = (
    LawFit(
        "nccl-domain",
        ("eta", "eta_small", "root", "base", "hop", "all_to_all_base", "all_to_all_hop", "in_switch.factor"),
        _collective(False, (*_RINGS, "all-to-all")),
        calls.collective_runs,
        ("collective", "gpu", "ranks"),
        latencies=True,
    ),
    LawFit(
        "nccl-fabric",
        ("eta_out", "alpha", "root", "eta_up"),
        _collective(True, ("all-to-all",)),
        calls.collective_runs,
        ("ranks",),
    ),
    LawFit(
        "collectives",
        ("ring.alone", "alone_alpha", "alone_root"),
        _collective(True, _RINGS),
        calls.collective_runs,
        ("ranks",),
    ),
    LawFit(
        "custom-all-reduce",
        ("one_shot.base", "one_shot.hop", "one_shot.eta", "two_shots.base", "two_shots.hop", "two_shots.eta"),
        _custom_all_reduce,
        calls.custom_runs,
        ("gpu", "ranks"),
    ),
    _exchange_law(
        "deepep-normal",
        "token rate.dispatch rate.combine rate_fabric.dispatch rate_fabric.combine combine_copies eta_up eta_out root "
        "alpha_dispatch alpha_combine alpha_combine_rate alpha_doubling",
        ("direction", "ranks"),
    ),
    _exchange_law(
        "deepep-low-latency",
        " ".join(
            f"{name}.{way}"
            for way in ("dispatch", "combine")
            for name in ("alpha", "alpha_expert", "alpha_far", "eta_up", "eta_out", "rate")
        ),
        ("direction", "ranks"),
    ),
    _exchange_law("hybrid-ep", "alpha alpha_doubling eta_up eta_out", ("direction", "ranks")),
    _exchange_law(
        "one-sided-nvl", " ".join(_NVL_PART.format(way) for way in ("dispatch", "combine")), ("direction", "ranks")
    ),
    _exchange_law(
        "two-sided-nvl",
        "copy_rate prepare.alpha prepare.alpha_doubling prepare.token "
        + " ".join(_NVL_PART.format(part) for part in ("dispatch", "combine", "combine_low_precision")),
        ("direction", "ranks"),
    ),
)


def fit(law: LawFit, rows: pd.DataFrame) -> Fitted | str:
    """The fit of one law to its own rows (those that it takes), or why there is none."""
    rows = rows.reset_index(drop=True)
    shipped = calls.shipped_laws((law.law, COMMON))
    start = _start(law, rows, shipped)
    if len(rows) <= len(start):
        return f"{len(rows)} rows, fewer than are needed for its {len(start)} coefficients"
    made = law.runs(rows)
    measured = rows["time"].to_numpy(dtype=np.float64)
    before = calls.predict(made, shipped, len(rows))
    ratio = float(np.median(measured / before))
    if not 1 / FOREIGN < ratio < FOREIGN:
        return f"its {len(rows)} rows take {ratio:.3g} times as long as the law says of that hardware; seconds?"

    def trial(values: Mapping[Name, float]) -> Floats:
        return calls.predict(made, calls.trial(shipped, values), len(rows))

    found = solve(start, trial, measured, weights(rows))
    return Fitted(
        law.law,
        found.values,
        found.errors,
        found.kept,
        residual(found.predicted, measured),
        residual(before, measured),
        parts_of(law, rows, found.predicted),
        rows,
        noise(rows),
    )


def judge(law: LawFit, rows: pd.DataFrame, values: Mapping[Name, float]) -> Residual:
    """The misses of given coefficients on rows of a law: for rows that were kept apart from the fit."""
    rows = rows.reset_index(drop=True)
    names = tuple({COMMON, law.law, *(name for name, *_ in values)})
    laws = calls.trial(calls.shipped_laws(names), values)
    return residual(calls.predict(law.runs(rows), laws, len(rows)), rows["time"].to_numpy(dtype=np.float64))


def parts_of(law: LawFit, rows: pd.DataFrame, predicted: Floats) -> dict[str, Residual]:
    """Misses by each value of the law's parts."""
    measured = rows["time"].to_numpy(dtype=np.float64)
    found = {}
    for part in law.parts:
        for value, same in rows.groupby(part, sort=True):
            at = same.index.to_numpy()
            text = f"{value:g}" if isinstance(value, float) else str(value)
            found[f"{part} {text}"] = residual(predicted[at], measured[at])
    return found


def _start(law: LawFit, rows: pd.DataFrame, shipped: Mapping[str, Law]) -> dict[Name, float]:
    """The shipped value of every coefficient that the rows may tell."""
    own: dict[Name, float] = {}
    for dotted in law.coefficients:
        path = tuple(dotted.split("."))
        own[(law.law, *path)] = shipped[law.law].value(*path)
    if not law.latencies:
        return own
    met = generations(rows)
    apart = [name for name in met if name != (REFERENCE if REFERENCE in met else met[0])]
    factors: dict[str, Any] = shipped[COMMON].data["latency_factor"]
    return own | {(COMMON, "latency_factor", name): float(factors[name]) for name in apart if name in factors}


def generations(rows: pd.DataFrame) -> list[str]:
    """The generations of the rows' GPUs, sorted."""
    return sorted({str(catalog.load("gpus", str(name)).generation) for name in rows["gpu"].unique()})
