"""`moesim measure gpu`: times kernels on the GPU at hand (or this processor) into a measurement file.

It needs torch and numpy alone: `python -m moesim.measurement gpu FILE.csv` runs where the rest of the package's
dependencies are missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from moesim.errors import UserError
from moesim.measurement.outcome import Measured, Progress, Report, Skipped, checked, today
from moesim.measurement.plan import PRESETS, Case, Words, cases
from moesim.measurement.torch_attention import prepare_attention, sequences_of
from moesim.measurement.torch_device import (
    ClockWatch,
    choose_device,
    device_name,
    gpu_name,
    limits,
    reason_of,
    settled,
    software,
    synchronise,
)
from moesim.measurement.torch_door import torch
from moesim.measurement.torch_inputs import Inputs, Prepared
from moesim.measurement.torch_matrices import prepare_experts, prepare_gemm
from moesim.measurement.torch_passes import prepare_launch, prepare_pass
from moesim.measurement.torch_products import CannotTimeError
from moesim.measurement.torch_timer import Timed, Timer
from moesim.randomness import Streams

__all__ = ["Measured", "Progress", "Skipped", "measure_gpu"]

LONGEST = 0.15
"""Seconds for which one case is timed, where the time allows."""
SHARE = 0.4
"""Share of a run's time that goes into timing; the rest draws inputs and warms up."""
SAVED = 10.0
"""Seconds after which what was measured is written again."""
WARM = 0.5
"""Seconds of work before the first case, so that the clocks are up."""

_PREPARE: dict[str, Callable[[Words, Inputs], Prepared]] = {
    "gemm": prepare_gemm,
    "expert_gemm": prepare_experts,
    "attention": prepare_attention,
    "memory_bound": prepare_pass,
    "launch": prepare_launch,
}


def measure_gpu(
    output: str | os.PathLike[str] | None = None,
    preset: str | Sequence[Case] = "auto",
    seconds: float | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Report | None = None,
) -> Measured:
    """Time kernels on `device` (default: the GPU, else this processor) and write them to `output` (.csv, .parquet).

    `preset`: small, gpu, auto (gpu on a GPU, else small), or own cases in their order (`plan.cases` filters by kind).
    The run ends after `seconds` (default: the preset's) or at Ctrl-C, and keeps what it has. Inputs depend on `seed`
    alone. Raises UserError for a bad argument and where nothing could be timed.
    """
    chosen = choose_device(device)
    automatic = "gpu" if chosen.type == "cuda" else "small"
    name = automatic if isinstance(preset, str) and preset == "auto" else preset
    plan = cases(name) if isinstance(name, str) else list(name)
    if not plan:
        raise UserError("there is nothing to time: no case was named")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UserError(f"seconds is {seconds}; it must be a positive number")
    budget = seconds or PRESETS[name if isinstance(name, str) else automatic]
    run = _Run(plan, chosen, budget, seed, progress)
    run.measured.path = None if output is None else checked(output)
    return run.go(f"preset {name}" if isinstance(name, str) else "own cases")


class _Run:
    """A run under way."""

    def __init__(
        self, plan: list[Case], device: torch.device, seconds: float, seed: int, progress: Report | None
    ) -> None:
        self.plan, self.device, self.seconds, self.progress = plan, device, seconds, progress
        self.streams, self.seed, self.begin = Streams(seed), seed, time.monotonic()
        self.timer = Timer(device, min(LONGEST, SHARE * seconds / len(plan)))
        self.measured = Measured(device_name(device))
        self.common: dict[str, Any] = {}

    def go(self, what: str) -> Measured:
        """All cases in turn until the end, the time or the user ends it."""
        told = f"measured by moesim measure gpu, {what}, seed {self.seed}, on {device_name(self.device)}, {today()}"
        self.common = {"gpu": gpu_name(self.device), "software": software(self.device), "source": told}
        saved = time.monotonic()
        try:
            with torch.no_grad(), settled(self.device), ClockWatch(self.device) as watch:
                self._warm_up()
                for number, case in enumerate(self.plan):
                    self.measured.left = len(self.plan) - number
                    if time.monotonic() - self.begin > self.seconds:
                        self.measured.ended = "out of time"
                        break
                    self._one(number, case, watch)
                    if time.monotonic() - saved > SAVED:
                        self.measured.save()
                        saved = time.monotonic()
                else:
                    self.measured.left = 0
        except KeyboardInterrupt:
            self.measured.ended = "interrupted"
        except _DeviceFailed as error:
            self.measured.ended = f"device failed: {error}"
        self.measured.save()
        self.measured.check()
        return self.measured

    def _one(self, number: int, case: Case, watch: ClockWatch) -> None:
        timed, reason = None, ""
        try:
            timed = self._timed(case, watch)
        except CannotTimeError as error:
            reason = str(error)
        except (MemoryError, RuntimeError, TypeError, NotImplementedError) as error:
            # What a release of torch refuses, and what did not fit; the rest goes on without it.
            reason = reason_of(error)
            self._recover(reason)
        if reason:
            self.measured.skipped.append(Skipped(case.label, reason))
        if self.progress is not None:
            seconds = time.monotonic() - self.begin
            self.progress(
                Progress(number + 1, len(self.plan), seconds, case.label, timed.time if timed else None, reason)
            )

    def _timed(self, case: Case, watch: ClockWatch) -> Timed:
        if case.kind not in _PREPARE:
            raise CannotTimeError(f"no timing of kind {case.kind!r}; allowed: {', '.join(_PREPARE)}")
        inputs = Inputs(case.label, self.device, self.streams, limits(self.device))
        try:
            prepared = _PREPARE[case.kind](case.op, inputs)
        except KeyError as error:
            raise CannotTimeError(f"the case does not say {error.args[0]!r}") from error
        begin = time.monotonic()
        timed = self.timer.time(prepared.calls, prepared.graph)
        if case.op.get("what") == "graph" and not timed.graph:
            raise CannotTimeError("the device could not replay it from a graph")
        clock, power = watch.since(begin)
        row = {"kind": case.kind, **self.common, **case.op, **prepared.columns}
        row |= {"time": timed.time, "spread": timed.spread, "repeats": timed.repeats, "sets": len(prepared.calls)}
        row |= {"launched": "graph" if timed.graph else "stream", "clock": clock, "power": power}
        if case.kind == "attention":
            row["sequences"] = sequences_of(case.op)
        if prepared.products:
            row["products_time"] = self.timer.time(prepared.products, prepared.graph).time
        self.measured.rows.append(row)
        return timed

    def _recover(self, reason: str) -> None:
        """Give memory back; raises `_DeviceFailed` where the device does nothing any more."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.empty_cache()
            torch.zeros(1, device=self.device).add_(1).cpu()
        except RuntimeError as error:
            raise _DeviceFailed(reason) from error

    def _warm_up(self) -> None:
        if self.device.type != "cuda":
            return
        generator = torch.Generator(self.device).manual_seed(0)
        x = torch.randn(4096, 4096, generator=generator, device=self.device, dtype=torch.bfloat16)
        begin = time.monotonic()
        while time.monotonic() - begin < WARM:
            torch.mm(x, x)
            synchronise(self.device)


class _DeviceFailed(RuntimeError):
    """The device answers no more."""
