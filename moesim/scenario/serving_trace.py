"""A file of requests that a scenario names: found, and its content noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim.errors import Problem, UserError, shorten
from moesim.traces import store

SUFFIXES = (".csv", ".parquet", ".jsonl")


def resolve_arrivals(resolved: dict[str, Any], found: list[Problem], folder: Path) -> None:
    """Replaces `workload.arrivals.path` by the file meant, beside the scenario or from here; notes its digest."""
    work = resolved.get("workload")
    arrivals = work.get("arrivals") if isinstance(work, dict) else None
    if not isinstance(work, dict) or not isinstance(arrivals, dict) or not isinstance(arrivals.get("path"), str):
        return
    where, name = "workload.arrivals.path", arrivals["path"]
    beside = folder / name
    path = beside if beside.is_file() else Path(name)
    if path.suffix not in SUFFIXES:
        found.append(Problem(where, f"{shorten(name)!r} is none of {', '.join(SUFFIXES)}"))
        return
    try:
        digest = store.digest(path)
    except UserError as error:
        found.append(Problem(where, str(error)))
        return
    if arrivals.get("digest") not in (None, digest):
        found.append(Problem(where, f"{shorten(name)} is not the file that this scenario was made with"))
        return
    resolved["workload"] = {**work, "arrivals": {**arrivals, "path": path.as_posix(), "digest": digest}}
