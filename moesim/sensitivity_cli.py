"""The verb of sensitivities: which input moves the answer most."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim import errors
from moesim.terminal import Progress, console, print_json, say


def sensitivity(
    scenario: Annotated[Path, typer.Argument(help="a scenario file, or a shipped one's name", show_default=False)],
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=LOW..HIGH",
            help="a field and its range: 200..800 Gb/s, +-20%, or values 1,2,4; the field alone: its usual range"
            " [default: all uncertain and decided inputs that apply]",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="a column of the summary [default: step_time; of serving output_tokens_per_second_per_gpu in a closed"
            " loop, else time_per_output_token]",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="tornado (every input alone) or sobol (shares of the variance)")
    ] = "tornado",
    samples: Annotated[int, typer.Option(help="of sobol, a power of two; each costs (inputs + 2) estimates")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="of sobol's draws")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key of the scenario")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="folder for the table and the pictures")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Which input moves the answer most, of a training step or of serving? Every input to the ends of its range, alone,
    or all at once (sobol)."""
    import moesim
    from moesim.results.store import check_folder
    from moesim.sweeps.sensitivity import answer, ask
    from moesim.sweeps.sensitivity_table import table

    if out is not None:
        check_folder(out)
    asked = ask(moesim.load(scenario, settings or ()), _ranges(over), metric, method, samples)  # type: ignore[arg-type]
    say(asked.cost())
    with Progress() as bar:
        found = answer(asked, seed, lambda what, share, left: bar(what, share))
    if as_json:
        print_json(found.as_dict())
    else:
        console().print(table(found))
    for note in found.notes:
        say(f"note: {note}")
    if out is not None:
        written = found.save(out)
        say(f"wrote {', '.join(path.name for path in written)} in {out}/")


def _ranges(over: list[str] | None) -> dict[str, Any] | None:
    """The fields with their ranges; None where only the field is named."""
    if not over:
        return None
    found: dict[str, Any] = {}
    for text in over:
        field, equals, wanted = text.partition("=")
        if not field.strip() or field.strip() in found:
            raise errors.UserError(f"--over {errors.shorten(text)!r}: name every field once, as FIELD=LOW..HIGH")
        found[field.strip()] = wanted if equals else None
    return found
