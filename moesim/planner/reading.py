"""From a plan to its questions, one a model: names resolved, the space spelt out, every default said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moesim import catalog
from moesim.errors import Problem, ScenarioError, UserError, shorten
from moesim.planner import defaults, fields, sizes
from moesim.planner.fields import Wanted
from moesim.planner.gpu_prices import check_prices, gpu_hours
from moesim.scenario.loading import from_document
from moesim.scenario.scenario import Scenario
from moesim.screening import Choices
from moesim.specs.cluster import ClusterSpec
from moesim.specs.explain import explain
from moesim.specs.parallelism import OverlapSpec
from moesim.specs.plan import LimitsSpec, PlanSpec
from moesim.specs.workload import WorkloadSpec
from moesim.units import show

Document = dict[str, Any]
SOME_TOKENS = 1e9
"""What time and cost are told for where a plan does not state the length of the run."""
_STAYS = ("data_sharding", "sequence_parallel")
_PARTS = ("cluster", "parallelism", "schedule", "workload", "dispatcher", "overlap", "simulation", "stack_options")
_BY_CLUSTER = ("cluster", "precision.compute", "dispatcher.multiprocessors")


@dataclass(frozen=True)
class Question:
    """One model's plan. `base`: what all candidates share; `axes`: the values to try on each cluster, by column;
    `gpu_hour`: dollars an hour by cluster; `notes`: what was assumed; `own`: values by column of the scenario's own
    layout, a candidate whatever is searched; `elsewhere`: that layout where it stands on a cluster not searched."""

    base: Scenario
    choices: Choices
    axes: tuple[dict[str, tuple[int, ...]], ...]
    spec: PlanSpec
    gpu_hour: tuple[float | None, ...]
    notes: tuple[str, ...]
    whole_run: bool = True
    own: tuple[int, ...] | None = None
    elsewhere: Scenario | None = None

    @property
    def limits(self) -> LimitsSpec:
        """What a layout has to keep to."""
        return self.spec.limits

    @property
    def tokens(self) -> float:
        """Tokens that time and cost are told for: the run's, or `SOME_TOKENS` where that is not the `whole_run`."""
        return self.base.workload.total_tokens or SOME_TOKENS

    @property
    def priced(self) -> bool:
        """Whether cost is in dollars; else it is in GPU-hours."""
        return self.gpu_hour[0] is not None


def questions(spec: PlanSpec, folder: Path) -> tuple[Question, ...]:
    """One question a model; raises `ScenarioError` with all that is wrong with the plan."""
    found: list[Problem] = []
    wanted = fields.read(spec.search, found)
    check_prices(spec, found)
    document = dict(spec.scenario) if isinstance(spec.scenario, Mapping) else {}
    models = spec.models or (document.get("model"),)
    if models == (None,):
        found.append(Problem("scenario.model", f"which model? e.g. model: {catalog.names('models')[0]}"))
    placement = document.get("placement")
    if isinstance(placement, Mapping) and placement.get("redundant_experts"):
        found.append(Problem("scenario.placement.redundant_experts", "training keeps one copy of every expert: say 0"))
    if found:
        raise ScenarioError(found, spec.name)
    return tuple(_question(spec, document, model, wanted, folder) for model in models)


def _question(spec: PlanSpec, document: Document, model: Any, wanted: Wanted, folder: Path) -> Question:
    notes: list[str] = []
    document = _with_parts({**document, "model": _model(model, notes)}, spec.name)
    clusters, base = _clusters(spec, document, wanted, folder, notes)
    base = _with_batch(base, document, tuple(cluster.gpus for cluster in clusters), notes)
    own = OverlapSpec.model_validate(document["overlap"])
    base = base.model_copy(update={"overlap": own})
    overlaps = [OverlapSpec.model_validate({**own.model_dump(), **change}) for change in wanted.overlaps or ()]
    named = fields.read({"dispatcher": document["dispatcher"].get("kind", "auto")}, []).dispatchers
    choices = Choices(
        clusters=clusters,
        recomputes=wanted.recomputes or defaults.recomputes(base),
        schedules=wanted.schedules or defaults.schedules(),
        capacities=wanted.capacities or defaults.capacities(base, spec.limits),
        dispatchers=wanted.dispatchers or named or ("auto",),
        overlaps=tuple(dict.fromkeys(overlaps)) or defaults.overlaps(base),
    )
    spec = defaults.affordable(spec, base, notes)
    kinds = {
        "recompute": choices.recomputes,
        "schedule": choices.schedules,
        "capacity": choices.capacities,
        "dispatcher": choices.dispatchers,
        "overlap": choices.overlaps,
    }
    places = {name: tuple(range(len(values))) for name, values in kinds.items()}
    axes = tuple({**defaults.degrees(base, cluster), **wanted.degrees, **places} for cluster in clusters)
    stated = base.workload.total_tokens is not None
    question = Question(base, choices, axes, spec, gpu_hours(spec, base, clusters), (), stated)
    _check_limits(question)
    if not stated:
        work = base.workload.model_copy(update={"total_tokens": SOME_TOKENS})
        question = replace(question, base=base.model_copy(update={"workload": work}))
    return replace(question, notes=tuple(dict.fromkeys([*notes, *_notes(question)])))


