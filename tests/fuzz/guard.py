"""What every input is held to: five seconds, two gigabytes, no file outside its folder, no error but moesim's own."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from moesim.errors import InternalError, MoesimError

SECONDS = 5.0
"""Of this process's own work on one input; a machine busy with other work is not the input's fault."""
PATIENCE = 60
"""Seconds after which an input hangs although it does not work: it waits for something. They are counted one by one,
for a process that was stopped meanwhile hears of one only."""
MEMORY = 2 << 30

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events whose first argument, or first two, are paths that change.
_CHANGES = {
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.utime": 1,
}
_RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.bind"}
# Compiled code is kept beside its source, whichever input needed it first.
_CACHES = ("__pycache__", "numba")


class Hang(BaseException):
    """An input took longer than it may."""


class Escape(BaseException):
    """An input wrote outside its folder, started a program or spoke to the network."""


@dataclass(frozen=True)
class Failure:
    """What an input brought about that no input may: the error's name and place, and the whole of it."""

    kind: str
    place: str
    text: str

    @property
    def name(self) -> str:
        """The same for the same mistake."""
        return f"{self.kind} at {self.place}"


@dataclass(frozen=True)
class Verdict:
    """One input's outcome: seconds of work, whether moesim accepted it, and the failure, if it was one."""

    seconds: float
    accepted: bool
    failure: Failure | None


class Guard:
    """Runs functions on one input at a time in a folder of its own; the process's folder and limits while it is open.

    Numba compiles on first use, which no input is to blame for: call with `free` for seeds, before the first input.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self.folder = Path()
        self._watching = False
        self._waited = 0

    @contextmanager
    def open(self) -> Iterator[Path]:
        """The folder of the inputs, which is the working folder until it is closed and removed."""
        before, temporary = Path.cwd(), tempfile.tempdir
        limit = resource.getrlimit(resource.RLIMIT_DATA)
        held = {number: signal.getsignal(number) for number in (signal.SIGPROF, signal.SIGALRM)}
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="moesim-fuzz-", dir=memory, ignore_cleanup_errors=True) as name:
            self.folder = Path(name).resolve()
            (self.folder / "tmp").mkdir()
            os.chdir(self.folder)
            tempfile.tempdir = str(self.folder / "tmp")
            signal.signal(signal.SIGPROF, self._worked)
            signal.signal(signal.SIGALRM, self._second)
            _audit(self)
            try:
                yield self.folder
            finally:
                self._watching = False
                os.chdir(before)
                tempfile.tempdir = temporary
                resource.setrlimit(resource.RLIMIT_DATA, limit)
                for number, handler in held.items():
                    signal.signal(number, handler)

    def cap_memory(self) -> None:
        """From now on no more than `memory` beyond what is held can be had; call it once everything is imported."""
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + self.memory, hard))

    def __call__(self, run: Callable[[bytes], None], data: bytes, *, free: bool = False) -> Verdict:
        """The verdict on one input; `free`: of time, for what has to be compiled first."""
        begin, before = time.process_time(), _peak_bytes()
        failure, accepted = None, False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                self._arm(not free)
                try:
                    run(data)
                finally:
                    self._arm(False)
            accepted = True
        except InternalError as error:
            failure = _failure(error)
        except MoesimError as error:
            failure = _of_message(error)
        except (Exception, Hang, Escape) as error:  # noqa: BLE001 - whatever it is, it is the finding
            failure = _failure(error)
        peak = _peak_bytes()
        if peak > max(before, self.memory) and not free and failure is None:
            failure = Failure("Heavy", "the whole process", f"{peak:,} bytes of memory")
        return Verdict(time.process_time() - begin, accepted, failure)

    def _arm(self, on: bool) -> None:
        self._watching, self._waited = on, 0
        signal.setitimer(signal.ITIMER_PROF, self.seconds if on else 0.0)
        signal.setitimer(signal.ITIMER_REAL, 1.0 if on else 0.0, 1.0 if on else 0.0)

    def _worked(self, number: int, frame: FrameType | None) -> None:
        raise Hang("too much work")

    def _second(self, number: int, frame: FrameType | None) -> None:
        self._waited += 1
        if self._waited >= PATIENCE:
            raise Hang("waits")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raises `Escape` for what an input may not do."""
        if not self._watching:
            return
        if event in _RUNS:
            raise Escape(f"{event} {arguments[:2]}")
        paths: tuple[Any, ...] = ()
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            paths = arguments[:1]
        elif event in _CHANGES:
            paths = arguments[: _CHANGES[event]]
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)) and not self._own(os.fsdecode(path)):
                raise Escape(f"{event} {path!r}")

    def _own(self, path: str) -> bool:
        place = Path(os.path.abspath(path))
        return place.is_relative_to(self.folder) or any(name in place.parts for name in _CACHES)


_GUARDS: list[Guard] = []


def _audit(guard: Guard) -> None:
    """Lets a guard hear what the process does; hooks cannot be taken back, so there is one for all guards."""
    if not _GUARDS:
        sys.addaudithook(lambda event, arguments: _GUARDS[-1].audit(event, arguments))
    _GUARDS[:] = [guard]


def _data_bytes() -> int:
    """Bytes of writable memory that the process holds, touched or not."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))


def _peak_bytes() -> int:
    """The most memory that the process ever had at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _failure(error: BaseException) -> Failure:
    """Named after the last line of moesim that the error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/moesim/" in frame.filename or "/app/" in frame.filename]
    last = own[-1] if own else frames[-1]
    place = "/".join(Path(last.filename).parts[-2:]) + f":{last.lineno}"
    text = "".join(traceback.format_exception(error, limit=-25))
    return Failure(type(error).__name__, place, text[-6000:])


def _of_message(error: MoesimError) -> Failure | None:
    """A refusal has to read as one: some text, of a length that a terminal shows."""
    text = str(error)
    if not text.strip():
        return _failure(error)
    if len(text) > 100_000:
        return Failure("Message", type(error).__name__, f"{len(text):,} characters: {text[:2000]}")
    return None
