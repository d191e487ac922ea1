"""What a step costs once: gradient reduction, parameter gathering, the update; and messages between pipeline ranks.

The law of `step.data_parallel`, with the ring laws of every network that occurs. C candidates, P pipeline ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.costs.compute import coefficients
from moesim.costs.memory import gradient_bytes
from moesim.network.collectives import Use, ring_law
from moesim.network.seating import domain_size
from moesim.network.topology import group
from moesim.screening.columns import Columns, Keyed
from moesim.screening.layouts import Cuts
from moesim.step.own_kernels import optimizer_ratio
from moesim.step.prices import Prices

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_SIZES = (1e6, 2e6)
"""Bytes of the two messages by which a straight line is known."""


class Rings(NamedTuple):
    """The groups that sum gradients, of the dense part or of an expert: ranks [C], start and seconds a byte."""

    ranks: Ints
    law: Keyed

    def rows(self, chosen: Ints) -> Rings:
        """Those of some candidates."""
        return Rings(self.ranks[chosen], self.law.rows(chosen))


class Once(NamedTuple):
    """Of every pipeline rank [C, P]: seconds of reduction, gathering and update; and of collectives that sharding
    repeats for every slot, forward and backward. `share` [C]: the least of each collective that nothing hides."""

    reduce: Floats
    gather: Floats
    optimizer: Floats
    ahead: Floats
    back: Floats
    share: Floats


def copies(cols: Columns) -> Ints:
    """How often a pipeline holds every chunk [C]: twice under DualPipe."""
    return np.where(cols.is_kind("dualpipe") & (cols.rows.pipeline > 1), 2, 1)


def rings(cols: Columns) -> tuple[Rings, Rings]:
    """Both kinds of groups that sum gradients."""
    rows = cols.rows
    dense, expert = cols.data * rows.context * copies(cols), cols.expert_data * copies(cols)
    return _rings(cols, dense, rows.tensor), _rings(cols, expert, rows.expert * rows.expert_tensor)


def _rings(cols: Columns, ranks: Ints, stride: Ints) -> Rings:
    use: Use = "fsdp" if cols.scenario.parallelism.data_sharding == "full" else "step"

    def ask(row: int) -> tuple[float, float]:
        cluster = cols.choices.clusters[cols.rows.cluster[row]]
        law = ring_law(group(cluster, int(ranks[row]), stride=int(stride[row]), mirrored=int(mirrored[row])), use)
        return law.alpha, 1.0 / law.rate

    mirrored = np.where(copies(cols) > 1, cols.rows.pipeline, 0)
    return Rings(ranks, cols.keyed(f"ring {use}", ask, cols.rows.cluster, ranks, stride, mirrored))


def hop_seconds(cols: Columns, stack: Floats) -> tuple[Floats, Floats]:
    """Seconds of a message to the neighbouring pipeline rank, and those of it that hold up a slot [C]."""
    rows, interleaved = cols.rows, cols.is_kind("interleaved-1f1b")
    together = (rows.tensor * rows.context, rows.expert * rows.expert_tensor)

    def ask(row: int) -> tuple[float, float]:
        found = []
        for size in _SIZES:
            prices = Prices(cols.scenario_at(row), 0, False)
            prices.hop_bytes = size
            found.append(prices.hop / prices.stack_factor)
        each = (found[1] - found[0]) / (_SIZES[1] - _SIZES[0])
        return found[0] - each * _SIZES[0], each

    # Where a stage fills domains, every message leaves one.
    size = np.array([domain_size(cluster) for cluster in cols.choices.clusters])[rows.cluster]
    inside = cols.gpus // rows.pipeline < size
    keys = (inside * each for each in (*together, interleaved * cols.chunks))
    start, each = cols.keyed("hop", ask, rows.cluster, rows.pipeline, *keys).each.T
    hop = (start + each * 2.0 * cols.tokens * cols.scenario.model.d_model) * stack
    data = [coefficients(cluster.calibration)["pipeline_exposed"] for cluster in cols.choices.clusters]
    hidden = np.array([overlap.pipeline for overlap in cols.choices.overlaps])[rows.overlap]
    return hop, hop * np.where(hidden, np.array(data)[rows.cluster], 1.0)


def held(cols: Columns, cut: Cuts) -> tuple[Floats, Floats]:
    """Parameters on one GPU of each pipeline rank [C, P]: of the dense part and of experts."""
    experts = cols.rows.expert * cols.rows.expert_tensor
    return cut.held[:, :, 0], cut.held[:, :, 1] / experts[:, None]


def once_a_step(cols: Columns, cut: Cuts, groups: tuple[Rings, Rings], updates: Keyed, stack: Floats) -> Once:
    """Seconds of what a step costs once, for candidates of one layout."""
    scenario = cols.scenario
    sharding, parameters = scenario.parallelism.data_sharding, held(cols, cut)
    gradient = gradient_bytes(scenario.precision)

    def passed(size: float) -> Floats:
        """Seconds of a ring through which `size` bytes of every parameter pass."""
        found = np.zeros(parameters[0].shape)
        for ring, count in zip(groups, parameters, strict=True):
            ranks = ring.ranks[:, None]
            volume = count * size * (ranks - 1) / ranks
            start, byte = ring.law.each.T[:, :, None]
            found += np.where(volume > 0.0, start + volume * byte, 0.0)
        return found * stack[:, None]

    nothing = np.zeros(parameters[0].shape)
    update = _update(cols, groups, parameters, updates) * stack[:, None]
    share = _exposed_share(cols)
    if sharding == "full":
        ahead = passed(2.0) / cut.on.shape[1]
        return Once(nothing, nothing, update, ahead, 2.0 * ahead, share)
    if sharding == "gradients":
        return Once(nothing, passed(2.0), update, nothing, passed(gradient) / cut.on.shape[1], share)
    if sharding == "none":
        return Once(2.0 * passed(gradient), nothing, update, nothing, nothing, share)
    return Once(passed(gradient), passed(2.0), update, nothing, nothing, share)


def updates(cols: Columns) -> Keyed:
    """Seconds of the optimizer's update for each parameter, and of starting it."""

    def ask(row: int) -> tuple[float, float]:
        scenario = cols.scenario_at(row)
        data, gpu = coefficients(scenario.cluster.calibration), scenario.cluster.gpu
        rate = data["memory_efficiency"] * gpu.memory_bandwidth
        return float(data["optimizer_bytes"] / rate * optimizer_ratio(scenario)), float(data["optimizer_seconds"])

    return cols.keyed("update", ask, cols.rows.cluster)


