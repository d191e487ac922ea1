"""The verb `plan`: a plan file, or a question in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim import errors
from moesim.shipped import named
from moesim.terminal import Progress, console, print_json, say

if TYPE_CHECKING:
    from moesim.planner.asking import Line
    from moesim.planner.plan import Plan
    from moesim.planner.serving_plan import ServingPlan

OF_THE_QUESTION = "The question"
LIMITS = "Limits"
SERVING = "Serving: instead of a training run"
HOW = "How to search"


def plan(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN]", help="a plan file or a scenario; the options add to it or replace it"),
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
        str,
        typer.Option(
            help="cost, fewest-gpus; of training time, tokens-per-dollar; of serving throughput, latency",
            rich_help_panel=OF_THE_QUESTION,
        ),
    ] = "",
    days: Annotated[float | None, typer.Option(help="time to train", rich_help_panel=LIMITS)] = None,
    dollars: Annotated[str, typer.Option(help="cost of the run: 2M$", rich_help_panel=LIMITS)] = "",
    drop: Annotated[str, typer.Option(help="share of copies that may be dropped: 1%", rich_help_panel=LIMITS)] = "",
    megawatts: Annotated[float | None, typer.Option(help="of the GPUs at their rating", rich_help_panel=LIMITS)] = None,
    max_gpus: Annotated[int | None, typer.Option(help="most GPUs", rich_help_panel=LIMITS)] = None,
    memory_headroom: Annotated[
        str, typer.Option(help="share of memory that stays free [default: 10%]", rich_help_panel=LIMITS)
    ] = "",
    serve: Annotated[bool, typer.Option("--serve", help="plan a serving deployment", rich_help_panel=SERVING)] = False,
    rate: Annotated[float | None, typer.Option(help="requests a second", rich_help_panel=SERVING)] = None,
    concurrency: Annotated[int | None, typer.Option(help="requests always there", rich_help_panel=SERVING)] = None,
    input_tokens: Annotated[int | None, typer.Option(help="of a prompt", rich_help_panel=SERVING)] = None,
    output_tokens: Annotated[int | None, typer.Option(help="of an answer", rich_help_panel=SERVING)] = None,
    requests: Annotated[int | None, typer.Option(help="to simulate", rich_help_panel=SERVING)] = None,
    ttft: Annotated[
        str, typer.Option(help="most time to the first token, of the median request: 2 s", rich_help_panel=SERVING)
    ] = "",
    tpot: Annotated[
        str, typer.Option(help="most time per output token, of the median request: 50 ms", rich_help_panel=SERVING)
    ] = "",
    ttft_p99: Annotated[str, typer.Option(help="of 99 % of the requests", rich_help_panel=SERVING)] = "",
    tpot_p99: Annotated[str, typer.Option(help="of 99 % of the requests", rich_help_panel=SERVING)] = "",
    goodput: Annotated[
        str, typer.Option(help="least share of requests that keep the latencies: 99%", rich_help_panel=SERVING)
    ] = "",
    dollars_per_hour: Annotated[str, typer.Option(help="of all GPUs", rich_help_panel=SERVING)] = "",
    dollars_per_million: Annotated[str, typer.Option(help="of output tokens", rich_help_panel=SERVING)] = "",
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
    """Which GPUs and which layout train a model (--serve: serve requests) within the limits for least, and why?"""
    from moesim.planner.asking import Line
    from moesim.planner.serving_asking import is_serving, workload
    from moesim.results.store import check_folder

    if file is None and not model:
        raise errors.UserError(
            "say what to plan: a plan file, a scenario, or --model NAME --gpu NAME,... and --tokens 1T --days 30,"
            " or --serve --rate 20 --input-tokens 1024 --output-tokens 256"
        )
    file = named(file) if file else None
    work = workload(
        rate=rate, concurrency=concurrency, tokens=(input_tokens, output_tokens), requests=requests, serve=serve
    )
    for_serving = {
        "time_to_first_token": ttft or None,
        "time_per_output_token": tpot or None,
        "time_to_first_token_p99": ttft_p99 or None,
        "time_per_output_token_p99": tpot_p99 or None,
        "goodput_fraction": goodput or None,
        "dollars_per_hour": dollars_per_hour or None,
        "dollars_per_million_tokens": dollars_per_million or None,
    }
    line = Line(
        models=model,
        gpu=gpu,
        gpus=gpus,
        fabric=fabric,
        workload={
            "total_tokens": tokens or None,
            "sequence_length": sequence_length,
            "global_batch": global_batch,
            **work,
        },
        limits={
            **for_serving,
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
    if out is not None:
        check_folder(out)
    _tell(_answered(file, line, is_serving(file, bool(work)), workers), as_json, out)


def _answered(file: Path | None, line: Line, serves: bool, workers: int | None) -> Plan | ServingPlan:
    """The plan of a line, of training or of serving."""
    from moesim.planner.asking import spec_of
    from moesim.planner.run import run
    from moesim.planner.serving_asking import serving_spec_of
    from moesim.planner.serving_run import run_serving

    with Progress() as progress:
        if serves:
            asked, beside = serving_spec_of(file, line)
            return run_serving(asked, beside, progress, workers)
        spec, folder = spec_of(file, line)
        return run(spec, folder, progress, workers)


def _tell(found: Plan | ServingPlan, as_json: bool, out: Path | None) -> None:
    """The answer; raises `InfeasibleError` where nothing keeps the limits."""
    if as_json:
        print_json(found.as_dict())
    else:
        screen = console()
        for piece in _pieces(found):
            screen.print(piece)
        for note in dict.fromkeys(note for model in found.models for note in model.notes):
            say(f"note: {note}")
    if out is not None:
        written = found.save(out)
        say(f"wrote {', '.join(path.name for path in written)} in {out}/")
    sys.stdout.flush()
    if not found.feasible:
        raise errors.InfeasibleError(infeasible(found))


def _pieces(found: Plan | ServingPlan) -> Iterator[Any]:
    """Everything that is printed."""
    from moesim.planner import serving_table, table
    from moesim.planner.serving_plan import ServingPlan

    return serving_table.pieces(found) if isinstance(found, ServingPlan) else table.pieces(found)


def infeasible(found: Plan | ServingPlan) -> str:
    """The binding limit, the closest candidate and what would relax it, in one line a model."""
    told = []
    for model in found.models:
        relaxed = [sentence for sentence in model.words if "would relax" in sentence] or list(model.words[-1:])
        closest = model.words[1:2] if model.closest is not None else ()
        told.append(f"{model.model}: {' '.join(dict.fromkeys([model.words[0], *closest, *relaxed]))}")
    return "\n".join(told)


__all__: list[Any] = ["plan"]
