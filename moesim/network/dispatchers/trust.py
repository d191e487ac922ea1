"""How far a law's answer can be trusted: inside its range its own residual, outside a wide band and the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moesim.network.coefficients import Law
from moesim.network.dispatchers.base import Payload
from moesim.network.topology import GroupNetwork
from moesim.provenance import Basis, worst


@dataclass(frozen=True)
class Trust:
    """Basis and relative range of a law's answer, with the reasons where it is weaker than its fit."""

    basis: Basis
    relative: float
    notes: tuple[str, ...]


def trust(fitted: Law, group: GroupNetwork, payload: Payload, multiprocessors: int, unfit: str | None = None) -> Trust:
    """Basis, relative range and notes of `fitted` for this group, payload and number of SMs; `unfit` is a reason of the
    dispatcher's own why the law is asked too much."""
    doubts = [*_doubts(fitted, group, payload, multiprocessors), *([unfit] if unfit else [])]
    notes = [f"{fitted.name}: outside its fit: {doubt}" for doubt in doubts]
    if group.domains > group.law("common").value("fabric_free_domains"):
        notes.append(f"{group.domains} domains: fabric assumed non-blocking")
    if not doubts:
        return Trust(worst([fitted.basis, group.basis]), fitted.band, tuple(notes))
    band = max(fitted.band, fitted.band_elsewhere)
    if _is_proxied(fitted, group):
        band = max(band, group.law("proxied").band)
    return Trust("assumed", band, tuple(notes))


def collective_trust(group: GroupNetwork) -> Trust:
    """Basis, relative range and notes of the collectives' and the plain all-to-all's laws on this group."""
    if group.ranks == 1:
        return Trust("derived", 0.0, ())
    name = "nccl-fabric" if group.domains > 1 else "nccl-domain"
    return trust(group.law(name), group, Payload(0.0, 0.0), 0)


def _doubts(fitted: Law, group: GroupNetwork, payload: Payload, multiprocessors: int) -> Iterator[str]:
    """One clause for every condition of the fit that does not hold."""
    valid = fitted.valid
    if group.generation not in valid.get("generations", [group.generation]):
        yield f"{group.generation} GPUs"
    if group.kind not in valid.get("kinds", [group.kind]):
        yield f"{group.kind} links between GPUs"
    if group.domains > valid.get("most_domains", group.domains):
        yield f"more than {valid['most_domains']} domains"
    if group.domains in valid.get("weak_domains", []):
        yield f"{group.domains} domains, where kernels fall short of their rate"
    if group.ranks > valid.get("most_ranks", group.ranks):
        yield f"more than {valid['most_ranks']} ranks"
    if group.ranks_per_domain not in valid.get("domain_sizes", [group.ranks_per_domain]):
        yield f"{group.ranks_per_domain} ranks a domain"
    if group.ranks_per_domain in valid.get("weak_domain_sizes", []):
        yield f"{group.ranks_per_domain} ranks a domain, where kernels fall short of their rate"
    if _is_proxied(fitted, group):
        yield "interfaces driven by a processor's proxy thread, bound by their message rate"
    if multiprocessors < valid.get("least_multiprocessors", 0):
        yield f"fewer than {valid['least_multiprocessors']} SMs"
    if _is_narrow(payload, valid.get("narrow")):
        yield f"hidden {payload.hidden} with top-{payload.top_k}"


def _is_proxied(fitted: Law, group: GroupNetwork) -> bool:
    """Whether kernels fitted on interfaces that the GPU drives meet others here."""
    driven = fitted.valid.get("proxied_interfaces", True) is False
    return driven and group.domains > 1 and group.fabric.message_seconds is not None


def _is_narrow(payload: Payload, limit: dict[str, Any] | None) -> bool:
    """Small tokens with few choices, where fixed costs a message rule."""
    if limit is None or payload.hidden is None or payload.top_k is None:
        return False
    return bool(payload.hidden <= limit["hidden"] and payload.top_k <= limit["top_k"])