def _update(cols: Columns, groups: tuple[Rings, Rings], parameters: tuple[Floats, Floats], law: Keyed) -> Floats:
    """Seconds of the optimizer [C, P]."""
    sharded = cols.scenario.parallelism.data_sharding != "none"
    local = sum(count / (ring.ranks[:, None] if sharded else 1) for ring, count in zip(groups, parameters, strict=True))
    each, start = law.each.T[:, :, None]
    return np.asarray(local * each + start)


def _exposed_share(cols: Columns) -> Floats:
    """The least share of a collective that nothing hides [C]."""
    data = [coefficients(cluster.calibration)["data_parallel_exposed"] for cluster in cols.choices.clusters]
    hidden = np.array([overlap.data_parallel for overlap in cols.choices.overlaps])[cols.rows.overlap]
    return np.where(hidden, np.array(data)[cols.rows.cluster], 1.0)


def exposed(duration: Floats, hidden_behind: Floats, share: Floats) -> Floats:
    """Seconds of collectives [C, P] that compute waits for: what does not fit, at least `share` [C] of each."""
    least = share[:, None]
    return np.where(least < 1.0, np.maximum(least * duration, duration - hidden_behind), duration)


def exposed_by_chunk(cols: Columns, duration: Floats, microbatch: Floats, share: Floats) -> Floats:
    """`step.data_parallel.exposed_by_chunk` of ranks' collectives behind a microbatch's compute [C, P]: only an
    interleaved schedule is done with some chunks of a rank long before the others."""
    chunks = np.where(cols.is_kind("interleaved-1f1b"), cols.chunks, 1)[:, None]
    apart, one = np.minimum(cols.rows.pipeline, cols.microbatches)[:, None], microbatch / chunks
    whole = exposed(duration, ((chunks - 1) * apart + 1) * one, share)
    return np.maximum(exposed(duration / chunks, one, share), whole)
