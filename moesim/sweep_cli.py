"""The verb of sweeps: many points of one scenario into one table; what is done is kept, however the run ends."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.terminal import Progress, console, print_json, say

if TYPE_CHECKING:
    from moesim.sweeps.result import Sweep

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a command that Ctrl-C has ended, as shells have it."""


def sweep(
    statement: Annotated[Path, typer.Argument(metavar="SWEEP", help="a sweep file (YAML)", show_default=False)],
    executor: Annotated[str, typer.Option(help="local (worker processes) or dask")] = "local",
    address: Annotated[str | None, typer.Option(help="a Dask scheduler, tcp://HOST:PORT [default: our own]")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="worker processes; 0: this process [default: one a core]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on in a folder that holds answers already")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="folder for the answers [default: out/NAME]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Answer many points of a scenario: a grid, a list, or drawn at random, under several seeds, into one Parquet.

    Answers are kept as they come: --resume goes on after Ctrl-C (exit code 130) or kill -9.

    More points, values or seeds are the same sweep; the folder of another one is refused.
    """
    import moesim
    from moesim.sweeps.store import TABLE

    folder = out or Path("out") / statement.stem
    try:
        with Progress() as bar:
            found = moesim.sweep(
                statement,
                out=folder,
                resume=resume,
                executor=executor,  # type: ignore[arg-type]
                workers=workers,
                address=address,
                progress=lambda what, share, left: bar(what, share),
            )
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second press must not cut the clearing up short
        say(f"moesim: interrupted: what is done is kept in {folder}/; go on with --resume")
        sys.exit(INTERRUPTED)
    _show(found, as_json)
    for note in found.notes:
        say(f"note: {note}")
    say(f"wrote {folder / TABLE}: {found.computed:,} points computed, {found.reused:,} there already")


def _show(found: Sweep, as_json: bool) -> None:
    from moesim.sweeps import display

    if as_json:
        print_json(display.as_dict(found))
        return
    if found.question:
        console().print(found.question, style="bold")
    console().print(display.table(found))
    for line in display.reasons(found):
        console().print(line)
