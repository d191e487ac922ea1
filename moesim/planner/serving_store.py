"""A plan of serving as files: plan.json, plan.html, candidates.parquet, and each winner as a scenario that runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moesim.files import plain_name
from moesim.planner.serving_columns import SERVING_CANDIDATES
from moesim.planner.serving_explain import label
from moesim.planner.serving_plan import ServingModelPlan, ServingPlan
from moesim.planner.serving_report import page
from moesim.planner.store import table_of, written
from moesim.scenario.loading import to_yaml


def save(plan: ServingPlan, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the plan into `folder`, made where absent, and returns the files; `plan.json` comes last.

    Raises `FileError` where it cannot be written.
    """
    texts = {_winner_name(plan, model): winner_yaml(model) for model in plan.models if model.rows}
    texts["plan.html"] = page(plan)
    texts["plan.json"] = json.dumps(plan.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return written(folder, candidates(plan), texts)


def _winner_name(plan: ServingPlan, model: ServingModelPlan) -> str:
    return "winner.yaml" if len(plan.models) == 1 else f"winner-{plain_name(model.model)}.yaml"


def winner_yaml(model: ServingModelPlan) -> str:
    """The winner as a scenario file, every default filled in."""
    row = model.rows[0]
    document: dict[str, Any] = row.scenario.document()
    document["question"] = f"How fast does {label(row)} serve {model.model}?"
    return to_yaml({key: value for key, value in document.items() if value is not None})


def candidates(plan: ServingPlan) -> pa.Table:
    """The candidates worth keeping, all models'; the counts by reason stand in the table's metadata."""
    parts = [
        {"model": np.full(len(model.table["gpus"]), model.model, dtype=object), **model.table} for model in plan.models
    ]
    counts = {
        model.model: {"total": model.total, "feasible": model.feasible, **model.rejected} for model in plan.models
    }
    return table_of(parts, SERVING_CANDIDATES, counts)
