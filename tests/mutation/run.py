"""Mutation testing of the rooms in rooms.yaml: `python tests/mutation/run.py ROOM --sample 300 --seed 0`.

Needs `pip install cosmic-ray coverage`: the operators are Cosmic Ray's. A place of the source (an operator, a number, a
condition ...) is drawn with one of its mutants, for Cosmic Ray has six mutants of a `+` and one of an `and`; `--sample
0` takes all places. The tests of a mutant are those that run its line (by coverage), the quickest first. It is judged
in a fork of one pytest session, with the changed code put in place; one that changes what runs at import, and one that
survived, in a fork that has not imported its room, the latter with more tests. Where kernels are mutated they run as
plain Python. Results go to `--out` line by line; a second call goes on with what is missing, `--again survived` judges
survivors anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent)]

from rooms import ROOMS, ROOT, sample, sources, test_files  # noqa: E402

os.environ |= {"HYPOTHESIS_PROFILE": "mutation", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
if len(sys.argv) > 1 and ROOMS.get(sys.argv[1], {}).get("plain_kernels"):
    os.environ["NUMBA_DISABLE_JIT"] = "1"

import numba  # noqa: E402, F401 - here, so that no mutant's process has to import it
import pandas as pd  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401
import scipy.optimize  # noqa: E402, F401
import simpy  # noqa: E402, F401
import yaml  # noqa: E402
from coverage_map import Reach, coverage_of  # noqa: E402
from hypothesis import Phase, settings  # noqa: E402
from importers import untouched  # noqa: E402
from mutants import Mutant  # noqa: E402
from runner import INVALID, KILLED, SURVIVED, TIMEOUT, judge  # noqa: E402
from session import Job, judge_all  # noqa: E402
from swap import changed_functions  # noqa: E402

settings.register_profile(
    "mutation", derandomize=True, deadline=None, database=None, phases=(Phase.explicit, Phase.generate)
)
FIRST_LOOK, SECOND_LOOK = 5.0, 30.0
"""Processor seconds of tests that judge one mutant."""


def main() -> None:
    """Reads the command line, judges what is missing, tells the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", choices=sorted(ROOMS))
    parser.add_argument("--sample", type=int, default=300, help="places drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "mutation")
    parser.add_argument("--again", default="", help="judge those with this outcome anew, e.g. survived")
    said = parser.parse_args()
    os.chdir(ROOT)
    said.out.mkdir(parents=True, exist_ok=True)
    reach = coverage_of(sources(said.room), test_files(said.room), ROOT, said.out / f"{said.room}-map.json")
    log = said.out / f"{said.room}-{said.sample}-{said.seed}.jsonl"
    chosen, known = sample(said.room, said.sample, said.seed), read(log)
    missing = [one for one in chosen if known.get(one.name, {"outcome": said.again})["outcome"] == said.again]
    print(f"{said.room}: {len(chosen)} mutants, {len(missing)} to judge", flush=True)
    alone = first_look(missing, test_files(said.room), reach, log)
    second_look(said.room, [*alone, *survivors(missing, alone, log)], reach, log)
    known = read(log)
    tell(said.room, [known[one.name] for one in chosen if known[one.name]["outcome"] != INVALID])


def first_look(missing: Sequence[Mutant], files: Sequence[str], reach: Reach, log: Path) -> list[Mutant]:
    """Judges those that can be put in place, in one session; which could not."""
    jobs, alone = [], []
    write = writer(log)
    for mutant in missing:
        text = (ROOT / mutant.path).read_text(encoding="utf-8")
        try:
            changed = changed_functions(text, mutant.source(text))
        except SyntaxError:
            write(mutant, (INVALID, 0.0, ""), 0)  # an operator that was none, such as the star before keyword arguments
            continue
        tests = reach.tests(mutant, FIRST_LOOK) if changed and reach.is_direct(mutant) else []
        if changed and tests:
            jobs.append(Job(mutant, changed, tests, 15.0 + 3.0 * reach.seconds(tests)))
        else:
            alone.append(mutant)
    child = os.fork()
    if child == 0:
        try:
            judge_all(jobs, files, lambda job, found: write(job.mutant, found, len(job.tests)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return alone


def survivors(missing: Sequence[Mutant], alone: Sequence[Mutant], log: Path) -> list[Mutant]:
    """Those that the first look did not kill, or did not reach."""
    known, other = read(log), set(alone)
    return [one for one in missing if one not in other and known.get(one.name, {}).get("outcome") in (None, SURVIVED)]


def second_look(room: str, mutants: Sequence[Mutant], reach: Reach, log: Path) -> None:
    """Judges each in a process that has not imported the room."""
    preload(room)
    write = writer(log)
    for mutant in mutants:
        tests = reach.tests(mutant, SECOND_LOOK)
        write(mutant, judge(ROOT, mutant, tests, 15.0 + 3.0 * reach.seconds(tests)), len(tests))


def preload(room: str) -> None:
    """Imports what no mutant can change; raises where that would have imported what one may."""
    for name in untouched(ROOT, sources(room)):
        import_module(name)
    imported = {str(getattr(module, "__file__", "")) for module in sys.modules.values()}
    early = [path for path in sources(room) if str(ROOT / path) in imported]
    if early:
        raise RuntimeError(f"imported before they are mutated: {early}")


def writer(log: Path) -> Callable[[Mutant, tuple[str, float, str], int], None]:
    """Writes one row a mutant to the log."""

    def write(mutant: Mutant, found: tuple[str, float, str], tests: int) -> None:
        outcome, seconds, killer = found
        row = {"name": mutant.name, "outcome": outcome, "seconds": round(seconds, 2), "tests": tests, "by": killer}
        with log.open("a", encoding="utf-8") as file:
            print(json.dumps(row), file=file)

    return write


def read(log: Path) -> dict[str, dict[str, Any]]:
    """Rows by mutant; the last of a name holds."""
    lines: Iterable[str] = log.read_text(encoding="utf-8").splitlines() if log.exists() else ()
    return {row["name"]: row for row in map(json.loads, lines)}


def tell(room: str, rows: list[dict[str, Any]]) -> None:
    """The share killed with its 95 % interval (Wilson), with and without those known to be equivalent."""
    count = Counter(row["outcome"] for row in rows)
    listed = yaml.safe_load((HERE / "equivalent.yaml").read_text(encoding="utf-8")) or {}
    alive = [row for row in rows if row["outcome"] == SURVIVED]
    same = [row for row in alive if row["name"] in listed]
    for row in alive:
        print(f"  {row['outcome']:9} {row['name']}{'  (equivalent)' if row in same else ''}")
    killed = count[KILLED] + count[TIMEOUT]
    print(f"{room}: {dict(count)}, of {len(alive)} alive {len(same)} are equivalent")
    for words, of in (("all", len(rows)), ("without equivalent ones", len(rows) - len(same))):
        low, high = wilson(killed, of)
        print(f"  killed, {words}: {killed}/{of} = {killed / of:.1%}, 95 % interval {low:.1%} to {high:.1%}")


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, hits / of
    middle, width = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - width) / (1 + z * z / of), (middle + width) / (1 + z * z / of)


if __name__ == "__main__":
    main()
