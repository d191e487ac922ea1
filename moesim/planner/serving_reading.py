"""From a plan of serving to its questions, one a model: clusters and sizes, what is searched, every default said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moesim import catalog
from moesim.errors import Problem, ScenarioError, UserError, shorten
from moesim.planner import serving_defaults as defaults
from moesim.planner import serving_fields as fields
from moesim.planner.serving_fields import Part, Wanted
from moesim.planner.serving_spec import LATENCIES, ServingLimits, ServingPlanSpec
from moesim.scenario.loading import serving_from_document
from moesim.scenario.serving import ServingScenario
from moesim.specs.cluster import ClusterSpec
from moesim.specs.explain import explain
from moesim.specs.serving import LimitsSpec

Document = dict[str, Any]
_BY_CLUSTER = ("cluster", "precision.compute", "precision.experts", "dispatcher.multiprocessors")


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU and fabric: the scenario on it, the sizes of cluster to try, dollars an hour of a GPU, and the
    GPUs of an instance to try, by what the instance does (None: of one kind of instance)."""

    base: ServingScenario
    counts: tuple[int, ...]
    gpu_hour: float | None
    sizes: dict[Part | None, tuple[int, ...]]

    @property
    def cluster(self) -> ClusterSpec:
        """The kind of cluster."""
        return self.base.cluster

    @property
    def rate(self) -> float:
        """What a GPU costs an hour: dollars, or 1 where there are no prices."""
        return 1.0 if self.gpu_hour is None else self.gpu_hour


@dataclass(frozen=True)
class Settings:
    """What all instances of a candidate are run with."""

    redundant: int
    token_budget: int
    two_batch: bool
    dispatchers: tuple[str, str]


@dataclass(frozen=True)
class Question:
    """One model's plan: the hardware, what is searched, and the limits with those that the scenario states."""

    spec: ServingPlanSpec
    hardware: tuple[Hardware, ...]
    wanted: Wanted
    settings: tuple[Settings, ...]
    apart: tuple[bool, ...]
    limits: ServingLimits
    notes: tuple[str, ...]
    own: ServingScenario | None = None

    @property
    def base(self) -> ServingScenario:
        """What all candidates share."""
        return self.hardware[0].base

    @property
    def priced(self) -> bool:
        """Whether cost is in dollars; else it is in GPU-hours."""
        return self.hardware[0].gpu_hour is not None


def questions(spec: ServingPlanSpec, folder: Path) -> tuple[Question, ...]:
    """One question a model; raises `ScenarioError` with all that is wrong with the plan."""
    found: list[Problem] = []
    wanted = fields.read(spec.search, found)
    document = dict(spec.scenario) if isinstance(spec.scenario, Mapping) else {}
    models = spec.models or (document.get("model"),)
    if models == (None,):
        found.append(Problem("scenario.model", f"which model? e.g. model: {catalog.names('models')[0]}"))
    parts = ("cluster", "workload", "engine", "placement")
    wrong = [key for key in parts if not isinstance(document.get(key) or {}, Mapping)]
    found += [Problem(f"scenario.{key}", f"expected a mapping of keys, got {shorten(document[key])}") for key in wrong]
    if found:
        raise ScenarioError(found, spec.name)
    return tuple(_question(spec, {**document, "model": model}, wanted, folder) for model in models)


def _question(spec: ServingPlanSpec, document: Document, wanted: Wanted, folder: Path) -> Question:
    notes: list[str] = []
    limits = _limits(spec, document)
    kinds = _hardware(spec, document, wanted, folder, notes)
    base = kinds[0].base
    apart = tuple(bool(one) for one in wanted.values.get("disaggregated", defaults.apart(base)))
    _check(spec, kinds, limits, apart)
    rows, said = defaults.settings(base, wanted, stated=(document.get("placement") or {}))
    notes += [*said, *_notes(spec, base, kinds, apart)]
    kinds = tuple(_with_limits(kind, limits) for kind in kinds)
    return Question(
        spec=spec,
        hardware=kinds,
        wanted=wanted,
        settings=tuple(Settings(*row) for row in rows),
        apart=apart,
        limits=limits,
        notes=tuple(dict.fromkeys(notes)),
        own=_own(spec, document, limits, folder),
    )


