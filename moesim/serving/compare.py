"""Results of either kind side by side; of serving: its metrics, and what makes a mean iteration longer.

An iteration is what a token of output takes; where prompts have engines of their own, theirs are compared too. The
steady state of such a deployment has the iterations of output alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moesim.columns import SERVING
from moesim.errors import UserError, shorten
from moesim.results.compare import Comparison, side_by_side
from moesim.results.compare import compare as compare_training
from moesim.results.compare_kinds import Kind, Pair
from moesim.results.compare_operations import OperationChange
from moesim.results.compare_sentence import NAME
from moesim.results.compare_waterfall import Whole, middle_cut
from moesim.results.result import Result
from moesim.scenario.loading import AnyScenario
from moesim.scenario.serving import ServingScenario
from moesim.serving.result import ServingResult
from moesim.serving.table import GROUPS, iterations_by_phase

FIRST = (
    "time_to_first_token",
    "time_to_first_token_mean",
    "time_to_first_token_p99",
    "time_per_output_token",
    "time_per_output_token_mean",
    "time_per_output_token_p99",
    "output_tokens_per_second",
    "output_tokens_per_second_per_gpu",
    "goodput_fraction",
    "kv_cache_use",
    "memory_per_gpu",
    "cost_per_million_output_tokens",
)
"""What a deployment is chosen by comes before everything else."""

_MEAN = "_mean"
_LIMIT = "what limits it: "
_OVER = "busiest rank, mean over iterations"
_ALIKE = 0.01
"""Batches and rates that differ by no more than this share count as the same."""


def compare(results: Sequence[Result | ServingResult]) -> Comparison:
    """Every metric of two or more results of one kind, training or serving, against the first.

    Raises `UserError` for fewer than two, or for both kinds together.
    """
    require_one_kind(results)
    training = [result for result in results if isinstance(result, Result)]
    if training or not results:
        return compare_training(training)
    return side_by_side([_once(result) for result in results if isinstance(result, ServingResult)], KIND)


def require_one_kind(asked: Sequence[Result | ServingResult | AnyScenario]) -> None:
    """Raises `UserError` where some are of training steps and others of serving."""
    serving = {isinstance(one, ServingResult | ServingScenario): shorten(one.name, NAME) for one in reversed(asked)}
    if len(serving) == 2:
        raise UserError(
            f"{serving[False]} is of training, {serving[True]} of serving: they have no metrics in common;"
            " compare each with its own kind"
        )


def _once(result: ServingResult) -> ServingResult:
    """An estimate tells means alone: they stand under their own name, so that no median is held against a mean."""
    told = result.summary
    if result.road == "simulate":
        return result
    kept = {name: quantity for name, quantity in told.items() if f"{name}{_MEAN}" not in told}
    return replace(result, summary=kept)


def _iterations(base: ServingResult, other: ServingResult) -> list[Pair]:
    """The iterations that give output, or of prefill alone its own; then those of prompts where both have them."""
    here, there = (iterations_by_phase(result.breakdown) for result in (base, other))
    last_here, last_there = (next(reversed(phases), "") for phases in (here, there))
    name = last_here.lower() if last_here == last_there and last_here else "iteration"
    found = [Pair(Whole(name, _OVER), here.get(last_here, {}), there.get(last_there, {}))]
    both = [phase for phase in here if phase in there and phase not in (last_here, last_there)]
    return [*found, *(Pair(Whole(phase.lower(), _OVER), here[phase], there[phase]) for phase in both)]


def _no_operations(base: ServingResult, other: ServingResult, parts: tuple[str, ...]) -> tuple[OperationChange, ...]:
    return ()


def _caution(base: ServingResult, other: ServingResult, names: tuple[str, str]) -> str:
    """What keeps two deployments from being compared like with like; nothing where all is well."""
    pair, called = (base, other), tuple(middle_cut(name, NAME) for name in names)
    idle = [name for one, name in zip(pair, called, strict=True) if not one.breakdown]
    if idle:
        said = [f"{name} has no iterations to compare." for name in dict.fromkeys(idle)]
        return " ".join(filter(None, [*said, _limits(pair, called)]))
    first, second = map(_work, pair)
    mixed = f"Iterations of {called[0]} {first}, those of {called[1]} {second}." if first != second else ""
    roads = "One is simulated and one estimated, so the roads differ too: simulate both."
    said = [mixed, _batches(pair, called), _pace(pair), _limits(pair, called), roads * (base.road != other.road)]
    return " ".join(filter(None, said))


def _work(result: ServingResult) -> str:
    """What the iterations of the last pool hold."""
    kind = _of(result, "workload", "kind")
    if kind == "serving":
        return "hold prompts and output" if _of(result, "disaggregated") is None else "hold output alone"
    return "hold prompts alone" if kind == "prefill" else "hold output alone"


def _batches(pair: Sequence[ServingResult], called: Sequence[str]) -> str:
    """How many requests the iterations hold, where that differs."""
    sizes = [result.summary["batch_requests"].value for result in pair if "batch_requests" in result.summary]
    if len(sizes) < 2 or not all(sizes) or abs(sizes[1] / sizes[0] - 1.0) <= _ALIKE:
        return ""
    return f"An iteration holds {sizes[1]:.3g} requests of {called[1]}, {sizes[0]:.3g} of {called[0]}."


def _pace(pair: Sequence[ServingResult]) -> str:
    """Whether both do what comes, so that rates tell nothing of the hardware."""
    if any(_of(result, "workload", "arrivals", "kind") == "closed" for result in pair):
        return ""
    rates = [result.summary["requests_per_second"].value for result in pair if "requests_per_second" in result.summary]
    if len(rates) < 2 or not rates[0] or abs(rates[1] / rates[0] - 1.0) > _ALIKE:
        return ""
    return "Arrivals set the pace of both: tokens a second are those that are asked for, latencies tell them apart."


def _limits(pair: Sequence[ServingResult], called: Sequence[str]) -> str:
    """What keeps each from doing more, where steady states say so and differ."""
    notes = [next((note for note in result.notes if note.startswith(_LIMIT)), "") for result in pair]
    first, second = (shorten(note.removeprefix(_LIMIT), 100) for note in notes)
    return f"What limits {called[0]}: {first}; {called[1]}: {second}." if all(notes) and first != second else ""


def _of(result: ServingResult, *keys: str) -> Any:
    """What its scenario says there."""
    node: Any = result.scenario
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


KIND = Kind(SERVING, GROUPS, FIRST, _iterations, _no_operations, _caution, explained="iterations")
"""How serving results are compared."""
