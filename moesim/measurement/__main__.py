"""`python -m moesim.measurement gpu|collectives FILE`: the timings where only torch and numpy are installed.

The same as `moesim measure`, for machines that lack the package's other dependencies. Collectives run under torchrun:
`torchrun --nproc-per-node 8 -m moesim.measurement collectives FILE`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from moesim.errors import MissingPackageError, MoesimError
from moesim.measurement.outcome import Measured, Progress
from moesim.measurement.plan import KINDS, PRESETS, Case, cases

try:
    from moesim.measurement.torch_collectives import SIZES, measure_collectives
    from moesim.measurement.torch_device import choose_device
    from moesim.measurement.torch_gpu import measure_gpu
except MissingPackageError as error:
    print(f"Error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code) from error


INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of both; the exit code, as that of `moesim`."""
    given = _parser().parse_args(arguments)
    try:
        measured = _gpu(given) if given.verb == "gpu" else _collectives(given)
    except MoesimError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    if measured is None:
        return 0
    print(measured.summary())
    return INTERRUPTED if measured.ended == "interrupted" else 0


def tell(progress: Progress) -> None:
    """One line a case on standard error."""
    told = f"{progress.time * 1e6:12.2f} us" if progress.time is not None else f"skipped: {progress.reason}"
    print(f"{progress.done}/{progress.cases} {progress.seconds:6.1f} s {told}  {progress.label}", file=sys.stderr)


def _gpu(given: argparse.Namespace) -> Measured:
    plan: str | list[Case] = given.preset
    if given.kinds:
        automatic = "gpu" if choose_device(given.device).type == "cuda" else "small"
        plan = cases(automatic if plan == "auto" else given.preset, given.kinds.split(","))
    return measure_gpu(given.output, plan, given.seconds, given.device, given.seed, tell)


def _collectives(given: argparse.Namespace) -> Measured | None:
    return measure_collectives(given.output, given.preset, given.seconds, given.nic, given.ranks_per_domain, tell)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m moesim.measurement", description="time this machine")
    verbs = parser.add_subparsers(dest="verb", required=True)
    gpu = verbs.add_parser("gpu", help="kernels on one GPU, or on this processor")
    gpu.add_argument("--preset", default="auto", choices=["auto", *PRESETS])
    gpu.add_argument("--kinds", default="", help="only these, with commas: " + ",".join(KINDS))
    gpu.add_argument("--device", help="cuda, cuda:N or cpu")
    gpu.add_argument("--seed", type=int, default=0)
    collectives = verbs.add_parser("collectives", help="exchanges between the processes of torchrun")
    collectives.add_argument("--preset", default="auto", choices=["auto", *SIZES])
    collectives.add_argument("--nic", type=float, help="a GPU's scale-out bandwidth in one direction, bytes/s")
    collectives.add_argument("--ranks-per-domain", type=int, help="default: processes of one machine")
    for verb in (gpu, collectives):
        verb.add_argument("output", help="measurement file to write, .csv or .parquet")
        verb.add_argument("--seconds", type=float, help="end after so long, and keep what is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
