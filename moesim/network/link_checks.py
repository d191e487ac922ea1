"""What is wrong with a cluster's links that no single one of them shows: nodes and ways that do not exist."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moesim.errors import InfeasibleError, Problem, nearest_hint
from moesim.network.crossing import Seats, crossing
from moesim.network.handwritten import MOST_PLACES, Router, router, wires
from moesim.network.topology import torus
from moesim.specs.cluster import TREES, ClusterSpec
from moesim.specs.links import DegradedSpec, nodes


def problems(cluster: ClusterSpec) -> list[Problem]:
    """All problems of the cluster's hand-written and degraded links; none where it has neither."""
    faults = (found for index, spec in enumerate(cluster.degraded) for found in _fault(index, spec, cluster))
    return [*_written(cluster), *faults]


def _written(cluster: ClusterSpec) -> Iterator[Problem]:
    """The hand-written network joins all GPUs of the cluster, and no others."""
    fabric = cluster.fabric
    if fabric.kind != "links":
        return
    beyond = [found for index in range(len(fabric.links)) for found in _beyond(index, cluster)]
    yield from beyond
    if (cluster.nic_bandwidth or fabric.nic_bandwidth) is not None:
        where = "cluster.nic_bandwidth" if cluster.nic_bandwidth is not None else "cluster.fabric.nic_bandwidth"
        yield Problem(where, "says nothing here: hand-written links state their own bandwidth")
    if (cluster.nics_per_domain or fabric.nics_per_domain) is not None:
        yield Problem("cluster.nics_per_domain", "says nothing here: write the NICs that GPUs share as nodes")
    if cluster.oversubscription is not None or fabric.oversubscription > 1:
        where = "cluster.oversubscription" if cluster.oversubscription else "cluster.fabric.oversubscription"
        yield Problem(where, "says nothing here: write the uplinks of each switch with their bandwidth and count")
    one_way = [] if beyond else list(_one_way(cluster))
    yield from one_way
    if not (beyond or one_way) and cluster.domains > 1:
        yield from _cut(cluster)


def _one_way(cluster: ClusterSpec) -> Iterator[Problem]:
    """GPUs that links lead out of and none into, or the other way round."""
    found = wires(cluster.fabric.links, (), cluster.gpus)
    rates = found.gpu_rates(found.healthy) > 0
    for column, has, lacks in ((0, "out of", "into"), (1, "into", "out of")):
        lost = np.flatnonzero(rates[:, column] & ~rates[:, 1 - column])
        if len(lost):
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            what = f"gpu{lost[0]}{more}: links lead {has} it, none {lacks} it; a second link, or one_way: false"
            yield Problem("cluster.fabric.links", what)


def _beyond(index: int, cluster: ClusterSpec) -> Iterator[Problem]:
    for text in cluster.fabric.links[index].between:
        end = nodes(text)
        if end.are_gpus and (end.last or 0) >= cluster.gpus:
            yield Problem(
                f"cluster.fabric.links.{index}.between",
                f"{text}: the cluster has {cluster.gpus} GPUs; allowed: gpu0-{cluster.gpus - 1}; nearest: "
                f"{'gpu' if (end.first or 0) >= cluster.gpus - 1 else f'gpu{end.first}-'}{cluster.gpus - 1}",
            )


