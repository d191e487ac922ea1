"""The verb `trace`: gather router traces, read other tools' dumps, look at one, fit a routing profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.errors import FileError, UserError
from moesim.files import check_target, write_whole
from moesim.terminal import Progress, console, print_json, say

app = typer.Typer(
    name="trace",
    help="Router traces: train a small model and record it, import other tools' dumps, inspect, fit.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
Recording = Annotated[str, typer.Argument(help="a trace file, its name in the catalog, or another tool's recording")]
Format = Annotated[str | None, typer.Option("--format", help="of another tool's recording [default: found out]")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="what a recording leaves open, e.g. top_k=8, experts=64"),
]


@app.command()
def train(
    preset: Annotated[str, typer.Option(help="tiny (seconds), small (minutes on a CPU), gpu (minutes on a GPU)")] = (
        "small"
    ),
    out: Annotated[Path, typer.Option("--out", help="folder for the traces and the training log")] = Path("traces"),
    text: Annotated[
        Path | None, typer.Option(help="a folder with a subfolder of text for each domain [default: this machine's]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="take up a run that was broken off")] = False,
    as_json: AsJson = False,
) -> None:
    """Train small Mixture-of-Experts language models and record which experts their routers choose."""
    from moesim.traces import training

    training.preset(preset)  # a wrong name is told before a missing package
    from moesim.traces import torch_train

    with Progress() as progress:
        written = torch_train.train_preset(
            preset, out, text, lambda at: progress(at.name, at.step / max(1, at.steps)), resume
        )
    if as_json:
        print_json({"preset": preset, "written": [str(path) for path in written]})
    else:
        say(f"wrote {', '.join(path.name for path in written)} in {out}/")


@app.command(name="import")
def import_(
    path: Annotated[Path, typer.Argument(help="a file or folder that another tool wrote")],
    out: Annotated[Path | None, typer.Option("--out", help="trace file to write [default: NAME.safetensors]")] = None,
    format_: Format = None,
    options: Options = None,
    as_json: AsJson = False,
) -> None:
    """Turn another tool's recording into moesim's trace format."""
    from moesim.traces import store
    from moesim.traces.recordings import read_recording

    target = check_target(out or Path(f"{path.stem}.safetensors"))
    if target.exists() and target.resolve() == path.resolve():
        raise UserError(f"{target} is the recording itself; name another file with --out")
    trace = _token_level(read_recording(path, format_, options), path)
    store.save(trace, target)
    told = {"written": str(target), **_header(trace)}
    if as_json:
        print_json(told)
    else:
        say(", ".join(f"{key} {value}" for key, value in told.items() if value not in ("", None)))


@app.command()
def inspect(
    recording: Recording,
    out: Annotated[Path | None, typer.Option("--out", help="write a report with pictures (HTML)")] = None,
    format_: Format = None,
    options: Options = None,
    as_json: AsJson = False,
) -> None:
    """Load, locality, co-activation, imbalance by batch and expert parallelism, drops: what a trace says."""
    from moesim.traces.counts import RouterCounts
    from moesim.traces.inspect import inspect as look
    from moesim.traces.recordings import read_recording

    if out is not None:
        check_target(out)
    read = read_recording(recording, format_, options)
    found = look(read if isinstance(read, RouterCounts) else _token_level(read, recording))
    if out is not None:
        from moesim.results.trace_report import write_report

        write_report(found, out)
        say(f"wrote {out}")
    if as_json:
        print_json(found.as_dict())
        return
    from moesim.results.trace_table import tables

    for table in tables(found):
        console().print(table)


@app.command()
def fit(
    recording: Recording,
    out: Annotated[Path | None, typer.Option("--out", help="profile to write [default: NAME-like.safetensors]")] = None,
    name: Annotated[str | None, typer.Option(help="the profile's name")] = None,
    seed: Annotated[int, typer.Option(min=0, help="which sequences are held out")] = 0,
    format_: Format = None,
    options: Options = None,
    as_json: AsJson = False,
) -> None:
    """Fit the routing law to a trace, judged on sequences that the fit has not seen.

    Counts without tokens give a simple law, an entry for a catalog's profiles.yaml.
    """
    from moesim.traces.counts import RouterCounts
    from moesim.traces.recordings import read_recording

    title = name or f"{Path(recording).stem}-like"
    if out is not None:
        check_target(out)
    found = read_recording(recording, format_, options)
    if isinstance(found, RouterCounts):
        _fit_counts(found, title, out, as_json)
        return
    from moesim.results.trace_table import goodness_table
    from moesim.traces.fit import fit as fit_law

    trace = _token_level(found, recording)
    target = check_target(out or Path(f"{title}.safetensors"))
    with Progress() as progress:
        profile = fit_law(trace, seed=seed, name=title, progress=progress)
    profile.save(target)
    if as_json:
        rows = [row.model_dump(mode="json") for row in profile.meta.goodness]
        print_json({"written": str(target), "goodness": rows})
        return
    if profile.meta.goodness:
        console().print(goodness_table(profile))
    else:
        say("too few sequences to hold any out: how good the fit is cannot be told")
    say(f"wrote {target}: use it as routing.load={{fitted: {target}}}")


@app.command()
def evolve(
    scenario: Annotated[Path, typer.Argument(help="a scenario whose routing.load has a balancing")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key of the scenario")
    ] = None,
    rows: Annotated[int, typer.Option(min=2, max=1000, help="steps to show")] = 12,
    as_json: AsJson = False,
) -> None:
    """How the load evolves over training steps, by the law of the scenario's routing.load.balancing."""
    from moesim.results.trace_table import evolution_table
    from moesim.scenario.loading import load_training
    from moesim.step.draws import evolution

    told = evolution(load_training(scenario, settings or ()), rows)
    if as_json:
        print_json({"scenario": str(scenario), "evolution": told})
    else:
        console().print(evolution_table(told))


def _fit_counts(counts: Any, name: str, out: Path | None, as_json: bool) -> None:
    from moesim.scenario.loading import to_yaml
    from moesim.traces.counts_fit import fit_counts

    entry = {name: fit_counts(counts)}
    if out is not None:
        write_whole(out, to_yaml(entry))
        say(f"wrote {out}")
    if as_json:
        print_json(entry)
    elif out is None:
        typer.echo(to_yaml(entry), nl=False)


def _token_level(found: Any, path: str | Path) -> Any:
    """A trace; counts alone say nothing of tokens."""
    from moesim.traces.trace import RouterTrace

    if not isinstance(found, RouterTrace):
        raise FileError(
            f"{path} holds counts without tokens; `moesim trace fit` makes a simple law of counts by expert"
        )
    return found


def _header(trace: Any) -> dict[str, Any]:
    """The main facts of a trace."""
    meta = trace.meta
    return {
        "tokens": trace.tokens,
        "sequences": trace.sequences,
        "layers": trace.layers,
        "experts": meta.experts,
        "top_k": meta.top_k,
        "domains": list(meta.domains),
        "note": meta.note,
    }
