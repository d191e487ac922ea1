"""The command line: thin verbs over the package; no maths here. Exit codes are those of `moesim.errors`."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import moesim
from moesim import (
    compare_cli,
    dashboard_cli,
    errors,
    evidence_cli,
    place_cli,
    plan_cli,
    rebalance_cli,
    sensitivity_cli,
    sweep_cli,
    trace_cli,
)
from moesim.terminal import Progress, console, print_json, say

if TYPE_CHECKING:
    from moesim.results.result import Result
    from moesim.scenario.loading import AnyScenario
    from moesim.scenario.scenario import Scenario
    from moesim.serving.result import ServingResult

app = typer.Typer(
    name="moesim",
    help="Routing simulator and capacity planner for Mixture-of-Experts models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What typer raises for a wrong verb or option, whichever command-line library it carries.
_INTERRUPTED = 130
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
ScenarioFile = Annotated[Path, typer.Argument(help="a scenario file, or a shipped one's name", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key, e.g. cluster.gpus=512")
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
Anyway = Annotated[bool, typer.Option("--even-if-infeasible", help="answer although the model does not fit in memory")]


app.add_typer(trace_cli.app)
app.add_typer(evidence_cli.app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show a traceback on errors")] = False,
) -> None:
    """Which cluster, which parallelism, which dispatcher? Ask before you own a GPU."""
    if version:
        typer.echo(moesim.__version__)
        raise typer.Exit
    context.obj = {"debug": debug}


@app.command()
def simulate(
    scenario: ScenarioFile,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="folder for the results [default: out/NAME]")] = None,
    as_json: AsJson = False,
    anyway: Anyway = False,
) -> None:
    """Simulate a training step, or requests that are served, event by event; write tables and a report."""
    loaded = _load(scenario, settings)
    folder = out or Path("out") / loaded.name
    from moesim.results.store import check_folder

    check_folder(folder)
    with Progress() as progress:
        result = moesim.simulate(loaded, progress, even_if_infeasible=anyway)
        progress("writing results", 0.0)
        written = moesim.save(result, folder)
    _show_result(result, as_json)
    say(f"wrote {', '.join(path.name for path in written)} in {folder}/")


@app.command()
def estimate(
    scenario: ScenarioFile, settings: Settings = None, as_json: AsJson = False, anyway: Anyway = False
) -> None:
    """The closed form: the same columns in milliseconds."""
    _show_result(moesim.estimate(_load(scenario, settings), even_if_infeasible=anyway), as_json)


app.command()(compare_cli.compare)


@app.command()
def show(
    scenario: ScenarioFile,
    settings: Settings = None,
    by_groups: Annotated[bool, typer.Option("--groups", help="which ranks form which group, on which nodes")] = False,
    as_json: AsJson = False,
) -> None:
    """The scenario with every default filled in and the source of each catalog number."""
    if by_groups:
        _show_groups(_training(scenario, settings), as_json)
        return
    loaded = _load(scenario, settings)
    if as_json:
        print_json(loaded.document())
        return
    from moesim.scenario.loading import to_yaml

    sys.stdout.write(to_yaml(loaded.document()))


@app.command()
def check(scenario: ScenarioFile, settings: Settings = None, as_json: AsJson = False) -> None:
    """All problems of a scenario, or whether it fits in memory; exit code 2 where there is a problem, 3 where it does
    not fit, 0 where it fits or is tight."""
    from moesim.results.memory_verdict import judge, refused
    from moesim.scenario.serving import ServingScenario
    from moesim.serving.verdict import judge_serving

    said: dict[str, Any] = {"scenario": str(scenario), "problems": [], "infeasible": None}
    try:
        loaded = _load(scenario, settings)
        if isinstance(loaded, ServingScenario):
            said["memory"], said["infeasible"] = judge_serving(loaded)
        else:
            found = judge(loaded, moesim.estimate(loaded, even_if_infeasible=True).memory)
            said |= {"infeasible": found.refusal(loaded.name), "memory": found.as_dict()}
    except (errors.UserError, errors.InfeasibleError) as error:
        if not as_json:
            raise
        said |= refused(str(scenario), error)
    if as_json:
        print_json(said)
        raise typer.Exit(2 if said["problems"] else 3 if said["infeasible"] else 0)
    if said["infeasible"]:
        raise errors.InfeasibleError(said["infeasible"])
    typer.echo(f"{scenario}: no problems; {said['memory']['sentence']}")


@app.command()
def catalog(
    kind: Annotated[
        str | None, typer.Argument(help="models, gpus, fabrics, profiles, routers, dispatchers, ...")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="one entry")] = None,
    as_json: AsJson = False,
) -> None:
    """List and show models, GPUs, fabrics, load profiles, routers, dispatchers and calibrations, with sources."""
    from moesim import listing
    from moesim.scenario.loading import to_yaml

    if kind is None:
        listed: Any = listing.overview()
    else:
        listed = listing.entries(kind) if name is None else listing.entry(kind, name)
    if as_json:
        print_json(listed)
    elif name is not None:
        sys.stdout.write(to_yaml(listed))
    else:
        console().print(listing.table(listed, kind))


app.command()(evidence_cli.calibrate)
app.command()(evidence_cli.validate)
app.command()(plan_cli.plan)
app.command()(sweep_cli.sweep)
app.command()(sensitivity_cli.sensitivity)
app.command()(place_cli.place)
app.command()(rebalance_cli.rebalance)
app.command()(dashboard_cli.dashboard)


def _show_groups(scenario: Scenario, as_json: bool) -> None:
    from moesim.results.groups_table import groups_table, meanings
    from moesim.step import groups

    kinds, folding = groups.described(scenario), groups.folding(scenario)
    if as_json:
        print_json({"groups": [kind.as_dict() for kind in kinds], "folding": folding})
        return
    console().print(groups_table(kinds, scenario.name))
    for line in (*meanings(kinds), folding):
        console().print(line)


def _load(path: Path, settings: list[str] | None) -> AnyScenario:
    return moesim.load(path, settings or ())


def _training(path: Path, settings: list[str] | None) -> Scenario:
    """The scenario of a verb that knows training alone."""
    from moesim.scenario.loading import training

    return training(_load(path, settings))


def _show_result(result: Result | ServingResult, as_json: bool) -> None:
    if as_json:
        print_json(result.as_dict())
        return
    from moesim.serving.table import result_tables

    out = console()
    if result.question:
        out.print(errors.shorten(result.question, 500), style="bold")
    for shown in result_tables(result):
        out.print(shown)
    for note in result.notes:
        say(f"note: {note}")


def main() -> NoReturn:
    """Runs the command; every mistake becomes one clear message and its exit code."""
    debug = "--debug" in sys.argv[1:]
    try:
        code = app(standalone_mode=False)
    except errors.MoesimError as error:
        code = _fail(error, str(error), error.exit_code, debug)
    except _USAGE_ERROR as error:
        error.show()
        code = errors.UserError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except ModuleNotFoundError as error:
        code = _fail(error, *_missing(error), debug)
    except OSError as error:
        code = _fail(error, f"cannot write the answer: {error.strerror or error}", errors.UserError.exit_code, debug)
    except MemoryError as error:
        code = _fail(
            error,
            "this needs more memory than this machine has: ask for less (tokens, steps, candidates, rows)",
            errors.UserError.exit_code,
            debug,
        )
    except Exception as error:  # noqa: BLE001 - the last resort: our bug, reported as such
        what = f"{type(error).__name__}: {error}"
        code = _fail(error, f"internal error, please report it (run again with --debug): {what}", 70, debug)
    code = code if isinstance(code, int) else 0
    if code == _INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second press must not cut the clearing up short
        say("moesim: interrupted: nothing was left half-written")
    sys.exit(code)


def _missing(error: ModuleNotFoundError) -> tuple[str, int]:
    """What to say of a package that is not there, and the exit code; a part of our own is our bug."""
    name = str(error.name).split(".")[0]
    if name == "moesim":
        return f"internal error, please report it (run again with --debug): {error}", errors.InternalError.exit_code
    told = f"the package {name}, which moesim needs, is not installed: pip install moesim"
    return told, errors.MissingPackageError.exit_code


def _fail(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, errors.InternalError):
        message = f"internal error, please report it: {message}"
    say(f"moesim: {message}")
    return code