def _cut(cluster: ClusterSpec) -> Iterator[Problem]:
    """GPUs that no way joins."""
    where, found = "cluster.fabric.links", router(cluster.fabric.links, (), cluster.gpus)
    if int(found.place.max()) >= MOST_PLACES:
        reason = "GPUs joined to GPUs" if found.direct else "sets of switches that GPUs hang at"
        yield Problem(where, f"more than {MOST_PLACES} {reason}; state a kind of fabric, or join GPUs to fewer of them")
        return
    gpu = np.arange(cluster.gpus)
    hand_over = cluster.gpus_per_domain > 1 and cluster.gpu.scale_up_kind in ("nvlink", "xgmi", "pcie")
    try:
        crossing(found, Seats(gpu, gpu // cluster.gpus_per_domain, hand_over))
    except InfeasibleError as error:
        ends = _dead_ends(found)
        hint = f"; switches with one neighbour: {', '.join(ends[:4])}" if ends else ""
        yield Problem(where, str(error).split(";")[0] + hint)


def _dead_ends(found: Router) -> list[str]:
    """Switches that lead nowhere on: often a misspelt name."""
    wire = found.wires
    near: dict[int, set[int]] = {}
    for here, there in zip(wire.source.tolist(), wire.target.tolist(), strict=True):
        near.setdefault(here, set()).add(there)
        near.setdefault(there, set()).add(here)
    return [wire.names[node] for node, others in near.items() if node >= wire.gpus and len(others) == 1]


def _fault(index: int, spec: DegradedSpec, cluster: ClusterSpec) -> Iterator[Problem]:
    """A degraded link is one that the cluster has."""
    where, kind = f"cluster.degraded.{index}", cluster.fabric.kind
    if spec.gpu is not None and spec.gpu >= cluster.gpus:
        yield _too_large(f"{where}.gpu", spec.gpu, cluster.gpus, "GPUs")
    if spec.between is not None:
        yield from _between(where, spec.between, cluster)
    elif spec.link == "nic" and kind in ("torus", "none"):
        yield Problem(where, f"a fabric of kind {kind} has no NICs; allowed: scale-up")
    elif spec.link == "scale-up" and not _has_scale_up(cluster):
        yield Problem(where, f"{cluster.gpu.name} in domains of {cluster.gpus_per_domain} has no scale-up links")
    elif spec.link == "uplink":
        yield from _uplink(where, spec, cluster)
    elif spec.link == "plane" and kind != "dual-plane":
        yield Problem(where, f"a fabric of kind {kind} has no planes; allowed: kind dual-plane")
    elif spec.plane is not None and spec.plane >= 2:
        yield _too_large(f"{where}.plane", spec.plane, 2, "planes")


def _uplink(where: str, spec: DegradedSpec, cluster: ClusterSpec) -> Iterator[Problem]:
    fabric = cluster.fabric
    if fabric.kind not in TREES:
        by_name = "; name a hand-written link as between: [NODE, NODE]" if fabric.kind == "links" else ""
        yield Problem(where, f"a fabric of kind {fabric.kind} has no uplinks; allowed: {', '.join(TREES)}{by_name}")
        return
    blocks = -(-cluster.domains // fabric.leaf_ports)
    gpus = cluster.gpus_per_domain
    rails = min(cluster.nics_per_domain or fabric.nics_per_domain or gpus, gpus)
    leaves = blocks * (rails if fabric.kind == "rail-optimized" else 1)
    if spec.leaf is not None and spec.leaf >= leaves:
        yield _too_large(f"{where}.leaf", spec.leaf, leaves, "leaf switches")
    if spec.pod is not None and fabric.levels < 3:
        yield Problem(f"{where}.pod", "a tree of two levels has no pods; allowed: leaf, or cluster.fabric.levels: 3")
    elif spec.pod is not None and spec.pod >= -(-blocks // fabric.pod_leaves):
        yield _too_large(f"{where}.pod", spec.pod, -(-blocks // fabric.pod_leaves), "pods")


def _between(where: str, between: tuple[str, str], cluster: ClusterSpec) -> Iterator[Problem]:
    """Links by their ends are hand-written, or those of a mesh or torus."""
    where = f"{where}.between"
    ends = [nodes(text) for text in between]
    if cluster.fabric.kind == "links":
        known = wires(cluster.fabric.links, (), cluster.gpus)
        unknown = [name for end in ends for name in end.names if name not in known.names]
        yield from (Problem(where, f"no node {name}{nearest_hint(name, known.names)}") for name in unknown[:3])
        pairs = {frozenset((known.names[a], known.names[b])) for a, b in zip(known.source, known.target, strict=True)}
        joined = any(frozenset((one, other)) in pairs for one in ends[0].names for other in ends[1].names)
        if not unknown and not joined and not _by_gpu(cluster):
            yield Problem(where, f"no link joins {between[0]} and {between[1]}")
    elif not _by_gpu(cluster):
        yield Problem(
            where,
            f"names hand-written links, or links of a mesh or torus of GPUs; {cluster.gpu.name} on"
            f" {cluster.fabric.name} has neither; allowed: link: nic, scale-up, uplink or plane",
        )
    elif not all(end.are_gpus and (end.last or 0) < cluster.gpus for end in ends):
        yield Problem(where, f"{between[0]} and {between[1]} must be GPUs; allowed: gpu0-{cluster.gpus - 1}")
    else:
        yield from _neighbours(where, between, cluster)


def _neighbours(where: str, between: tuple[str, str], cluster: ClusterSpec) -> Iterator[Problem]:
    """The mesh or torus has a link between some of the GPUs."""
    size = cluster.gpus if cluster.fabric.kind == "torus" else cluster.gpus_per_domain
    one, other = (range(end.first or 0, (end.last or 0) + 1) for end in map(nodes, between))
    pairs = [(a, b) for a in one for b in other if a != b and a // size == b // size]
    if not pairs:
        yield Problem(where, f"no link joins {between[0]} and {between[1]}: they share no domain")
        return
    if cluster.fabric.kind != "torus" and cluster.gpu.scale_up_kind != "torus":
        return
    machine = torus(cluster)
    near = machine.neighbours
    if not any((near[a % size] == b % size).any() for a, b in pairs):
        beside = np.unique(near[pairs[0][0] % size]) + pairs[0][0] // size * size
        next_to = ", ".join(f"gpu{chip}" for chip in beside if 0 <= chip < cluster.gpus)
        shape = " x ".join(map(str, machine.shape))
        yield Problem(
            where,
            f"{between[0]} and {between[1]} are no neighbours on the torus of {shape};"
            f" neighbours of gpu{pairs[0][0]}: {next_to}",
        )


def _by_gpu(cluster: ClusterSpec) -> bool:
    """Whether links join GPUs one by one."""
    return cluster.fabric.kind == "torus" or (cluster.gpu.scale_up_kind in ("xgmi", "torus") and _has_scale_up(cluster))


def _has_scale_up(cluster: ClusterSpec) -> bool:
    if cluster.fabric.kind == "torus":
        return cluster.gpus > 1
    return cluster.gpu.scale_up_kind != "none" and cluster.gpus_per_domain > 1


def _too_large(where: str, number: int, count: int, what: str) -> Problem:
    return Problem(where, f"{number}: the cluster has {count} {what}; allowed: 0 to {count - 1}; nearest: {count - 1}")