def _limits(spec: ServingPlanSpec, document: Document) -> ServingLimits:
    """The plan's limits, and those of the scenario's workload where the plan states none."""
    work = document.get("workload") or {}
    stated = work.get("limits") or {}
    own = {name: stated[name] for name in LATENCIES if isinstance(stated, Mapping) and name in stated}
    try:
        return ServingLimits.model_validate({**own, **spec.limits.model_dump(exclude_none=True)})
    except ValidationError as error:
        found = [Problem(f"scenario.workload.limits.{one.where}", one.what) for one in explain(error, ServingLimits)]
        raise ScenarioError(found, spec.name) from error


def _with_limits(kind: Hardware, limits: ServingLimits) -> Hardware:
    """The hardware's scenario with the limits that its requests have to keep to be good."""
    told = {name: getattr(limits, name) or getattr(limits, f"{name}_p99") for name in LATENCIES}
    work = kind.base.workload.model_copy(update={"limits": LimitsSpec(**told)})
    prices = kind.base.prices.model_copy(update={"gpu_hour": kind.gpu_hour})
    return Hardware(
        kind.base.model_copy(update={"workload": work, "prices": prices}), kind.counts, kind.gpu_hour, kind.sizes
    )


def _hardware(
    spec: ServingPlanSpec, document: Document, wanted: Wanted, folder: Path, notes: list[str]
) -> tuple[Hardware, ...]:
    """The kinds of cluster to try; those that cannot run the scenario are left out with a note."""
    cluster = dict(document.get("cluster") or {})
    gpus = wanted.values.get("cluster.gpu") or ((cluster["gpu"],) if "gpu" in cluster else ())
    if not gpus:
        raise ScenarioError(
            [Problem("search.cluster.gpu", "which GPUs? e.g. cluster.gpu: [h100-sxm, h200-sxm]")], spec.name
        )
    found, refusal = [], None
    for gpu in gpus:
        for fabric in wanted.values.get("cluster.fabric") or (cluster.get("fabric"),):
            kind = {**cluster, "gpu": gpu, "fabric": fabric}
            try:
                found.append(_sized(spec, {**document, "cluster": kind}, wanted, folder, notes))
            except ScenarioError as error:
                if any(not problem.where.startswith(_BY_CLUSTER) for problem in error.problems):
                    raise
                refusal = refusal or error
                notes.append(f"{shorten(gpu)} is left out: {error.problems[0]}")
    if not found:
        raise refusal or UserError("no cluster to try")
    missing = sorted({one.cluster.gpu.name for one in found if one.gpu_hour is None})
    if missing and any(one.gpu_hour is not None for one in found):
        what = "is missing: others have a price, and costs are compared"
        raise ScenarioError([Problem(f"prices.{name}", what) for name in missing], spec.name)
    return tuple(found)


def _sized(spec: ServingPlanSpec, document: Document, wanted: Wanted, folder: Path, notes: list[str]) -> Hardware:
    """One kind of cluster, its sizes, and the sizes of instances."""
    cluster = document["cluster"]
    stated = wanted.values.get("cluster.gpus") or tuple(filter(None, [cluster.get("gpus")]))
    base = _probe(spec, document, stated[0] if stated else 1, folder)
    counts = tuple(sorted(stated)) or defaults.gpu_counts(base, spec.limits.gpus)
    if not stated:
        tried = ", ".join(f"{count:,}" for count in counts)
        notes.append(f"{base.cluster.gpu.name}: {tried} GPUs are tried (assumed): --gpus names others")
    sizes: dict[Part | None, tuple[int, ...]] = {
        part: wanted.of("gpus", part) or defaults.instance_sizes(base, counts, bool(stated))
        for part in (None, *fields.PARTS)
    }
    price = spec.prices.get(base.cluster.gpu.name, base.prices.gpu_hour)
    return Hardware(base, counts, price, sizes)


