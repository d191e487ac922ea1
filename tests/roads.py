"""Both roads over many random legal scenarios: `python tests/roads.py --scenarios 2000 --seed 0`.

Prints how simulated over estimated seconds spread, how many stay within the band, and the worst with their YAML, each
of which `moesim simulate` and `moesim estimate` (both `--even-if-infeasible`) take. Rows go to `--out`, one a line; a
second call goes on where the first ended. Exit code 1 where a scenario fails or leaves the band.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scenario_strategy import Document, random_document

import moesim
from moesim.scenario.loading import to_yaml

EVEN_BAND, SKEWED_BAND, PAIRED_BAND = 0.02, 0.08, 0.20
MEASURES = {"training": "step_time", "serving": "time_per_output_token"}


def band(document: Document) -> float:
    """How far the roads may be apart: at balanced routing, or where loads are uneven or capacity drops some.

    Wider where two batches share a GPU's compute, each beside the other's exchanges: the closed form adds up the
    busiest rank of each, in the simulation another rank may be busy with one than with the other.
    """
    routing, overlap = document.get("routing", {}), document.get("overlap", {})
    if routing.get("load", "uniform") == "uniform" and routing.get("capacity", "dropless") == "dropless":
        return EVEN_BAND
    paired = overlap.get("expert_communication") or overlap.get("two_batch")
    return PAIRED_BAND if paired else SKEWED_BAND


def off(document: Document, measure: str = "step_time") -> float:
    """Log of what one road's answer is over the other's, simulation above; nan where neither has an answer."""
    scenario = moesim.load(document)
    simulated = moesim.simulate(scenario, even_if_infeasible=True).summary
    estimated = moesim.estimate(scenario, even_if_infeasible=True).summary
    if measure not in simulated or measure not in estimated:
        return math.nan
    return math.log(simulated[measure].value / estimated[measure].value)


def row(kind: str, seed: int, index: int) -> dict[str, Any]:
    """One scenario's answer, or how it failed."""
    document, began = random_document(kind, seed, index), time.perf_counter()
    found: dict[str, Any] = {"index": index, "off": None, "band": band(document), "failed": ""}
    try:
        apart = off(document, MEASURES[kind])
        found["off"] = None if math.isnan(apart) else apart
    except moesim.InfeasibleError as error:
        found["infeasible"] = str(error)
    except Exception as error:  # noqa: BLE001 - a long run tells every failure at its end
        found["failed"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    return {**found, "seconds": round(time.perf_counter() - began, 3)}


def main() -> None:
    """Reads the command line, fills the rows that are missing, tells what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(MEASURES), default="training")
    parser.add_argument("--worst", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/roads"))
    said = parser.parse_args()
    said.out.mkdir(parents=True, exist_ok=True)
    log = said.out / f"{said.kind}-{said.seed}.jsonl"
    known = {one["index"]: one for one in read(log)}
    missing = [index for index in range(said.scenarios) if index not in known]
    with log.open("a", encoding="utf-8") as file, ProcessPoolExecutor(said.workers) as pool:
        for one in pool.map(partial(row, said.kind, said.seed), missing):
            known[one["index"]] = one
            print(json.dumps(one), file=file, flush=True)
    rows = [known[index] for index in range(said.scenarios)]
    tell(rows)
    for one in worst(rows, said.worst):
        print(f"\n# scenario {one['index']}: simulated {math.expm1(one['off']):+.1%} over estimated")
        print(to_yaml(random_document(said.kind, said.seed, one["index"])), end="")
    sys.exit(any(one["failed"] or outside(one) for one in rows))


def read(log: Path) -> Iterator[dict[str, Any]]:
    """Rows of an earlier call."""
    if log.exists():
        yield from map(json.loads, log.read_text(encoding="utf-8").splitlines())


def outside(one: dict[str, Any]) -> bool:
    """Whether a row leaves its band."""
    return one["off"] is not None and abs(one["off"]) > one["band"]


def worst(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Those farthest apart, measured by their own band."""
    answered = [one for one in rows if one["off"] is not None]
    return sorted(answered, key=lambda one: -abs(one["off"]) / one["band"])[:count]


def tell(rows: list[dict[str, Any]]) -> None:
    """The spread, by band."""
    failed, none = sum(bool(one["failed"]) for one in rows), sum("infeasible" in one for one in rows)
    seconds = sum(one["seconds"] for one in rows)
    print(f"{len(rows)} scenarios, {failed} failed, {none} without an answer, {seconds:.0f} s")
    for limit in sorted({one["band"] for one in rows}):
        found = np.array([one["off"] for one in rows if one["band"] == limit and one["off"] is not None])
        if found.size:
            spread = ", ".join(f"{share} %: {np.expm1(at):+.2%}" for share, at in quantiles(found))
            inside = np.count_nonzero(np.abs(found) <= limit)
            print(f"band {limit:.0%}: {inside} of {found.size} within; simulated over estimated at {spread}")
    for one in rows:
        if one["failed"]:
            print(f"failed {one['index']}: {one['failed']}")


def quantiles(found: np.ndarray) -> list[tuple[float, float]]:
    """The least, the median, the most, and what lies between."""
    shares = [0, 1, 5, 25, 50, 75, 95, 99, 100]
    return list(zip(shares, np.percentile(found, shares).tolist(), strict=True))


if __name__ == "__main__":
    main()
