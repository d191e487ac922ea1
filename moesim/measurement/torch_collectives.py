"""`moesim measure collectives`: times exchanges between the processes that torchrun started, by NCCL or gloo."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from moesim.errors import UnknownNameError, UserError
from moesim.measurement.outcome import Measured, Progress, Report, Skipped, checked, today
from moesim.measurement.plan import Case
from moesim.measurement.torch_device import device_name, gpu_name, reason_of, settled, software, synchronise
from moesim.measurement.torch_door import torch
from moesim.measurement.torch_exchanges import SEED, Group, prepare_exchange

__all__ = ["SIZES", "measure_collectives"]

SIZES: dict[str, tuple[int, int]] = {"small": (10, 20), "full": (10, 30)}
"""Presets: powers of two of the least and the most bytes, in the sense of the table's column `bytes`."""
_SECONDS = {"small": 60.0, "full": 480.0}
_LOADS = ("log-normal 0.5", "log-normal 1", "hot-rank 2", "hot-rank 4")
_EQUAL = ("all-to-all", "all-gather", "reduce-scatter", "all-reduce", "point-to-point")
LONGEST = 0.2
"""Seconds for which one case is timed, where the time allows."""
SHARE = 0.5
SHORT = 2e-3
SAMPLES = (5, 40)
MOST_CALLS = 50
SAVED = 10.0


def collective_cases(preset: str, ranks: int) -> list[Case]:
    """Exchanges by size, large ones first inside a tier: equal ones at powers of four, then unequal ones, then the
    sizes between."""
    if preset not in SIZES:
        raise UnknownNameError("preset", preset, SIZES)
    low, high = SIZES[preset]
    found = []
    for power in range(high, low - 1, -1):
        tier = 0 if (power - low) % 2 == 0 else 2
        found += [Case(_kind(name), {"collective": name, "bytes": 1 << power}, tier) for name in _EQUAL]
        if tier == 0:
            unequal = {"collective": "all-to-all-unequal", "bytes": 1 << power}
            loads = [load for load in _LOADS if not load.startswith("hot-rank") or float(load.split()[1]) <= ranks]
            found += [Case("all_to_all", unequal | {"load": load}, 1) for load in loads]
    return sorted(found, key=lambda case: case.tier)


def measure_collectives(
    output: str | os.PathLike[str] | None = None,
    preset: str = "auto",
    seconds: float | None = None,
    nic: float | None = None,
    ranks_per_domain: int | None = None,
    progress: Report | None = None,
) -> Measured | None:
    """Time exchanges between torchrun's processes; the first one writes `output`, returns what there is and tells
    `progress`, the others return None.

    `preset`: small (1 KiB to 1 MiB a rank), full (to 1 GiB), auto (full with NCCL, else small). `nic`: a GPU's
    scale-out bandwidth in one direction in bytes/s, for the file. `ranks_per_domain`: ranks that share a scale-up
    domain (default: the processes of one machine). Ends after `seconds` or at Ctrl-C and keeps what it has. Raises
    UserError for a bad argument, and where there is one process only.
    """
    _check_arguments(preset, seconds, nic, ranks_per_domain)
    path = None if output is None else checked(output)
    with _joined() as group:
        name = ("full" if group.backend == "nccl" else "small") if preset == "auto" else preset
        run = _Run(group, collective_cases(name, group.size), seconds or _SECONDS[name], progress)
        run.common = _common(group, name, nic, ranks_per_domain)
        run.measured.path = path if group.rank == 0 else None
        run.go()
        group.clean = run.measured.ended != "interrupted"
    if group.rank != 0:
        return None
    run.measured.check()
    return run.measured


def _check_arguments(preset: str, seconds: float | None, nic: float | None, domain: int | None) -> None:
    if preset not in (*SIZES, "auto"):
        raise UnknownNameError("preset", preset, [*SIZES, "auto"])
    for name, value in (("seconds", seconds), ("nic", nic), ("ranks_per_domain", domain)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}; it must be a positive number")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UserError(
            "there is nobody to exchange with: this is one process; start several, e.g. "
            "torchrun --nproc-per-node 8 -m moesim measure collectives FILE"
        )


@contextmanager
def _joined() -> Iterator[Group]:
    """The group that torchrun's environment names; one that is there already is used, and stays."""
    own = not torch.distributed.is_initialized()
    device = _device()
    if own:
        started = {"device_id": device} if device.type == "cuda" else {}
        torch.distributed.init_process_group("nccl" if started else "gloo", **started)
    backend = str(torch.distributed.get_backend())
    group = Group(torch.distributed.get_rank(), torch.distributed.get_world_size(), device, backend)
    if backend != "nccl":
        group.device = torch.device("cpu")
    try:
        yield group
    finally:
        # To leave NCCL while others are inside a call may wait for ever; gloo's threads must be ended.
        if own and (group.clean or backend == "gloo"):
            torch.distributed.destroy_process_group()


