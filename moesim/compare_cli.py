"""The verb `compare`: scenarios or results side by side, or one scenario under every dispatcher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.errors import UserError
from moesim.terminal import Progress, console, print_json, say

if TYPE_CHECKING:
    from moesim.results.compare import Comparison
    from moesim.results.result import Result
    from moesim.scenario.loading import AnyScenario
    from moesim.scenario.scenario import Scenario
    from moesim.scenario.serving import ServingScenario
    from moesim.serving.result import ServingResult


def compare(
    scenarios: Annotated[
        list[Path],
        typer.Argument(help="two or more scenario files or result folders, all of training or all of serving"),
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key, e.g. cluster.gpus=512")
    ] = None,
    simulated: Annotated[bool, typer.Option("--simulate", help="simulate each instead of estimating it")] = False,
    by_dispatcher: Annotated[
        bool,
        typer.Option(
            "--dispatchers", help="one scenario under every dispatcher, of serving in each phase, by the closed form"
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for comparison.html and comparison.json", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
    anyway: Annotated[
        bool, typer.Option("--even-if-infeasible", help="answer although the model does not fit in memory")
    ] = False,
) -> None:
    """Scenarios side by side: inputs that differ, every metric, and what makes one training step, or one iteration of
    serving, longer than the other."""
    import moesim
    from moesim.results.store import check_folder
    from moesim.serving.compare import require_one_kind

    if by_dispatcher:
        if len(scenarios) != 1 or simulated or out is not None:
            raise UserError("compare --dispatchers takes one scenario, estimates it, and writes no files")
        _dispatchers(moesim.load(scenarios[0], settings or ()), as_json)
        return
    if len(scenarios) < 2:
        raise UserError("compare needs at least two scenarios")
    if out is not None:
        check_folder(out)
    asked = [_read(path, settings) for path in scenarios]
    require_one_kind(asked)
    comparison = moesim.compare([_answer(one, simulated, anyway) for one in asked])
    if out is None:
        _show(comparison, as_json)
        return
    from moesim.results.compare_report import save_comparison

    written = save_comparison(comparison, out)
    _show(comparison, as_json)
    say(f"wrote {', '.join(path.name for path in written)} in {out}/")


def _read(path: Path, settings: list[str] | None) -> AnyScenario | Result | ServingResult:
    """The result in a folder, or a scenario."""
    import moesim

    if path.is_dir() and (path / "result.json").exists():
        return moesim.load_result(path)
    return moesim.load(path, settings or ())


def _answer(asked: AnyScenario | Result | ServingResult, simulated: bool, anyway: bool) -> Result | ServingResult:
    """A result as it is, or that of a scenario."""
    import moesim
    from moesim.results.result import Result
    from moesim.serving.result import ServingResult

    if isinstance(asked, Result | ServingResult):
        return asked
    if not simulated:
        return moesim.estimate(asked, even_if_infeasible=anyway)
    with Progress() as progress:
        return moesim.simulate(asked, progress, even_if_infeasible=anyway)


def _show(comparison: Comparison, as_json: bool) -> None:
    if as_json:
        print_json(comparison.as_dict())
        return
    from moesim.results.compare_table import print_comparison

    print_comparison(comparison, console())


def _dispatchers(scenario: AnyScenario, as_json: bool) -> None:
    from moesim.scenario.serving import ServingScenario

    if isinstance(scenario, ServingScenario):
        _serving_dispatchers(scenario, as_json)
    else:
        _training_dispatchers(scenario, as_json)


def _serving_dispatchers(scenario: ServingScenario, as_json: bool) -> None:
    import moesim

    found = moesim.compare_dispatchers(scenario)
    if as_json:
        print_json(found.as_dict())
        return
    from moesim.serving.dispatcher_table import dispatchers_table, told

    console().print(dispatchers_table(found))
    for line in told(found):
        console().print(line)


def _training_dispatchers(scenario: Scenario, as_json: bool) -> None:
    import moesim

    rows, (chosen, reason) = moesim.compare_dispatchers(scenario), moesim.choose_dispatcher(scenario)
    if as_json:
        print_json({"chosen": chosen, "reason": reason, "dispatchers": [row.as_dict() for row in rows]})
        return
    from moesim.results.dispatcher_table import dispatcher_table

    console().print(dispatcher_table(rows, chosen))
    console().print(f"auto: {reason}")
