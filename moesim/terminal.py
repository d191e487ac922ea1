"""What the command line says and how: answers on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
import sys
from typing import Any


def console() -> Any:
    """Standard output for tables and text; imported late, because start-up time matters."""
    from rich.console import Console

    class Plain(Console):
        """Takes no markup from the user's text, and leaves quietly when nobody reads on."""

        def on_broken_pipe(self) -> None:
            """As any other command: no message."""
            raise BrokenPipeError

    return Plain(markup=False, emoji=False, highlight=False)


def print_json(data: Any) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def say(text: str) -> None:
    """A note for the reader: standard error, so that standard output stays the answer alone."""
    print(text, file=sys.stderr)


class Progress:
    """A progress bar on standard error; called with what is being done and the share of it that is over."""

    def __enter__(self) -> Progress:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.percentage:>3.0f} %"),
            progress.TimeRemainingColumn(),
        )
        self._bars = progress.Progress(*columns, console=Console(stderr=True), transient=True)
        self._tasks: dict[str, Any] = {}
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, what: str, share: float) -> None:
        """Moves the bar of `what` to `share`."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=1.0)
        self._bars.update(self._tasks[what], completed=share)