def _model(model: Any, notes: list[str]) -> Any:
    """The model; a name's beginning stands for the only catalog model that begins so."""
    if not isinstance(model, str) or model in catalog.names("models"):
        return model
    begun = [name for name in catalog.names("models") if name.startswith(model)]
    if len(begun) != 1:
        return model
    notes.append(f"model {model} is {begun[0]}")
    return begun[0]


def _clusters(
    spec: PlanSpec, document: Document, wanted: Wanted, folder: Path, notes: list[str]
) -> tuple[tuple[ClusterSpec, ...], Scenario]:
    """The clusters to try, and a scenario on one of them; those that cannot run it are left out with a note.

    Raises `ScenarioError` where none is left.
    """
    cluster = document["cluster"]
    gpus = wanted.gpu or ((cluster["gpu"],) if "gpu" in cluster else ())
    if not gpus:
        hint = "cluster.gpu: [h100-sxm, gb200-nvl72]"
        raise ScenarioError([Problem("search.cluster.gpu", f"which GPUs? e.g. {hint}")], spec.name)
    stated = wanted.gpus if wanted.gpus is not None else tuple(filter(None, [cluster.get("gpus")]))
    found: list[ClusterSpec] = []
    base, refusal = None, None
    for gpu in gpus:
        for fabric in wanted.fabric or (cluster.get("fabric"),):
            of_kind = {**cluster, "gpu": gpu, "fabric": fabric}
            try:
                tried = _sizes(spec, {**document, "cluster": of_kind}, stated, folder, notes)
            except ScenarioError as error:
                if any(not problem.where.startswith(_BY_CLUSTER) for problem in error.problems):
                    raise
                refusal = refusal or error
                kind = f"{shorten(gpu)} on {shorten(fabric)}" if wanted.fabric else shorten(gpu)
                notes.append(f"{kind} is left out: {error.problems[0]}")
                continue
            base = base or tried[0]
            found += [scenario.cluster for scenario in tried if scenario.cluster not in found]
    if base is None:
        raise refusal or UserError("no cluster to try")
    return tuple(found), base


def _sizes(
    spec: PlanSpec, document: Document, stated: tuple[int, ...], folder: Path, notes: list[str]
) -> list[Scenario]:
    """The scenario on every size of one kind of cluster."""
    cluster = document["cluster"]
    counts = stated
    if not counts:
        small = _probe(spec, document, 1, folder)
        counts = sizes.gpu_counts(small, spec.limits, spec.objective, _batch(document, small))
        notes.append(sizes.sizes_words(small, spec.limits, counts))
    found = []
    for count in counts:
        scenario = _probe(spec, document, count, folder)
        domain = scenario.cluster.gpus_per_domain
        filled = domain if "gpus_per_domain" in cluster else sizes.filled_domain(count, domain)
        if filled != domain:
            notes.append(
                f"{scenario.cluster.gpu.name}: {filled} of each domain's {domain} GPUs work, so that all are full"
            )
            scenario = _probe(spec, {**document, "cluster": {**cluster, "gpus_per_domain": filled}}, count, folder)
        found.append(scenario)
    if stated and stated != (cluster.get("gpus"),):
        tried = ", ".join(f"{count:,}" for count in counts)
        notes.append(f"{found[0].cluster.gpu.name}: {tried} GPUs are tried, as stated")
    return found


def _probe(spec: PlanSpec, document: Document, gpus: int, folder: Path) -> Scenario:
    """The scenario on `gpus` GPUs in the plainest layout: all that holds for every candidate is checked here."""
    layout = {key: value for key, value in document["parallelism"].items() if key in _STAYS}
    plain = {
        "cluster": {**document["cluster"], "gpus": gpus},
        "parallelism": layout,
        "schedule": {"kind": "auto"},
        "workload": {**document["workload"], "global_batch": gpus, "micro_batch": 1},
        "simulation": {**document["simulation"], "sampled_tokens": None, "stragglers": None},
        "stack_options": {**document["stack_options"], "pipeline_layout": None},
        "dispatcher": {**document["dispatcher"], "kind": "auto"},
        "overlap": {**document["overlap"], "two_batch": False, "expert_communication": False},
    }
    return from_document({"name": spec.name, **document, **plain}, spec.name, folder=folder)


