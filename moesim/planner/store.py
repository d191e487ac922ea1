"""A plan as files: plan.json, plan.html, candidates.parquet, and each winner as a scenario that `moesim simulate` runs.

Files are written beside their place and moved there when they are whole; one plan always gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moesim.columns import Column
from moesim.files import plain_name
from moesim.planner.columns import CANDIDATES
from moesim.planner.explain import label
from moesim.planner.plan import ModelPlan, Plan
from moesim.planner.report import page
from moesim.results.store import save_files
from moesim.scenario.loading import to_yaml

_TYPES = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(), "str": pa.string()}


def save(plan: Plan, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the plan into `folder`, made where absent, and returns the files; `plan.json` comes last.

    Raises `FileError` where it cannot be written.
    """
    texts = {winner_name(plan, model): winner_yaml(model) for model in plan.models if model.rows}
    texts["plan.html"] = page(plan)
    texts["plan.json"] = json.dumps(plan.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return written(folder, candidates(plan), texts)


def written(folder: str | os.PathLike[str], table: pa.Table, texts: Mapping[str, str]) -> list[Path]:
    """Writes candidates.parquet and the texts by name into `folder`, in this order, and returns the files."""
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return save_files(folder, {"candidates.parquet": file.getvalue(), **texts})


def winner_name(plan: Plan, model: ModelPlan) -> str:
    """The file of a model's winner."""
    return "winner.yaml" if len(plan.models) == 1 else f"winner-{plain_name(model.model)}.yaml"


def winner_yaml(model: ModelPlan) -> str:
    """The winner as a scenario file, every default filled in."""
    row = model.rows[0]
    document: dict[str, Any] = row.scenario.document()
    if not model.whole_run:
        document["workload"]["total_tokens"] = None
    document["question"] = f"How fast does {label(row)} train {model.model}?"
    return to_yaml(document)


def candidates(plan: Plan) -> pa.Table:
    """The screened candidates worth keeping, all models'; the counts by reason stand in the table's metadata."""
    parts = [
        {"model": np.full(len(model.table["gpus"]), model.model, dtype=object), **model.table} for model in plan.models
    ]
    counts = {
        model.model: {"total": model.total, "feasible": model.feasible, **model.rejected} for model in plan.models
    }
    return table_of(parts, CANDIDATES, counts)


def table_of(
    parts: Sequence[Mapping[str, NDArray[Any]]], columns: Mapping[str, Column], counts: Mapping[str, Any]
) -> pa.Table:
    """Columns of several models as one table, each with unit and meaning; `counts` by reason are its metadata."""
    arrays = [_array(np.concatenate([part[name] for part in parts]), column.dtype) for name, column in columns.items()]
    schema = pa.schema(
        [
            pa.field(name, _TYPES[column.dtype], True, {"unit": column.unit, "meaning": column.meaning})
            for name, column in columns.items()
        ],
        metadata={"moesim_plan_counts": json.dumps(counts)},
    )
    return pa.table(arrays, schema=schema)


def _array(values: NDArray[Any], dtype: str) -> pa.Array:
    """One column; a number that nobody was asked for is null."""
    if dtype == "str":
        return pa.array(values.astype(object), pa.string())
    if dtype == "float64":
        numbers = values.astype(np.float64)
        return pa.array(numbers, pa.float64(), mask=np.isnan(numbers))
    return pa.array(values.astype(dtype), _TYPES[dtype])
