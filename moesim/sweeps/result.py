"""What a sweep brings: its table, what did not work and why; as one Parquet file, and back."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moesim.errors import FileError, shorten
from moesim.files import whole_file
from moesim.parquet_files import Most, read_parquet
from moesim.sweeps.nouns import Noun
from moesim.sweeps.store import TABLE, make_folder
from moesim.sweeps.table import FORMAT, HEADER, STATES

if TYPE_CHECKING:
    import pandas as pd

MOST = Most(rows=5_000_000, columns=5_000, size=2 << 30)


@dataclass(frozen=True)
class Sweep:
    """One row a point. `computed` points were worked out in this run, `reused` were found in the folder or stand in the
    table twice; `notes` tell what a reader should know of the run."""

    arrow: pa.Table
    computed: int = 0
    reused: int = 0
    notes: tuple[str, ...] = ()

    @cached_property
    def header(self) -> dict[str, Any]:
        """Question, road, and the names of the fields and metrics."""
        found: dict[str, Any] = json.loads(self.arrow.schema.metadata[HEADER])
        return found

    @property
    def question(self) -> str:
        """What the sweep is to answer."""
        return str(self.header["question"])

    @property
    def noun(self) -> Noun:
        """What it is of: training or serving."""
        found: Noun = self.header.get("of", "training")
        return found

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that vary."""
        return tuple(self.header["fields"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the table; each has NAME, NAME_low, NAME_high, and NAME_basis."""
        return tuple(self.header["metrics"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """Everything: fields, seed, status, reason, key, and the metrics with their ranges."""
        found: pd.DataFrame = self.arrow.to_pandas()
        return found

    @cached_property
    def points(self) -> pd.DataFrame:
        """What each point set, its seed, and what became of it."""
        return self.table[[*self.fields, *STATES]]

    @cached_property
    def failed(self) -> pd.DataFrame:
        """The points that are not done, with the reason: infeasible, illegal, or failed."""
        return self.points[self.points["status"] != "done"]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Points by status."""
        found = pc.value_counts(self.arrow.column("status")).to_pylist()
        return {entry["values"]: entry["counts"] for entry in sorted(found, key=lambda entry: str(entry["values"]))}

    def missing_from(self, folder: str | os.PathLike[str]) -> int:
        """Points of the table in `folder` that this one lacks; 0 where none can be read there."""
        try:
            there = read_parquet(Path(folder) / TABLE, MOST, ["key"])
        except (OSError, ValueError, pa.ArrowException):
            return 0
        return len(set(there.column("key").to_pylist()) - set(self.arrow.column("key").to_pylist()) - {None})

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `sweep.parquet` into `folder`, whole or not at all: the same bytes for the same sweep."""
        target = Path(folder)
        make_folder(target)
        with whole_file(target / TABLE, durable=True) as file:
            pq.write_table(self.arrow, file, compression="zstd")
        return target / TABLE

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Sweep:
        """The sweep that was saved in `folder`. Raises `FileError` where there is none, or it was cut."""
        path = Path(folder) / TABLE
        try:
            table = read_parquet(path, MOST)
            header = json.loads((table.schema.metadata or {}).get(HEADER, b"{}"))
        except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"cannot read a sweep from {path}: {shorten(str(error), 200)}") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise FileError(f"{path} is not the table of a sweep that this release reads")
        return cls(table)
