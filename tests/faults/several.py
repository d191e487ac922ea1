"""Several commands in one process, under one fault: each one's exit code, and what it wrote.

Run as a program: arguments of `moesim` as JSON, one list a command. An exception that no verb catches ends it.
"""

from __future__ import annotations

import ctypes
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

from .subjects import ROOT, environment

# Capabilities of root that let it write where permissions forbid it (linux/capability.h), and the call to lose one.
_OVERRIDE, _READ_SEARCH, _DROP = 1, 2, 24


class Told(NamedTuple):
    """How a command ended."""

    code: int
    said: str


def several(
    commands: Sequence[Sequence[object]], *, before: Callable[[], None] | None = None, **changes: str
) -> list[Told]:
    """The commands one after another in one process that begins with `before`; `changes` of its environment.

    None of them may show a traceback.
    """
    asked = json.dumps([[str(word) for word in words] for words in commands])
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.several", asked],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=environment(**changes),
        preexec_fn=before,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told = [Told(*line) for line in json.loads(ended.stdout)]
    for words, one in zip(commands, told, strict=True):
        assert "Traceback" not in one.said, (words, one.said)
        assert "internal error" not in one.said, (words, one.said)
    return told


def powerless() -> None:
    """For a child's start: root obeys permissions like anyone else."""
    for capability in (_OVERRIDE, _READ_SEARCH):
        ctypes.CDLL(None).prctl(_DROP, capability, 0, 0, 0)


def _run(words: list[str]) -> tuple[Any, str]:
    from moesim.cli import main

    sys.argv = ["moesim", *words]
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            main()
    except SystemExit as ended:
        return ended.code, said.getvalue()


if __name__ == "__main__":
    sys.stdout.write(json.dumps([_run(words) for words in json.loads(sys.argv[1])]))
