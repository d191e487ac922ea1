"""The training log: a row a logged step and layer, of all runs of a folder in one `log.csv`.

L layers with experts, E experts.
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.files import write_whole
from moesim.routing.capacity import CapacityRule
from moesim.specs.routing import CapacitySpec
from moesim.traces.training import TrainingConfig

FACTORS = (1.0, 1.25, 2.0)


@dataclass(frozen=True)
class Row:
    """One layer after one step: the batch's mean loss, its copies' max/mean over experts, experts that got none, and
    the fractions of copies that capacity factors 1, 1.25 and 2 (megatron's formula) would drop of the whole batch."""

    step: int
    layer: int
    loss: float
    max_over_mean: float
    idle_experts: int
    drop_1_00: float
    drop_1_25: float
    drop_2_00: float


def rows_of(config: TrainingConfig, step: int, loss: float, copies: NDArray[np.int64], sequences: int) -> list[Row]:
    """Rows of one step from the copies of each expert [L, E] in that many sequences."""
    tokens = sequences * config.sequence_length
    found = []
    for layer, loads in zip(config.model_layers, copies, strict=True):
        total = max(int(loads.sum()), 1)
        drops = [_dropped(loads, factor, tokens, config.top_k) / total for factor in FACTORS]
        found.append(Row(step, layer, loss, float(loads.max() * loads.size / total), int((loads == 0).sum()), *drops))
    return found


def write_log(path: Path, name: str, rows: list[Row]) -> None:
    """Put the rows of the run `name` into the log, in place of those it had; other runs' rows stay."""
    names = ["router", *(column.name for column in fields(Row))]
    others: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            others = [row for row in csv.DictReader(file) if row.get("router") != name and set(row) == set(names)]
    own = [{"router": name, **{key: _short(value) for key, value in asdict(row).items()}} for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows([*others, *own])
    write_whole(path, text.getvalue())


def _dropped(loads: NDArray[np.int64], factor: float, tokens: int, top_k: int) -> int:
    rows = CapacityRule.of(CapacitySpec(factor=factor)).capacity(tokens, loads.size, top_k)
    return int(np.maximum(loads - rows, 0).sum())


def _short(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
