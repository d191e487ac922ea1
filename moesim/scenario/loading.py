"""From a file or a mapping to a scenario: overrides, names, defaults, then every check; all problems at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from moesim import catalog
from moesim.catalog import huggingface, recorded
from moesim.catalog.yaml_files import parse_mapping, read_mapping
from moesim.errors import FileError, Problem, ScenarioError, UserError, nearest_hint, shorten, visible
from moesim.files import plain_name
from moesim.scenario.checks import problems as cross_field_problems
from moesim.scenario.planned_from import resolve_plan
from moesim.scenario.recorded_load import resolve_load
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario
from moesim.scenario.serving_checks import problems as serving_problems
from moesim.scenario.serving_trace import resolve_arrivals
from moesim.shipped import named
from moesim.specs.explain import explain
from moesim.specs.serving import KINDS, unknown_kind

Document = dict[str, Any]
AnyScenario = Scenario | ServingScenario


@dataclass(frozen=True)
class _Noun:
    """A class of scenarios and its cross-field checks."""

    spec: type[Scenario] | type[ServingScenario]
    problems: Callable[[Any], list[Problem]]


_TRAINING = _Noun(Scenario, cross_field_problems)
_SERVING = _Noun(ServingScenario, serving_problems)
# Keys of the files that hold a scenario and are none.
_OTHERS = {"sweep": {"grid", "list", "random", "latin_hypercube"}, "plan": {"search", "limits", "objective", "models"}}


def load(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Iterable[str] = ()) -> AnyScenario:
    """The scenario in a YAML file or a mapping of the same shape, with `overrides` such as "cluster.gpus=512" applied.

    Where no file stands there, a name such as "olmoe-8-h100" is that of a shipped scenario. A `workload.kind` of
    prefill, decode or serving makes a `ServingScenario`. Raises `ScenarioError` with every problem found, `FileError`
    where the file cannot be read.
    """
    if isinstance(source, Mapping):
        return _read(_plain(source), str(source.get("name", "scenario")), overrides)
    path = named(Path(source))
    return _read(read_mapping(path), str(path), overrides, name=path.stem)


def load_training(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Iterable[str] = ()) -> Scenario:
    """As `load`, for what knows training alone; a serving scenario is a `UserError`."""
    return training(load(source, overrides))


def load_serving(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Iterable[str] = ()) -> ServingScenario:
    """As `load`, for what knows serving alone; a training scenario is a `UserError`."""
    if isinstance(source, Mapping):
        found = _read(_plain(source), str(source.get("name", "scenario")), overrides, unstated="serving")
    else:
        path = named(Path(source))
        found = _read(read_mapping(path), str(path), overrides, path.stem, unstated="serving")
    return serving(found)


def serving(scenario: AnyScenario) -> ServingScenario:
    """`scenario`, which has to be one of serving; raises `UserError` where it is not."""
    if isinstance(scenario, ServingScenario):
        return scenario
    raise UserError(f"{scenario.name}: workload.kind is training; allowed here: prefill, decode, serving")


def training(scenario: AnyScenario) -> Scenario:
    """`scenario`, which has to be one of training; raises `UserError` where it is not."""
    if isinstance(scenario, Scenario):
        return scenario
    raise UserError(f"{scenario.name}: workload.kind is {scenario.workload.kind}; allowed here: training")


def from_document(
    document: Document, where: str, overrides: Iterable[str] = (), name: str | None = None, folder: Path | None = None
) -> Scenario:
    """The training scenario in a mapping; `where` names its origin in messages."""
    return training(_read(document, where, overrides, name, folder))


def serving_from_document(document: Document, where: str, folder: Path | None = None) -> ServingScenario:
    """The serving scenario in a mapping; files that it names are looked up in `folder`."""
    return serving(_read(document, where, folder=folder, unstated="serving"))


def _read(
    document: Document,
    where: str,
    overrides: Iterable[str] = (),
    name: str | None = None,
    folder: Path | None = None,
    unstated: str = "training",
) -> AnyScenario:
    """The scenario of a mapping; one that does not state its `workload.kind` is `unstated`."""
    _refuse_others(document, where)
    found: list[Problem] = []
    for override in overrides:
        try:
            document = override_key(document, override)
        except UserError as error:
            found.append(Problem("--set", str(error)))
    noun = _noun(document, found, unstated)
    resolved = _resolve(document, noun is _SERVING, found, folder or Path(where).parent)
    if name and "name" not in resolved:
        resolved["name"] = plain_name(name)
    try:
        scenario = noun.spec.model_validate(resolved)
    except ValidationError as error:
        told = tuple(problem.where for problem in found)
        found.extend(problem for problem in explain(error, noun.spec) if not _inside(problem.where, told))
        found.extend(_problems_beside(noun, resolved, error, tuple(problem.where for problem in found)))
        raise ScenarioError(found, where) from error
    found.extend(noun.problems(scenario))
    if found:
        raise ScenarioError(found, where)
    return scenario


def _refuse_others(document: Document, where: str) -> None:
    """Raises `FileError` for a document that is a sweep or a plan, which hold a scenario and are none."""
    for kind, keys in _OTHERS.items():
        if ("scenario" in document or "models" in document) and "model" not in document and keys & set(document):
            raise FileError(f"{where}: is a {kind}, not a scenario; moesim {kind} takes it")


def _noun(document: Document, found: list[Problem], unstated: str) -> _Noun:
    """Which class of scenario a document is, by its `workload.kind`; one that is not known is told."""
    work = document.get("workload")
    kind = work.get("kind", unstated) if isinstance(work, dict) else unstated
    if kind not in KINDS:
        found.append(Problem("workload.kind", unknown_kind(shorten(kind))))
        serves = isinstance(work, dict) and ("arrivals" in work or "requests" in work)
        return _SERVING if serves else _TRAINING
    return _TRAINING if kind == "training" else _SERVING


def _problems_beside(noun: _Noun, resolved: Document, error: ValidationError, told: tuple[str, ...]) -> list[Problem]:
    """Cross-field problems of what remains when the fields that are wrong by themselves take their defaults."""
    remains = _plain(resolved)
    for item in error.errors(include_url=False):
        node = remains
        for key in item["loc"][:-1]:
            inner = node.get(key) if isinstance(node, dict) else None
            node = inner if isinstance(inner, dict) else node
        if isinstance(node, dict):
            node.pop(item["loc"][-1], None)
    try:
        scenario = noun.spec.model_validate(remains)
    except ValidationError:
        return []
    return [problem for problem in noun.problems(scenario) if not _inside(problem.where, told)]


def _inside(where: str, told: tuple[str, ...]) -> bool:
    """Whether a place, or one that holds it, has been complained about already."""
    return any(where == place or where.startswith(f"{place}.") for place in told)


def override_key(document: Document, expression: str) -> Document:
    """`document` with one "a.b=value" applied; the value is read as YAML. A catalog name on the way becomes a base."""
    path, equals, text = expression.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > 12:
        raise UserError(f"{shorten(expression)!r} is not of the form a.b=value")
    value = parse_mapping(f"value: {text}", f"--set {shorten(path)}")["value"]
    return _put(document, keys, value)


def _put(node: Any, keys: list[str], value: Any) -> Document:
    if isinstance(node, str):
        node = {"base": node}
    branch: Document = dict(node) if isinstance(node, dict) else {}
    head, *rest = keys
    branch[head] = _put(branch.get(head), rest, value) if rest else value
    return branch


def _plain(value: Any) -> Any:
    """A deep copy in plain dicts and lists, so that nobody's mapping is changed."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _resolve(document: Document, serves: bool, found: list[Problem], folder: Path) -> Document:
    """`document` with catalog names replaced by their entries; what cannot be resolved is added to `found`."""
    resolved = dict(document)
    if "model" in resolved:
        resolved["model"] = _entry("models", resolved["model"], "model", found, folder)
    if isinstance(resolved.get("cluster"), dict):
        resolved["cluster"] = _cluster(_with_fabric(resolved), found, folder)
    routing = resolved.get("routing")
    if routing is None or isinstance(routing, dict):
        resolved["routing"] = _routing(routing or {}, found, folder)
        _router(resolved, found)
        resolve_load(resolved, found, folder)
    resolve_plan(resolved, found, folder)
    if serves:
        resolve_arrivals(resolved, found, folder)
    for key in ("schedule", "dispatcher"):
        if isinstance(resolved.get(key), str):
            phases = ("prefill", "decode") if serves else ("kind",)
            resolved[key] = dict.fromkeys(phases, resolved[key])
    return resolved


