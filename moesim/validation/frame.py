"""A validation as tables: one line a case and metric, and error statistics by group."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd

from moesim.validation.run import Validation
from moesim.validation.statistics import STATISTICS, Stats


def rows_frame(validation: Validation) -> pd.DataFrame:
    """Every row, in the order of the files; values in SI."""
    lines = [{**asdict(row), "notes": "; ".join(row.notes)} for row in validation.cases]
    return pd.DataFrame(lines)


def stats_frame(groups: dict[str, Stats]) -> pd.DataFrame:
    """One line a group: how many, errors as shares, bias, rank correlation, and how many have no prediction."""
    lines = [{"group": name, **stats} for name, stats in groups.items()]
    return pd.DataFrame(lines, columns=["group", *STATISTICS, "unpredicted"])
