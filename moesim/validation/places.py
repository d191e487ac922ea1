"""The hardware that a case names: a GPU of the catalog or a changed one, and the network of a group of ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import ValidationError

from moesim import catalog
from moesim.errors import ScenarioError, UserError, shorten
from moesim.network.topology import GroupNetwork, group
from moesim.specs.base import SourcedSpec
from moesim.specs.cluster import ClusterSpec, FabricSpec
from moesim.specs.explain import explain
from moesim.specs.gpu import GpuSpec
from moesim.validation.ops import GroupOp
from moesim.validation.words import gpu_name

NO_FABRIC = "none"
_Spec = TypeVar("_Spec", bound=SourcedSpec)


def gpu_of(named: str | Mapping[str, Any]) -> GpuSpec:
    """The GPU of a case; raises `UserError`."""
    return _gpu(_text(named))


def gpu_label(named: str | Mapping[str, Any]) -> str:
    """What a table calls it: the catalog's name, where there is one."""
    told = named.get("name") or named.get("base") or "inline" if isinstance(named, Mapping) else named
    name = shorten(told)
    try:
        return gpu_name(name)
    except UserError:
        return shorten(name, 60)


def _text(named: str | Mapping[str, Any]) -> str:
    """A name, or what is written in its place, as JSON: hashable, and never one for the other."""
    return json.dumps(named, sort_keys=True, default=str)


@lru_cache(maxsize=256)
def _gpu(text: str) -> GpuSpec:
    given = json.loads(text)
    if isinstance(given, str):
        return catalog.load("gpus", gpu_name(given))
    changes = {key: value for key, value in given.items() if key != "base"}
    if "base" in given:
        name = gpu_name(str(given["base"]))
        changes = catalog.derive({"name": name, **catalog.raw("gpus", name)}, changes, "the case")
    return _checked(GpuSpec, changes, "gpu")


@lru_cache(maxsize=256)
def _fabric(text: str) -> FabricSpec:
    given = json.loads(text)
    if isinstance(given, str):
        return catalog.load("fabrics", given)
    changes = {key: value for key, value in given.items() if key != "base"}
    if "base" in given:
        name = str(given["base"])
        changes = catalog.derive({"name": name, **catalog.raw("fabrics", name)}, changes, "the case")
    return _checked(FabricSpec, changes, "fabric")


def _checked(spec: type[_Spec], data: dict[str, Any], where: str) -> _Spec:
    try:
        return spec.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(explain(error, spec), f"op.{where}") from error


def network_of(op: GroupOp, calibration: str | None) -> GroupNetwork:
    """The links among the ranks of a case; the cluster is as large as the group, and without another load."""
    fabric = None if op.fabric is None else _text(op.fabric)
    inside = op.ranks_per_domain or (op.ranks // op.nodes if op.nodes else None)
    return _network(_text(op.gpu), op.ranks, inside, op.nic, op.nics_per_domain, fabric, calibration)


@lru_cache(maxsize=1024)
def _network(
    gpu_text: str,
    ranks: int,
    inside: int | None,
    nic: float | None,
    nics: int | None,
    fabric_text: str | None,
    calibration: str | None,
) -> GroupNetwork:
    gpu = _gpu(gpu_text)
    domain = inside or gpu.gpus_per_domain
    if ranks <= domain:
        # A mesh or torus has the links of its whole domain, however few ranks of it are in the group.
        domain = max(gpu.gpus_per_domain, ranks)
    fabric = _fabric(fabric_text or _text(NO_FABRIC if ranks <= domain else usual_fabric(gpu)))
    if gpu.scale_up_kind == "none" and ranks > 1:
        domain, fabric = 1, _fabric(fabric_text or _text("single-switch"))
    cluster = ClusterSpec(
        gpu=gpu,
        gpus=ranks,
        fabric=fabric,
        gpus_per_domain=domain,
        nic_bandwidth=nic if nic is not None else (None if fabric_text else gpu.nic_bandwidth),
        nics_per_domain=nics,
        calibration=calibration,
    )
    return group(cluster, ranks)


def usual_fabric(gpu: GpuSpec) -> str:
    """The fabric where a case names none: rails, for PCIe boxes a tree."""
    if gpu.scale_up_kind == "torus":
        return f"tpu-torus-{gpu.torus_dimensions or 2}d"
    if gpu.scale_up_kind == "pcie":
        return "pcie-400g"
    return "nvl72-400g" if gpu.gpus_per_domain == 72 else "rail-optimized-400g"