def _entry(kind: str, value: Any, where: str, found: list[Problem], folder: Path) -> Any:
    """The plain entry that a name, `{base: NAME, ...}` or `{huggingface: FILE}` stands for."""
    if isinstance(value, str):
        value = {"base": value}
    if not isinstance(value, dict) or not ({"base", "huggingface"} & value.keys()):
        return value
    changes = {key: inner for key, inner in value.items() if key not in ("base", "huggingface")}
    try:
        if "huggingface" in value:
            base = huggingface.from_config(folder / str(value["huggingface"]))
        else:
            base = {"name": str(value["base"]), **catalog.raw(kind, str(value["base"]))}
    except ScenarioError as error:
        found.extend(Problem(where, f"{error.source}: {problem.where}: {problem.what}") for problem in error.problems)
        return value
    except UserError as error:
        found.append(Problem(where, str(error)))
        return value
    return catalog.derive(base, changes, "the scenario") if changes else base


def _cluster(cluster: Document, found: list[Problem], folder: Path) -> Document:
    """The cluster with GPU and fabric looked up and the defaults that follow from the GPU."""
    cluster = dict(cluster)
    gpu = cluster["gpu"] = _entry("gpus", cluster.get("gpu"), "cluster.gpu", found, folder)
    if isinstance(gpu, dict):
        cluster.setdefault("gpus_per_domain", gpu.get("gpus_per_domain", 8))
        fabric = cluster.get("fabric")
        if fabric is None:
            cluster["fabric"] = _default_fabric(gpu)
        elif isinstance(fabric, dict) and not {"base", "kind"} & fabric.keys():
            cluster["fabric"] = {"base": _default_fabric(gpu), **fabric}
    cluster["fabric"] = _entry("fabrics", cluster.get("fabric"), "cluster.fabric", found, folder)
    if isinstance(cluster.get("calibration"), str):
        try:
            cluster["calibration"] = str(catalog.measured(cluster["calibration"], folder))
        except UserError as error:
            found.append(Problem("cluster.calibration", str(error)))
    return {key: value for key, value in cluster.items() if value is not None or key in ("gpu", "fabric")}


