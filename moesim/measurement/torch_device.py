"""The device at hand: its choice, its names, its caches and memory, and its clock while it works."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from types import TracebackType

from moesim.errors import UserError
from moesim.measurement.names import catalog_gpu
from moesim.measurement.torch_door import torch

CACHE = 64 << 20
"""Bytes of last-level cache of a device that does not tell its own."""
_SETS = {"cuda": 512, "cpu": 8}
_SHARE = 0.8
_PERIOD_MS = 100


@dataclass(frozen=True)
class Limits:
    """What inputs of a case may take: bytes of `memory`, `most` sets; and the bytes of `cache` they must overflow."""

    memory: int
    cache: int
    most: int


def choose_device(name: str | None) -> torch.device:
    """The device of that name, by default the GPU where there is one; raises UserError for what cannot be timed."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; allowed: cuda, cuda:N, cpu") from error
    if device.type not in _SETS:
        raise UserError(f"cannot time on {name!r}: only cuda and cpu devices are timed")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here; --device cpu times this machine's processor")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {name!r}: this machine has {torch.cuda.device_count()}")
    return device


def device_name(device: torch.device) -> str:
    """The driver's name of a GPU, or "cpu" and its architecture: never one for the other."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else f"cpu ({platform.machine()})"


def gpu_name(device: torch.device) -> str:
    """The catalog's name where it has one, else the device's own."""
    name = device_name(device)
    return catalog_gpu(name) or name


def software(device: torch.device) -> str:
    """Releases of torch and, on a GPU, of CUDA or ROCm and of the driver."""
    if device.type != "cuda":
        return f"torch {torch.__version__}"
    hip = getattr(torch.version, "hip", None)
    below = f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}"
    told = _smi(device, "driver_version")
    return f"torch {torch.__version__}, {below}" + (f", driver {told[0]}" if told else "")


def limits(device: torch.device) -> Limits:
    """What the device has free now."""
    if device.type == "cuda":
        # What torch keeps for later is free for the next case.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + kept
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 30
        cache = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names else 0
    return Limits(int(free * _SHARE), int(cache) if cache > 0 else CACHE, _SETS[device.type])


def synchronise(device: torch.device) -> None:
    """Until the device has done what it was given, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reason_of(error: BaseException) -> str:
    """Why torch could not do something, in one line."""
    text = str(error).strip().split("\n")[0][:200]
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in text:
        return "out of memory"
    return text or type(error).__name__


@contextmanager
def settled(device: torch.device) -> Iterator[None]:
    """Makes a GPU the current one, and a processor take one thread: several wait for each other wherever the machine
    does other work."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with torch.cuda.device(device if device.type == "cuda" else -1):
            yield
    finally:
        torch.set_num_threads(threads)


class ClockWatch:
    """Samples of a GPU's clock and power while a `with` block runs; without a tool that reads them, none."""

    def __init__(self, device: torch.device) -> None:
        self._samples: list[tuple[float, float, float]] = []
        self._query = _command(device, "clocks.sm,power.draw")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ClockWatch:
        if self._query:
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    [*self._query, f"--loop-ms={_PERIOD_MS}"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
            except OSError:
                return self
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._reader.join()

    def since(self, begin: float) -> tuple[float | None, float | None]:
        """Median clock in Hz and power in W since `begin` (of `time.monotonic`), or the last ones before it."""
        samples = list(self._samples)
        found = [sample for sample in samples if sample[0] >= begin] or samples[-1:]
        if not found:
            return None, None
        return median(sample[1] for sample in found) * 1e6, median(sample[2] for sample in found)

    def _read(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                numbers = _numbers(line)
                if len(numbers) == 2:
                    self._samples.append((time.monotonic(), numbers[0], numbers[1]))


def _numbers(line: str) -> list[float]:
    try:
        return [float(word) for word in line.split(",")]
    except ValueError:
        return []


def _command(device: torch.device, fields: str) -> list[str]:
    """The command that reads these fields of this very GPU; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None or device.type != "cuda":
        return []
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = ["-i", f"GPU-{uuid}"] if uuid else []
    return [tool, *which, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]


def _smi(device: torch.device, fields: str) -> list[str]:
    command = _command(device, fields)
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout if command else ""  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [word.strip() for word in told.splitlines()[0].split(",")] if told.strip() else []
