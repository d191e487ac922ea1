"""What the command line says and how: answers on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from moesim.errors import visible

# JSON escapes the control characters below a space itself; these steer a terminal as well.
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def console() -> Any:
    """Standard output for tables and text; imported late, because start-up time matters."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        """Takes no markup and nothing that steers the terminal from anyone's text; leaves when nobody reads on."""

        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            """The pieces of `renderable`, their text made visible; rich's own control codes stay."""
            for piece in super().render(renderable, options):
                yield piece if piece.control else Segment(visible(piece.text), piece.style)

        def on_broken_pipe(self) -> None:
            """As any other command: no message."""
            raise BrokenPipeError

    return Plain(markup=False, emoji=False, highlight=False)


def print_json(data: Any) -> None:
    """One JSON object on standard output."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(text.translate(_ESCAPED) + "\n")


def say(text: str) -> None:
    """A note for the reader: standard error, so that standard output stays the answer alone."""
    print(visible(text), file=sys.stderr)


class Progress:
    """A progress bar on standard error; called with what is being done and the share of it that is over."""

    def __enter__(self) -> Progress:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.percentage:>3.0f} %"),
            progress.TimeRemainingColumn(),
        )
        to = Console(stderr=True)
        self._bars = progress.Progress(*columns, console=to, transient=True, disable=not to.is_terminal)
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
