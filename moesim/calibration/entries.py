"""Fits as calibration entries: the names and the shape of the catalog's, with source, misses, noise and range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moesim.calibration import runs
from moesim.calibration.compute_fit import FittedSet
from moesim.calibration.network_fit import COMMON, Fitted, generations
from moesim.calibration.own_fit import OwnSet
from moesim.calibration.statistics import noise
from moesim.calibration.tables import FileRead
from moesim.network.coefficients import law

Entry = dict[str, Any]

# Columns whose range of rows is written down.
_RANGES = ("bytes", "tokens", "hidden", "top_k", "experts", "ranks", "sms")


def source_of(rows: pd.DataFrame, files: Sequence[FileRead], day: str) -> Entry:
    """Where the rows come from: the files with their digests, and the day of the fit."""
    counts = rows["file"].value_counts()
    used = [
        {"name": file.name, "sha256": file.digest, "rows": int(counts[file.name])}
        for file in files
        if counts.get(file.name, 0)
    ]
    names = ", ".join(dict.fromkeys(str(file["name"]) for file in used))
    return {"basis": "fitted", "where": f"fit of {len(rows):,} rows of {names}", "date": day, "files": used}


def network_entries(made: Fitted, source: Entry) -> dict[str, Entry]:
    """The entry of a network law, and the generations' latency factors where its rows tell them."""
    head = _head(made, source)
    entry: Entry = {
        **head,
        "residual_by": {part: _short(miss.as_dict()) for part, miss in made.parts.items()},
        "range": _ranges(made.rows),
    }
    factors: Entry = {**head}
    for name in [*made.values]:
        place = factors if name[0] == COMMON else entry
        if name in made.kept:
            place.setdefault("kept", {})[".".join(name[1:])] = made.kept[name]
            continue
        place.setdefault("standard_error", {})[".".join(name[1:])] = float(f"{made.errors[name]:.2g}")
        for key in name[1:-1]:
            place = place.setdefault(key, {})
        place[name[-1]] = made.values[name]
    found = {f"network-{made.law}": entry}
    if "latency_factor" in factors:
        found[f"network-{COMMON}"] = factors
    return found


def _head(made: Fitted, source: Entry) -> Entry:
    return {
        "source": source,
        "residual": _short(made.residual.as_dict()),
        "residual_of_shipped": _short(made.shipped.as_dict()),
        "noise": made.noise,
        "rows": {"used": len(made.rows), "left_out": {}},
        "valid": _valid(made),
    }


def _short(miss: Entry) -> Entry:
    return {name: int(value) if name == "rows" else round(float(value), 3) for name, value in miss.items()}


def _valid(made: Fitted) -> Entry:
    """What the shipped law says of its range, as far as these rows tell it."""
    groups = [runs.network(row) for row in _distinct(made.rows)]
    sms = made.rows["sms"].dropna() if "sms" in made.rows else pd.Series(dtype=float)
    told: Entry = {
        "generations": generations(made.rows),
        "kinds": sorted({str(group.kind) for group in groups}),
        "most_ranks": max(group.ranks for group in groups),
        "most_domains": max(group.domains for group in groups),
        "domain_sizes": sorted({group.ranks_per_domain for group in groups}),
    }
    if len(sms):
        told["least_multiprocessors"] = int(sms.min())
    return {name: value for name, value in told.items() if name in law(made.law).valid}


def _distinct(rows: pd.DataFrame) -> list[Any]:
    words = ["gpu", "ranks", "ranks_per_domain", "nic"]
    return list(rows[words].drop_duplicates().itertuples())


def _ranges(rows: pd.DataFrame) -> Entry:
    found = {}
    for name in _RANGES:
        values = rows[name].dropna() if name in rows else pd.Series(dtype=float)
        if len(values):
            found[name] = [int(values.min()), int(values.max())]
    return found


def compute_entry(entry: Entry, sets: Sequence[FittedSet], rows: pd.DataFrame, source: Entry) -> Entry:
    """The entry of a compute law around its sets: misses are the mean of the sets', weighted by their rows."""
    mean = _mean([made.entry["residual"] for made in sets])
    left_out: dict[str, int] = {}
    for made in sets:
        for reason, count in made.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    return {
        "source": source,
        "residual": mean,
        "noise": noise(rows),
        "rows": {"used": sum(made.used for made in sets), "left_out": dict(sorted(left_out.items()))},
        **entry,
    }


def own_entry(entry: Entry, sets: Sequence[OwnSet], rows: pd.DataFrame, source: Entry) -> Entry:
    """The entry of attention or passes around their sets."""
    misses = [made.residual.as_dict() for made in sets]
    return {"source": source, "residual": _mean(misses), "noise": noise(rows), "rows": {"used": len(rows)}, **entry}


def _mean(misses: Sequence[Mapping[str, float]]) -> Entry:
    """The mean of several sets' misses, weighted by their rows."""
    counts = np.array([miss["rows"] for miss in misses], dtype=np.float64)
    names = ("median", "p90", "bias")
    return {name: round(float(np.average([miss[name] for miss in misses], weights=counts)), 3) for name in names}
