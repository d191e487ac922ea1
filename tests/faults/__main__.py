"""`python -m tests.faults kills --kills 200 --seed 1` kills commands at random moments.

The exit code is 1 where one has lost, repeated or torn anything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .kills import Found, kill_many
from .subjects import SUBJECTS
from .watched import BEFORE, BETWEEN, CLEARING, DRAFTING

PHASES = (BEFORE, DRAFTING, BETWEEN, CLEARING)


def main() -> int:
    """Runs what the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", choices=["kills"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chain", type=int, default=3, help="kills before a folder's command may end")
    parser.add_argument("--only", default="", help=f"of {', '.join(SUBJECTS)}, with commas")
    chosen = parser.parse_args()
    names = chosen.only.split(",") if chosen.only else list(SUBJECTS)
    found, told = Found(), 0
    with tempfile.TemporaryDirectory(prefix="moesim-kills-", ignore_cleanup_errors=True) as work:
        for found in kill_many(Path(work), chosen.kills, chosen.seed, names, chosen.chain):
            print(f"{found.kills} kills, {found.ends} ends, {len(found.wrong)} wrong", *found.wrong[told:], flush=True)
            told = len(found.wrong)
    print(table(found, names))
    return 1 if found.wrong else 0


def table(found: Found, names: list[str]) -> str:
    """Kills by command and phase, and what was wrong."""
    lines = ["| command | " + " | ".join(PHASES) + " | kills |", "|---|" + "---|" * (len(PHASES) + 1)]
    for name in names:
        counts = [found.phases[name, phase] for phase in PHASES]
        lines.append(f"| {name} | " + " | ".join(map(str, counts)) + f" | {sum(counts)} |")
    sums = [sum(found.phases[name, phase] for name in names) for phase in PHASES]
    lines.append("| all | " + " | ".join(map(str, sums)) + f" | {found.kills} |")
    lines.append(f"too late to meet a living process: {found.late}; runs to the end: {found.ends}")
    return "\n".join([*lines, f"wrong: {len(found.wrong)}", *found.wrong])


if __name__ == "__main__":
    sys.exit(main())
