"""Ctrl-C as a user presses it."""

from __future__ import annotations

import signal
import subprocess


def hears() -> None:
    """For a child's start: a shell that runs these tests in the background has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(process: subprocess.Popen[str], presses: int = 12, seconds: float = 5.0) -> tuple[str, str]:
    """Presses until the process ends; what it said. One that falls into a C library's callback is lost on Python."""
    try:
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            try:
                return process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError(f"still running after {presses} times Ctrl-C")
    finally:
        process.kill()
        process.communicate()