def _batch(document: Document, small: Scenario) -> int | None:
    """Sequences of a global batch, as stated or as is usual; None where neither is known yet."""
    stated, work = document["workload"].get("global_batch"), small.workload
    if isinstance(stated, int):
        return max(1, stated)
    return defaults.global_batch(work.total_tokens, work.sequence_length, (1,)) if work.total_tokens else None


def _with_parts(document: Document, where: str) -> Document:
    """The document with every part that the planner changes as a mapping; a lone name is a kind."""
    found = dict(document)
    problems = []
    for key in _PARTS:
        part = found.get(key)
        if isinstance(part, str) and key in ("schedule", "dispatcher"):
            part = {"kind": part}
        if part is not None and not isinstance(part, Mapping):
            problems.append(Problem(f"scenario.{key}", f"expected a mapping of keys, got {shorten(part)}"))
        found[key] = dict(part) if isinstance(part, Mapping) else {}
    if problems:
        raise ScenarioError(problems, where)
    return found


def _with_batch(base: Scenario, document: Document, counts: tuple[int, ...], notes: list[str]) -> Scenario:
    """The scenario with the stated global batch, or with a usual one for its tokens."""
    work = base.workload
    batch = document["workload"].get("global_batch")
    if batch is None and work.total_tokens is None:
        what = "is required, or workload.total_tokens, from which a usual batch follows"
        raise ScenarioError([Problem("scenario.workload.global_batch", what)], base.name)
    if batch is None:
        batch = defaults.global_batch(work.total_tokens or 0.0, work.sequence_length, counts)
        tokens = batch * work.sequence_length
        notes.append(
            f"global batch {batch:,} sequences of {work.sequence_length:,} tokens, {tokens / 1e6:.3g} M tokens"
            f" (assumed): what Step Law finds best for {show(work.total_tokens or 0.0, 'parameter')} tokens, rounded"
        )
    try:
        WorkloadSpec.model_validate({"global_batch": batch})
    except ValidationError as error:
        problems = [Problem(f"scenario.workload.{one.where}", one.what) for one in explain(error, WorkloadSpec)]
        raise ScenarioError(problems, base.name) from error
    return base.model_copy(update={"workload": work.model_copy(update={"global_batch": batch})})


def _check_limits(question: Question) -> None:
    """Raises `ScenarioError` for limits and objectives that need what the plan does not state."""
    limits, found = question.limits, []
    if not question.whole_run:
        stated = [name for name in ("days", "dollars") if getattr(limits, name) is not None]
        found += [Problem(f"limits.{name}", "needs workload.total_tokens: the length of the run") for name in stated]
    if limits.dollars is not None and None in question.gpu_hour:
        found.append(Problem("limits.dollars", "needs prices: {GPU: dollars an hour}"))
    if question.spec.objective == "fewest-gpus" and limits.days is None:
        found.append(Problem("limits.days", "objective fewest-gpus needs a deadline"))
    silent = [cluster.gpu.name for cluster in question.choices.clusters if cluster.gpu.power is None]
    found += [Problem("limits.power", f"{name} states no power") for name in silent if limits.power is not None]
    if found:
        raise ScenarioError(dict.fromkeys(found), question.spec.name)


def _notes(question: Question) -> list[str]:
    """What holds for every candidate and was not stated."""
    base, found = question.base, []
    if not question.whole_run:
        found.append(f"no workload.total_tokens: time and cost are for {show(SOME_TOKENS, 'parameter')} tokens")
    if question.spec.objective in ("cost", "tokens-per-dollar") and not question.priced:
        found.append("no prices: cost is told in GPU-hours, as if every GPU cost the same")
    if len(question.choices.schedules) > 1:
        found.append(
            "zero-bubble-v and dualpipe are not in every software stack: --search schedule=auto leaves them out"
        )
    if base.model.is_moe and base.routing.load.name == "uniform":
        found.append("routing.load uniform: perfectly balanced on average; a real router's skew makes steps longer")
    if base.model.is_moe:
        found.append("redundant_experts: 0; copies of busy experts are for serving, training keeps one of each")
    found.append(f"precision.compute {base.precision.compute}, sequences of {base.workload.sequence_length:,} tokens")
    return found
