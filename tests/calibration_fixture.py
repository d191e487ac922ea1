"""Measurement files made from the laws themselves, with coefficients that the tests choose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim.calibration import network_fit, runs
from moesim.calibration.solve import Name
from moesim.measurement.columns import write

LAWS = {law.law: law for law in network_fit.LAWS}


def nccl_rows(gpus: tuple[str, ...] = ("h100-sxm",), ranks: tuple[int, ...] = (2, 4, 8)) -> pd.DataFrame:
    """Collectives and all-to-alls of 1 KiB to 1 GiB inside one domain."""
    words = [
        {"gpu": gpu, "collective": word, "ranks": count, "bytes": float(1 << power)}
        for gpu in gpus
        for word in ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")
        for count in ranks
        for power in range(10, 31, 2)
    ]
    table = pd.DataFrame(words)
    table["kind"] = np.where(table["collective"] == "all-to-all", "all_to_all", "collective")
    return table.assign(ranks_per_domain=8, nic=np.nan, library="nccl", software="nccl 2.27", source="made")


def deepep_rows(nodes: tuple[int, ...] = (1, 2, 4)) -> pd.DataFrame:
    """Dispatch and combine of 16 to 16,384 tokens on 8 to 24 SMs."""
    words = [
        {"direction": way, "ranks": 8 * count, "sms": sms, "tokens": float(4**power), "hidden": hidden}
        for way in ("dispatch", "combine")
        for count in nodes
        for sms in (8, 24)
        for power in range(2, 8)
        for hidden in (4096, 7168)
    ]
    return pd.DataFrame(words).assign(
        kind="dispatch_combine", gpu="h100-sxm", top_k=8, experts=256, ranks_per_domain=8, nic=np.nan, groups=np.nan,
        top_groups=np.nan, library="deepep-normal", dispatch="fp8-block", combine="bf16", software="made 1",
        source="made",
    )  # fmt: skip


def timed(rows: pd.DataFrame, law: str, values: Mapping[Name, float], noise: float = 0.0) -> pd.DataFrame:
    """`rows` with the time that the law gives under `values`, times log-normal noise."""
    made = LAWS[law]
    names = tuple({law, "common"})
    laws = runs.trial(runs.shipped_laws(names), values)
    seconds = runs.predict(made.runs(rows), laws, len(rows))
    return rows.assign(time=seconds * np.exp(noise * np.random.default_rng(7).normal(size=len(rows))), repeats=5)


def saved(rows: pd.DataFrame | list[dict[str, Any]], path: Path) -> Path:
    return write(rows, path)
