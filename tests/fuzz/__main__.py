"""The long run: `python -m tests.fuzz TARGET --runs N [--atheris] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import shutil
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from .findings import Findings
    from .guard import Guard
    from .targets import Target
    from .trees import Words

_BATCH = 2000
_PATROL, _STUCK = 200, 1200
LAST = "last-input"
"""What stays in the folder `moesim-fuzz-*` of temporary files where an input ends the whole process."""


def main() -> int:
    """Runs one target by one generator; exit code 1 where any input failed."""
    asked = _arguments()
    with _instrumented() if asked.atheris else contextlib.nullcontext():
        from . import findings, guard, targets, trees
    if asked.target not in targets.TARGETS:
        for name, target in targets.TARGETS.items():
            print(f"{name:18} {target.covers}")
        return 2 if asked.target else 0
    target = targets.TARGETS[asked.target]
    out = Path(asked.out).absolute()
    found = findings.Findings(asked.target, "atheris" if asked.atheris else "hypothesis", out)
    watch = guard.Guard()
    with watch.open():
        words = trees.Words(tuple(target.seeds()))
        _warm(target, words, watch, found)
        faulthandler.enable()
        run = _atheris if asked.atheris else _hypothesis
        run(target, words, watch, found, asked)
    return _told(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", default="", help="see the list without it")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after that long, however many are done")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage instead of by hypothesis")
    parser.add_argument("--out", default="out/fuzz", help="folder of the findings")
    return parser.parse_args()


def _warm(target: Target, words: Words, watch: Guard, found: Findings) -> None:
    """Every seed once, so that all is imported and compiled; one that fails is a failure as any other."""
    for data in words.seeds:
        verdict = watch(target.run, data, free=True)
        if verdict.failure is not None:
            found.add(data, verdict)
    watch.cap_memory()


def _one(target: Target, data: bytes, watch: Guard, found: Findings) -> None:
    if found.inputs % _PATROL == 0:  # the guard's own alarm waits for Python; this one does not
        faulthandler.dump_traceback_later(_STUCK, exit=True)
    (watch.folder / LAST).write_bytes(data)
    found.add(data, watch(target.run, data))


def _hypothesis(target: Target, words: Words, watch: Guard, found: Findings, asked: argparse.Namespace) -> None:
    """In batches, so that the memory of what was tried does not grow."""
    from .mutate import mutate

    batch, until = 0, time.monotonic() + 60.0 * asked.minutes
    while found.inputs < asked.runs and time.monotonic() < until:

        @seed(asked.seed * 1_000_003 + batch)
        @settings(max_examples=_BATCH, database=None, deadline=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(st.sampled_from(words.seeds), st.randoms(use_true_random=False))
        def one(data: bytes, random: Random) -> None:
            _one(target, mutate(data, random, words), watch, found)

        one()
        batch += 1


def _atheris(target: Target, words: Words, watch: Guard, found: Findings, asked: argparse.Namespace) -> None:
    """Guided by coverage: what reaches new code is kept and changed further, by our rules or byte by byte."""
    from .mutate import mutate

    atheris = _fuzzer()

    corpus = Path("corpus")
    corpus.mkdir()
    for number, data in enumerate(words.seeds):
        (corpus / f"{number:04}").write_bytes(data)
    until = time.monotonic() + 60.0 * asked.minutes

    def one(data: bytes) -> None:
        _one(target, data, watch, found)
        if found.inputs >= asked.runs or time.monotonic() > until:
            code = _told(found)
            shutil.rmtree(watch.folder, ignore_errors=True)
            os._exit(code)  # the fuzzer itself would not return

    def change(data: bytes, most: int, number: int) -> bytes:
        random = Random(number)
        return atheris.Mutate(data, most) if random.randrange(3) == 0 else mutate(data, random, words)[:most]

    limits = ["-max_len=200000", "-timeout=600", "-rss_limit_mb=0", "-detect_leaks=0", "-verbosity=0", "-handle_segv=0"]
    atheris.Setup(["fuzz", f"-seed={asked.seed + 1}", *limits, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def _instrumented() -> Any:
    """Whatever is imported from here on reports which of its code runs; what numba compiles cannot."""
    root = Path(__file__).parents[2]
    kernels = [path.relative_to(root).with_suffix("") for path in sorted(root.glob("moesim/**/_*kernels.py"))]
    return _fuzzer().instrument_imports(include=["moesim"], exclude=[".".join(path.parts) for path in kernels])


def _fuzzer() -> Any:
    try:
        import atheris
    except ImportError:
        sys.exit("the coverage-guided fuzzer is not installed: pip install 'moesim[fuzz]' (Python 3.11 or 3.12)")
    return atheris


def _told(found: Findings) -> int:
    found.write()
    print(found, flush=True)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