def _with_fabric(document: Document) -> Document:
    """The cluster, on the fabric that the named software stack is known to have run on where it names none."""
    cluster, stacks = document["cluster"], catalog.calibration("stacks")
    known = stacks["fabrics"].get(str(document.get("stack")))
    return {**cluster, "fabric": known} if known and cluster.get("fabric") is None else cluster


def _default_fabric(gpu: Document) -> str:
    kind, domain = gpu.get("scale_up_kind", "nvlink"), gpu.get("gpus_per_domain", 8)
    if kind == "torus":
        return f"tpu-torus-{gpu.get('torus_dimensions', 2)}d"
    if kind == "none" or gpu.get("nic_bandwidth") is None:
        return "none"
    if kind == "pcie":
        return "pcie-400g"
    return "nvl72-400g" if domain == 72 else "rail-optimized-400g"


def _routing(routing: Document, found: list[Problem], folder: Path) -> Document:
    """The routing with its load as a profile: a name, `{zipf: x}`, `{trace: FILE}`, or any inline profile."""
    routing = dict(routing)
    load = routing.get("load", "uniform")
    if isinstance(load, str) and load not in catalog.names("profiles") and load in recorded.names("traces"):
        load = {"trace": load}
    routing["load"] = _entry("profiles", load, "routing.load", found, folder)
    return routing


def _router(resolved: Document, found: list[Problem]) -> None:
    """Puts the router that the scenario names into the model, where the rules live."""
    router, model = resolved["routing"].get("router", "model-default"), resolved.get("model")
    if router == "model-default" or not isinstance(model, dict):
        return
    known = catalog.names("routers")
    changes = dict(router) if isinstance(router, dict) else {}
    name = router if isinstance(router, str) else changes.pop("name", changes.get("rule"))
    if name is None:
        found.append(
            Problem("routing.router", f"expected model-default, a name, or {{name: ...}}{nearest_hint('', known)}")
        )
        return
    if name not in known:
        found.append(Problem("routing.router", f"unknown router {shorten(name)!r}{nearest_hint(str(name), known)}"))
        return
    rule = {key: value for key, value in catalog.raw("routers", str(name)).items() if key != "sources"}
    resolved["model"] = {**model, "router": {**rule, **changes}}


def to_yaml(document: Document) -> str:
    """The document as YAML that reads back to itself; what steers a terminal is written as its code."""
    text = _dumped(document, allow_unicode=True)
    return text if visible(text) == text else _dumped(document, allow_unicode=False)


def _dumped(document: Document, allow_unicode: bool) -> str:
    return str(yaml.dump(document, Dumper=_Readable, sort_keys=False, allow_unicode=allow_unicode, width=120))


class _Readable(yaml.SafeDumper):
    """Writes repeated values out, and an empty key as any other."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors."""
        return True

    def check_simple_key(self) -> bool:
        """The key '' fits on its line."""
        empty = isinstance(self.event, yaml.ScalarEvent) and self.event.value == ""
        return empty or bool(super().check_simple_key())
