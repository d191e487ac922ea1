"""MoE-CAP's server records: JSON lines, a forward pass each, with how many experts had a token (mean of layers)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moesim.errors import FileError
from moesim.traces.counts import ExpertsUsed
from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.importers.lines import json_rows

_KEY = "expert_activation"


def _recognises(source: Source) -> bool:
    return _KEY in source.row and "forward_mode" in source.row


def _read(source: Source, options: ImportOptions) -> ExpertsUsed:
    columns: dict[str, list[float]] = {"used": [], "sequences": [], "tokens": [], "seconds": [], "prefill": []}
    skipped = 0
    for number, row in enumerate(json_rows(source.path), 1):
        where = f"{source.path}, line {number:,}"
        used = row.get(_KEY)
        if used is None:
            skipped += 1
            continue
        prefill = row.get("forward_mode") not in ("decode", 2)
        sequences = _number(row.get("batch_size"), where, "batch_size")
        tokens = row.get("processed_tokens", row.get("seq_lens_sum") if prefill else sequences)
        columns["used"].append(_number(used, where, _KEY))
        columns["sequences"].append(sequences)
        columns["tokens"].append(_number(tokens, where, "tokens"))
        columns["seconds"].append(_number(row["latency"], where, "latency") if "latency" in row else math.nan)
        columns["prefill"].append(prefill)
    if not columns["used"]:
        raise FileError(f"cannot read {source.path}: no line of it has {_KEY}")
    return ExpertsUsed(
        used=np.array(columns["used"], np.float64),
        sequences=np.array(columns["sequences"], np.int64),
        tokens=np.array(columns["tokens"], np.int64),
        seconds=np.array(columns["seconds"], np.float64),
        prefill=np.array(columns["prefill"], np.bool_),
        source=options.source,
        note=f"without {skipped} lines that have no {_KEY}" if skipped else "",
    )


def _number(value: Any, where: str, name: str) -> float:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 53
    if not sound:
        raise FileError(f"cannot read {where}: its {name} is not a number from 0 upwards")
    return float(value)


MOE_CAP = Importer(
    "moe-cap", "MoE-CAP server records (JSON lines): experts used by forward pass, not choices", _recognises, _read
)
