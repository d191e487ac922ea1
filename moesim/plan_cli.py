"""The verb `plan`: a plan file, or a question in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim import errors
from moesim.terminal import Progress, console, print_json, say

if TYPE_CHECKING:
    from moesim.planner.plan import Plan
    from moesim.specs.plan import PlanSpec

OF_THE_QUESTION = "The question"
LIMITS = "Limits"
HOW = "How to search"


def plan(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN]", help="a plan file or a scenario (YAML); the options add to it or replace it"),
    ] = None,
    model: Annotated[str, typer.Option(help="models, with commas", rich_help_panel=OF_THE_QUESTION)] = "",
    gpu: Annotated[str, typer.Option(help="GPUs, with commas", rich_help_panel=OF_THE_QUESTION)] = "",
    gpus: Annotated[
        str, typer.Option(help="how many, with commas, or auto [default: auto]", rich_help_panel=OF_THE_QUESTION)
    ] = "",
    fabric: Annotated[str, typer.Option(help="fabrics, with commas", rich_help_panel=OF_THE_QUESTION)] = "",
    tokens: Annotated[str, typer.Option(help="length of the run: 1T", rich_help_panel=OF_THE_QUESTION)] = "",
    sequence_length: Annotated[int | None, typer.Option(help="tokens", rich_help_panel=OF_THE_QUESTION)] = None,
    global_batch: Annotated[
        int | None,
        typer.Option(help="sequences a step [default: usual for the tokens]", rich_help_panel=OF_THE_QUESTION),
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(metavar="GPU=DOLLARS", help="an hour of a GPU", rich_help_panel=OF_THE_QUESTION)
    ] = None,
    objective: Annotated[
        str, typer.Option(help="cost, time, tokens-per-dollar or fewest-gpus", rich_help_panel=OF_THE_QUESTION)
    ] = "",
    days: Annotated[float | None, typer.Option(help="time to train", rich_help_panel=LIMITS)] = None,
    dollars: Annotated[str, typer.Option(help="cost of the run: 2M$", rich_help_panel=LIMITS)] = "",
    drop: Annotated[str, typer.Option(help="share of copies that may be dropped: 1%", rich_help_panel=LIMITS)] = "",
    megawatts: Annotated[float | None, typer.Option(help="of the GPUs at their rating", rich_help_panel=LIMITS)] = None,
    max_gpus: Annotated[int | None, typer.Option(help="most GPUs", rich_help_panel=LIMITS)] = None,
    memory_headroom: Annotated[
        str, typer.Option(help="share of memory that stays free [default: 10%]", rich_help_panel=LIMITS)
    ] = "",
    simulate: Annotated[int | None, typer.Option(help="best layouts to simulate", rich_help_panel=HOW)] = None,
    candidates: Annotated[int | None, typer.Option(help="budget of the screening", rich_help_panel=HOW)] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes [default: one a core]", rich_help_panel=HOW)
    ] = None,
    search: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUES", help="values to try, with commas", rich_help_panel=HOW)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="what stays, as in a scenario", rich_help_panel=HOW),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for plan.html, plan.json, candidates, winner.yaml")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Which GPUs and which layout train a model within the limits, for least? And why the rest does not."""
    from moesim.planner.asking import Line, spec_of
    from moesim.planner.run import run
    from moesim.results.store import check_folder

    line = Line(
        models=model,
        gpu=gpu,
        gpus=gpus,
        fabric=fabric,
        workload={"total_tokens": tokens or None, "sequence_length": sequence_length, "global_batch": global_batch},
        limits={
            "days": days,
            "dollars": dollars or None,
            "dropped_fraction": drop or None,
            "power": None if megawatts is None else megawatts * 1e6,
            "gpus": max_gpus,
            "memory_headroom": memory_headroom or None,
        },
        prices=tuple(price or ()),
        how={"objective": objective or None, "simulate": simulate, "candidates": candidates},
        search=tuple(search or ()),
        settings=tuple(settings or ()),
    )
    if file is None and not model:
        raise errors.UserError(
            "say what to plan: a plan file, a scenario, or --model NAME --gpu NAME,... --tokens 1T --days 30"
        )
    spec, folder = spec_of(file, line)
    if out is not None:
        check_folder(out)
    with Progress() as progress:
        found = run(spec, folder, progress, workers)
    _tell(found, spec, as_json, out)


def _tell(found: Plan, spec: PlanSpec, as_json: bool, out: Path | None) -> None:
    """The answer; raises `InfeasibleError` where nothing keeps the limits."""
    if as_json:
        print_json(found.as_dict())
    else:
        from moesim.planner.table import pieces

        screen = console()
        for piece in pieces(found):
            screen.print(piece)
        for note in dict.fromkeys(note for model in found.models for note in model.notes):
            say(f"note: {note}")
    if out is not None:
        written = found.save(out)
        say(f"wrote {', '.join(path.name for path in written)} in {out}/")
    sys.stdout.flush()
    if not found.feasible:
        raise errors.InfeasibleError(infeasible(found))


def infeasible(found: Plan) -> str:
    """The binding limit, the closest candidate and what would relax it, in one line a model."""
    told = []
    for model in found.models:
        relaxed = [sentence for sentence in model.words if "would relax" in sentence] or list(model.words[-1:])
        closest = model.words[1:2] if model.closest is not None else ()
        told.append(f"{model.model}: {' '.join(dict.fromkeys([model.words[0], *closest, *relaxed]))}")
    return "\n".join(told)


__all__: list[Any] = ["plan"]