def _device() -> torch.device:
    """This process' own GPU, or the processor where there is no GPU or no NCCL."""
    if not (torch.cuda.is_available() and torch.distributed.is_nccl_available()):
        return torch.device("cpu")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > gpus:
        raise UserError(
            f"{here} processes on a machine with {gpus} GPUs: start one a GPU, or hide them "
            "(CUDA_VISIBLE_DEVICES=) to time gloo between processors"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _common(group: Group, preset: str, nic: float | None, domain: int | None) -> dict[str, Any]:
    told = f"measured by moesim measure collectives, preset {preset}, seed {SEED}, on {group.size} x "
    library = group.backend
    if library == "nccl":
        library = "nccl " + ".".join(str(part) for part in torch.cuda.nccl.version())
    return {
        "gpu": gpu_name(group.device),
        "software": f"{library}, {software(group.device)}",
        "source": f"{told}{device_name(group.device)}, {today()}",
        "ranks": group.size,
        "ranks_per_domain": min(domain or int(os.environ.get("LOCAL_WORLD_SIZE", group.size)), group.size),
        "nic": nic,
        "library": group.backend,
        "dtype": "bf16" if group.device.type == "cuda" else "fp32",
    }


class _Run:
    """A run under way; every decision is one that all ranks take alike."""

    def __init__(self, group: Group, plan: list[Case], seconds: float, progress: Report | None) -> None:
        self.group, self.plan, self.seconds, self.progress = group, plan, seconds, progress
        self.begin, self.each = time.monotonic(), min(LONGEST, SHARE * seconds / len(plan))
        self.measured = Measured(f"{group.size} x {device_name(group.device)}")
        self.common: dict[str, Any] = {}

    def go(self) -> None:
        """All cases in turn until the end, the time or the user ends it; what there is is written."""
        saved = time.monotonic()
        try:
            with torch.no_grad(), settled(self.group.device):
                for number, case in enumerate(self.plan):
                    self.measured.left = len(self.plan) - number
                    if self.group.agree(time.monotonic() - self.begin) > self.seconds:
                        self.measured.ended = "out of time"
                        break
                    self._one(number, case)
                    if time.monotonic() - saved > SAVED:
                        self.measured.save()
                        saved = time.monotonic()
                else:
                    self.measured.left = 0
        except KeyboardInterrupt:
            self.measured.ended = "interrupted"
        except RuntimeError as error:
            # Another rank is gone: nothing can be agreed on any more, and whoever still waits must be ended.
            self.measured.save()
            kept = f"; {len(self.measured.rows)} rows were kept" if self.measured.rows else ""
            raise UserError(f"the ranks lost each other: {reason_of(error)}{kept}") from error
        self.measured.save()

    def _one(self, number: int, case: Case) -> None:
        call, reason = None, ""
        columns: dict[str, Any] = {}
        try:
            call, columns = prepare_exchange(case, self.group)
        except (MemoryError, RuntimeError) as error:
            reason = reason_of(error)
        # A rank that could not prepare must not leave the others waiting.
        if self.group.agree(0.0 if call is not None else 1.0) > 0 or call is None:
            reason = reason or "another rank could not prepare it"
            timed: tuple[float, float, int] | None = None
        else:
            timed, reason = self._timed(call)
        if timed is not None:
            row = {"kind": case.kind, **self.common, **case.op, **columns}
            self.measured.rows.append(row | dict(zip(("time", "spread", "repeats"), timed, strict=True)))
        else:
            self.measured.skipped.append(Skipped(case.label, reason))
        if self.progress is not None and self.group.rank == 0:
            seconds, took = time.monotonic() - self.begin, timed[0] if timed else None
            self.progress(Progress(number + 1, len(self.plan), seconds, case.label, took, reason))

    def _timed(self, call: Callable[[], Any]) -> tuple[tuple[float, float, int] | None, str]:
        """The slowest rank's median and spread, and how many samples; or None and why this library has no such call."""
        try:
            call()
            synchronise(self.group.device)
        except (RuntimeError, NotImplementedError) as error:
            if not _refused(error):
                raise
            return None, reason_of(error)
        guess = self.group.agree(_seconds(call, 1, self.group.device))
        count = int(min(max(SHORT / guess, 1), MOST_CALLS))
        samples = int(min(max(self.each / (guess * count), SAMPLES[0]), SAMPLES[1]))
        taken = []
        for _ in range(samples):
            torch.distributed.barrier()
            taken.append(_seconds(call, count, self.group.device))
        low, middle, high = np.percentile(taken, (10, 50, 90)).tolist()
        slowest = self.group.agree(middle)
        return (slowest, self.group.agree((high - low) / 2 / middle), samples), ""


def _refused(error: BaseException) -> bool:
    """Whether the library has no such call: then every rank was refused alike, and the run can go on."""
    words = str(error).lower()
    return any(word in words for word in ("not support", "unsupported", "not implement", "does not have"))


def _seconds(call: Callable[[], Any], count: int, device: torch.device) -> float:
    """Seconds a call, of so many back to back, as the libraries' own tests time them."""
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(count):
        call()
    synchronise(device)
    return max((time.perf_counter() - begin) / count, 1e-9)


def _kind(collective: str) -> str:
    return "all_to_all" if collective.startswith("all-to-all") else "collective"