def _probe(spec: ServingPlanSpec, document: Document, gpus: int, folder: Path) -> ServingScenario:
    """The scenario on instances of one GPU: all that holds for every candidate is checked here."""
    plain = {key: value for key, value in document.items() if key not in ("instance", "disaggregated", "question")}
    engine = {key: value for key, value in (plain.get("engine") or {}).items() if key != "two_batch_overlap"}
    placement = {key: value for key, value in (plain.get("placement") or {}).items() if key != "redundant_experts"}
    work = {"kind": "serving", **{key: value for key, value in plain["workload"].items() if key != "limits"}}
    plain |= {"cluster": {**plain["cluster"], "gpus": gpus}, "instance": {"gpus": 1}, "dispatcher": _dispatcher(plain)}
    plain |= {"engine": engine, "placement": placement, "workload": work}
    return serving_from_document({"name": spec.name, **plain}, spec.name, folder)


def _dispatcher(document: Document) -> Document:
    stated = document.get("dispatcher")
    return {"multiprocessors": stated.get("multiprocessors")} if isinstance(stated, Mapping) else {}


def _own(spec: ServingPlanSpec, document: Document, limits: ServingLimits, folder: Path) -> ServingScenario | None:
    """The scenario as it states its own deployment; None where it states none."""
    if spec.models or not ({"instance", "disaggregated"} & document.keys()):
        return None
    try:
        found = serving_from_document({"name": spec.name, **document}, spec.name, folder)
    except UserError:
        return None
    price = spec.prices.get(found.cluster.gpu.name, found.prices.gpu_hour)
    return _with_limits(Hardware(found, (), price, {}), limits).base


def _check(spec: ServingPlanSpec, kinds: tuple[Hardware, ...], limits: ServingLimits, apart: tuple[bool, ...]) -> None:
    """Raises `ScenarioError` for limits and objectives that need what the plan does not state."""
    found, base = [], kinds[0].base
    if kinds[0].gpu_hour is None:
        stated = [name for name in ("dollars_per_hour", "dollars_per_million_tokens") if getattr(limits, name)]
        found += [Problem(f"limits.{name}", "needs prices: {GPU: dollars an hour}") for name in stated]
    if limits.simulated and not spec.simulate:
        why = "only the simulation can tell: simulate at least 1"
        found += [Problem(f"limits.{name}", why) for name in limits.simulated]
    if limits.goodput_fraction is not None and not any(getattr(limits, name) for name in LATENCIES):
        found.append(Problem("limits.goodput_fraction", "needs a latency that a good request keeps"))
    if apart == (True,) and (base.workload.kind != "serving" or base.workload.arrivals.kind == "closed"):
        found.append(Problem("search.disaggregated", "needs workload.kind serving and arrivals at a rate"))
    if base.workload.kind == "prefill":
        beyond = [name for name in ("time_per_output_token", "time_per_output_token_p99") if getattr(limits, name)]
        found += [Problem(f"limits.{name}", "prefill gives one output token: nothing to limit") for name in beyond]
    if found:
        raise ScenarioError(found, spec.name)


def _notes(
    spec: ServingPlanSpec, base: ServingScenario, kinds: tuple[Hardware, ...], apart: tuple[bool, ...]
) -> list[str]:
    """What holds for every candidate and was not stated."""
    found = []
    if spec.objective == "cost" and kinds[0].gpu_hour is None:
        found.append("no prices: cost is told in GPU-hours, as if every GPU cost the same")
    if base.workload.arrivals.kind == "closed" and True in apart and len(apart) > 1:
        found.append("a fixed concurrency: one kind of instance is searched; `disaggregated` needs arrivals at a rate")
    if base.model.is_moe and base.routing.load.name == "uniform":
        found.append(
            "routing.load uniform: perfectly balanced on average; a real router's skew makes iterations longer"
        )
    weights = base.precision.expert_weights
    formats = base.precision.compute if weights == "auto" else f"{base.precision.compute}, experts in {weights}"
    found.append(f"precision.compute {formats}; stack {base.stack}")
    return found
