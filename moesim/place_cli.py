"""The verb `place`: which rank should hold which expert, from a trace, counts or a profile, as engines read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.errors import UserError
from moesim.terminal import console, print_json, say

if TYPE_CHECKING:
    from moesim.placement.judge import Outcome
    from moesim.placement.placement import Placement
    from moesim.specs.model import ModelSpec

_HEADS = {
    "max_over_mean": "busiest / mean",
    "mean_over_max": "SGLang's mean / busiest",
    "excess": "TensorRT-LLM's excess",
    "ratio_of_sums": "vLLM's ratio of sums",
    "domains": "domains a token",
    "other_domains": "other domains",
    "ranks": "ranks a token",
}


def place(
    source: Annotated[str, typer.Argument(help="a trace, another tool's recording or counts, or a load profile")],
    ranks: Annotated[int, typer.Option(min=1, help="expert-parallel ranks")],
    domains_of: Annotated[int | None, typer.Option(min=1, help="ranks of a scale-up domain [default: all]")] = None,
    redundant: Annotated[int, typer.Option(help="slots a layer beyond one an expert")] = 0,
    strategy: Annotated[
        str,
        typer.Option(help="contiguous, round-robin, groups, greedy, co-activation, global, hierarchical"),
    ] = "hierarchical",
    format_: Annotated[str, typer.Option("--format", help="sglang, vllm, vllm-ascend, tensorrt-llm, json")] = "sglang",
    layers: Annotated[str, typer.Option(help="only these of the model's layers, e.g. 3-57,60")] = "",
    model: Annotated[str | None, typer.Option(help="a model of the catalog: its groups, layers, weights")] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, help="the router's groups [default: the model's, else 1]")
    ] = None,
    replica_choice: Annotated[str, typer.Option(help="uniform, nearest, load-proportional")] = "uniform",
    tolerance: Annotated[float, typer.Option(min=0.0, help="load that co-activation may cost")] = 0.05,
    bytes_per_weight: Annotated[float, typer.Option(min=0.0, help="of an expert, e.g. 1 for fp8")] = 2.0,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="what a recording leaves open, e.g. top_k=8"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="plan to write [default: SOURCE-STRATEGY.json]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output, the plan in it")] = False,
) -> None:
    """Place experts on ranks, replicate busy ones, and write the plan that SGLang, vLLM or TensorRT-LLM reads."""
    from moesim import catalog
    from moesim.placement import Target, formats
    from moesim.placement.judge import plan_and_judge
    from moesim.placement.source import observe_named

    spec = catalog.load("models", model) if model else None
    observed = observe_named(source, spec, options)
    observed = observed.of_layers(_numbers(layers)) if layers else observed
    target = Target(ranks, domains_of, redundant, groups or (spec.router.groups if spec else 1))
    outcome = plan_and_judge(observed, strategy, target, replica_choice, tolerance)
    story = {"strategy": strategy, "ranks_per_domain": target.domain_size, "replica_choice": replica_choice}
    layers_of_model = max(spec.layers if spec else 0, max(observed.model_layers) + 1)
    plan = formats.Plan(outcome.plan, observed.model_layers, layers_of_model, story)
    document = formats.document(plan, format_)
    if out is not None or not as_json:
        path = out or Path(f"{Path(source).stem}-{strategy}{formats.suffix(format_)}")
        formats.write(plan, format_, path)
        say(f"wrote {path}")
    memory = _extra_bytes(outcome.plan, spec, bytes_per_weight)
    if as_json:
        extra = {"extra_experts_per_rank": outcome.plan.extra_weights_per_rank, "extra_bytes_per_rank": memory}
        print_json({**story, **extra, **outcome.as_dict(), "format": format_, "plan": document})
        return
    _show(outcome, memory)
    if observed.held_out is None:
        say("note: one row of counts: the plan is judged on the load it was made from, which flatters it")
    if format_ == "sglang" and spec is None:
        say(f"note: rows for {layers_of_model} layers; --model says where a model has more")


def _extra_bytes(plan: Placement, model: ModelSpec | None, bytes_per_weight: float) -> float | None:
    """Weights that a rank holds beyond its even share, all layers; None where the model is not known."""
    from moesim.specs.parameters import expert_parameters

    return None if model is None else plan.extra_weights_per_rank * expert_parameters(model) * bytes_per_weight


def _numbers(text: str) -> list[int]:
    """The whole numbers of "3-57,60"."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 6 or len(last) > 6:
            raise UserError(f"--layers {text!r} is not of the form 3-57,60")
        found.extend(range(int(first), int(last if dash else first) + 1))
    return found


def _show(outcome: Outcome, memory: float | None) -> None:
    from moesim.results.table import plain_table
    from moesim.units import show

    table = plain_table("Placement, means over layers")
    columns: list[dict[str, Any]] = []
    for half, title in (("planned", "planned on"), ("held_out", "held out")):
        for name, judged in outcome.judged.items():
            if half in judged:
                table.add_column(f"{name}, {title}", justify="right")
                columns.append(judged[half].as_dict())
    for key, head in _HEADS.items():
        if key in columns[0]:
            table.add_row(head, *(f"{column[key]:.3f}" for column in columns))
    console().print(table)
    plan = outcome.plan
    extra = f"{plan.slots} experts a rank and layer, {plan.extra_weights_per_rank:.4g} in all beyond an even share"
    console().print(extra if memory is None else f"{extra}: {show(memory, 'B')} of weights a GPU")
