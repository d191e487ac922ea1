"""The verb `rebalance`: how often experts should be placed anew while loads drift, and what that is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moesim.errors import UserError, shorten
from moesim.terminal import Progress, console, print_json, say


def rebalance(
    scenario: Annotated[Path, typer.Argument(help="a training scenario (YAML)", show_default=False)],
    intervals: Annotated[
        str | None, typer.Option(help="steps between placements [default: 1,2,5,10,20,50,100]")
    ] = None,
    drift: Annotated[
        Literal["popularity", "domains"],
        typer.Option(help="what wanders: the experts' popularity, or the shares of a trace's domains"),
    ] = "popularity",
    correlation: Annotated[float, typer.Option(help="steps after which a load has forgotten all but 1/e")] = 100.0,
    spread: Annotated[float, typer.Option(min=0.0, help="of domains: deviation of the log of a share")] = 1.0,
    window: Annotated[int, typer.Option(min=1, help="steps whose loads a placement is made from")] = 10,
    half_life: Annotated[
        float | None, typer.Option(help="an exponential average instead: steps until one counts half")
    ] = None,
    strategy: Annotated[str, typer.Option(help="greedy, groups, global, hierarchical")] = "greedy",
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="load above a fresh plan's busiest rank kept for fewer moves")
    ] = 0.02,
    fresh: Annotated[bool, typer.Option("--fresh", help="put fresh plans in force as they are")] = False,
    overlap: Annotated[bool, typer.Option("--overlap", help="moves hide behind the step, not in its way")] = False,
    overhead: Annotated[float, typer.Option(min=0.0, help="seconds a change takes before anything moves")] = 0.0,
    steps: Annotated[int, typer.Option(min=4, help="steps looked at")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="walks, whose range is told")] = 4,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key of the scenario")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="folder for the numbers and the pictures")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """How often to place experts anew while loads drift: what balance saves a step, less what moving experts costs."""
    from moesim.placement.rebalancing import Memory
    from moesim.rebalancing.loads import Drift, Settings
    from moesim.rebalancing.run import rebalance as study
    from moesim.rebalancing.table import tables
    from moesim.results.store import check_folder
    from moesim.scenario.loading import load_training

    if out is not None:
        check_folder(out)
    loaded = load_training(scenario, settings or ())
    with Progress() as progress:
        found = study(
            loaded,
            _numbers(intervals),
            drift=Drift(drift, correlation, spread),
            memory=Memory(window, half_life),
            strategy=strategy,
            tolerance=None if fresh else tolerance,
            overlap=overlap,
            overhead=overhead,
            settings=Settings(steps=steps, seeds=seeds),
            progress=progress,
        )
    if as_json:
        print_json(found.as_dict())
    else:
        for table in tables(found):
            console().print(table)
        console().print(found.sentence)
    for note in found.notes:
        say(f"note: {note}")
    if out is not None:
        say(f"wrote {', '.join(path.name for path in found.save(out))} in {out}/")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """The whole numbers of "1,2,5"."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < len(part) <= 6 for part in parts):
        raise UserError(f"--intervals {shorten(text)!r} is not of the form 1,2,5")
    return tuple(map(int, parts))
