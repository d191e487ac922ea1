"""Redundant experts: busy experts held several times, packed so that ranks and domains are equally busy.

The published algorithm of DeepSeek's Expert Parallelism Load Balancer (github.com/deepseek-ai/EPLB, README; DeepSeek-V3
report, section 3.4), written anew from its description. Hierarchical: whole router groups are packed onto domains,
experts replicated inside their domain, replicas packed onto its ranks. Global: the same with one group and one domain.

L layers, E experts, P slots, R ranks, G router groups, B blocks: parts of the cluster that hold their own groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UserError
from moesim.placement.packing import pack
from moesim.placement.placement import check_ranks

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def replicate(loads: NDArray[np.number], slots: int) -> tuple[Integers, Floats]:
    """Expert of each of `slots` slots [L, slots], and the load that one replica takes [L, slots], of loads [L, E].

    One slot an expert, and then slot by slot to the expert whose replicas have most to do: no other choice of replica
    counts leaves the busiest replica with less.
    """
    work: Floats = np.asarray(loads, np.float64)
    layers, experts = work.shape
    row = np.arange(layers)
    counts = np.ones((layers, experts))
    found = np.empty((layers, slots), np.int64)
    found[:, :experts] = np.arange(experts)
    for slot in range(experts, slots):
        busiest = np.argmax(work / counts, axis=-1)
        found[:, slot] = busiest
        counts[row, busiest] += 1.0
    return found, np.take_along_axis(work / counts, found, axis=-1)


def replicate_globally(loads: NDArray[np.number], ranks: int, redundant: int) -> Integers:
    """Expert of each slot [L, P]: replicas wherever they balance ranks best."""
    return replicate_by_group(loads, ranks, redundant, groups=1, blocks=1)


def replicate_by_group(loads: NDArray[np.number], ranks: int, redundant: int, *, groups: int, blocks: int) -> Integers:
    """Expert of each slot [L, P]: each block, R/B consecutive ranks, holds G/B whole groups of contiguous experts.

    Raises `UserError` where groups, blocks or slots do not divide.
    """
    loads = np.asarray(loads, np.float64)
    layers, experts = loads.shape
    slots = check_ranks(experts + redundant, ranks)
    if experts % groups or groups % blocks or ranks % blocks:
        raise UserError(f"{groups} groups of {experts} experts do not fall evenly into {blocks} parts of {ranks} ranks")
    size = experts // groups
    home = pack(loads.reshape(layers, groups, size).sum(axis=-1), blocks)
    # experts by block [L, B, E/B], each block then treated as a layer of its own
    names = (home[..., None] * size + np.arange(size)).reshape(layers * blocks, -1)
    inside = np.take_along_axis(np.repeat(loads, blocks, axis=0), names, axis=-1)
    replica, work = replicate(inside, slots * ranks // blocks)
    packed = pack(work, ranks // blocks).reshape(layers * blocks, -1)
    chosen = np.take_along_axis(replica, packed, axis=-1)
    return np.take_along_axis(names, chosen, axis=-1).reshape(layers, -1)


def blocks_for(groups: int, domains: int) -> int:
    """In how many parts a cluster of `domains` keeps `groups` apart: whole groups a domain, or whole domains a group.

    Raises `UserError` where neither number divides the other.
    """
    if groups % domains and domains % groups:
        raise UserError(
            f"{groups} router groups and {domains} domains: one number must divide the other"
            " to keep groups apart; strategy global does without"
        )
    return min(groups, domains)
