"""What a watched process does to the files of one folder, one line an event; it kills itself at the Nth of them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEFORE, DRAFTING, BETWEEN, CLEARING = "before any file", "while writing", "between files", "clearing up"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


@dataclass(frozen=True)
class Event:
    """One thing done: "open" (to write), "os.rename", "os.mkdir" ...; the path is the target's, in the folder."""

    what: str
    path: str

    @property
    def file(self) -> bool:
        """Whether it begins or ends a file."""
        return self.what in ("open", "os.rename") and not self.path.endswith(".lock")


def watch(folder: str, log: str, last: int, delay: float) -> None:
    """From now on notes in `log` what this process is about to do in `folder`; dies `delay` after event number `last`.

    Without a delay the event itself no longer happens.
    """
    notes, seen = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 0

    def die() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def hear(what: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        path = _path(what, arguments, folder)
        if path is None:
            return
        seen += 1
        os.write(notes, f"{what} {path}\n".encode())
        if seen == last and delay:
            threading.Thread(target=die, daemon=True).start()
        elif seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def _path(what: str, arguments: tuple[Any, ...], folder: str) -> str | None:
    """The path in the folder that an audit event is about; None where it changes nothing there."""
    if what not in _EVENTS or (what == "open" and not arguments[2] & _WRITES):
        return None
    named = arguments[1 if what == "os.rename" else 0]
    path = os.fsdecode(named) if isinstance(named, (str, bytes, os.PathLike)) else ""
    if path.startswith(folder):
        return os.path.relpath(path, folder)
    # Names relative to an open folder are those of a draft that is cleared away.
    relative = what in ("os.remove", "os.rmdir") and arguments[-1] != -1
    return path if relative else None


def events(log: Path) -> list[Event]:
    """What the process did, until its end."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [Event(*line.split(" ", 1)) for line in lines]


def phase(done: list[Event]) -> str:
    """Where a process was when it died: what the last of its events began."""
    if not any(event.file for event in done):
        return BEFORE
    last = done[-1]
    if last.what == "os.rename":
        return BETWEEN
    return CLEARING if last.what in ("os.remove", "os.rmdir") else DRAFTING
