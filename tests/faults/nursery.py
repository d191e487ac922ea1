"""A process that has imported everything and forks a child for every command: a kill then meets work, not imports.

Run as a program it reads one command a line, {"words", "said", "watch"}, and answers with the child's end, as
`subprocess` counts it. What is not watched it runs itself, so that its children find everything compiled.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from .subjects import ROOT, environment
from .watched import watch

NEEDED = (
    "moesim.cli", "moesim.roads", "moesim.serving.store", "moesim.sweeps.run", "moesim.planner.run",
    "moesim.calibration.fit", "moesim.traces.fit", "moesim.placement.judge", "moesim.results.trace_table",
)  # fmt: skip
TORCH = ("moesim.traces.torch_train", "moesim.measurement.torch_gpu")


class Nursery:
    """Runs commands one after another, each in a child of a process that stays."""

    def __init__(self, modules: tuple[str, ...] = NEEDED) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.nursery", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(first=str(ROOT / "tests")),
        )

    def run(self, words: list[str], said: Path, **watched: Any) -> int:
        """The command's return code, minus the signal that killed it; `said` is what it wrote to standard error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"words": words, "said": str(said), "watch": watched}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def warm(self, words: list[str]) -> None:
        """Runs the command in the process that stays."""
        code = self.run(words, Path(os.devnull))
        assert code == 0, f"{words} ended with {code}"

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def _run(words: list[str]) -> int:
    """The command, as the interpreter would run it; its exit code."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__")
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _in_child(asked: dict[str, Any]) -> int:
    """The command in a child that is watched; how it ended."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 70
    try:
        os.dup2(os.open(asked["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        watch(**asked["watch"])
        code = _run(asked["words"])
    except BaseException:  # noqa: BLE001 - told, and the child ends all the same
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _quietly(words: list[str]) -> int:
    """The command in this process; what it says is told where it failed."""
    said = io.StringIO()
    with redirect_stderr(said):
        code = _run(words)
    if code:
        sys.stderr.write(said.getvalue())
    return code


def serve() -> None:
    """Answers commands until there are no more."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(f"{_in_child(asked) if asked['watch'] else _quietly(asked['words'])}\n")


if __name__ == "__main__":
    serve()
