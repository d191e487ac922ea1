"""Where each candidate's layers are cut: `step.balance` for many, by their own priced seconds.

C candidates, of which equal cuts share a `Layout`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.screening._cut_kernels import search
from moesim.screening.columns import MIRRORED, Columns, distinct
from moesim.screening.layouts import Layout
from moesim.screening.prices import Prices, repeats_experts
from moesim.step.balance import MOVES, STEPS_A_LAYER

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Name = tuple[int, int, bool, tuple[int, ...]]
"""Pipeline ranks, chunks a rank, whether ranks hold mirror images, layers of each chunk."""


def layouts(cols: Columns, found: Prices, known: dict[Name, Layout]) -> tuple[list[Layout], Ints]:
    """The layouts that occur, and which of them each candidate has [C]; `known` ones are not made again."""
    mirrored = cols.is_kind(*MIRRORED)
    keys = (cols.rows.pipeline, cols.chunks, mirrored, *_steps(cols, found))
    first, key = distinct(*keys)
    numbers: dict[Name, int] = {}
    of_key = []
    for row, (stages, chunks, mirrors, *steps) in zip(first, np.stack(keys, axis=-1)[first].tolist(), strict=True):
        sizes = _sizes(cols, int(stages), int(stages * chunks), bool(mirrors), tuple(steps))
        name = (stages, chunks, bool(mirrors), sizes)
        if name not in known:
            scenario = cols.scenario_at(int(row))
            stated = scenario.stack_options.model_copy(update={"pipeline_layout": sizes})
            known[name] = Layout(scenario.model_copy(update={"stack_options": stated}))
        of_key.append(numbers.setdefault(name, len(numbers)))
    return [known[name] for name in numbers], np.array(of_key)[key]


def _sizes(cols: Columns, stages: int, count: int, mirrored: bool, steps: tuple[int, ...]) -> tuple[int, ...]:
    """Layers of each of `count` chunks."""
    stated, model = cols.scenario.stack_options.pipeline_layout, cols.scenario.model
    if stated is not None and len(stated) == count:
        return stated
    if not any(steps):
        return (model.layers // count,) * count
    return cut_layers(model.layer_kinds, stages, count, mirrored, steps)


@lru_cache(maxsize=1 << 16)
def cut_layers(
    kinds: tuple[str, ...], stages: int, count: int, mirrored: bool, steps: tuple[int, ...]
) -> tuple[int, ...]:
    """The cut of `step.balance` for work in parts of a layer: of a dense and an MoE layer, before the first and behind
    the last."""
    dense, moe, before, behind = (step / STEPS_A_LAYER for step in steps)
    layers = np.array([moe if kind == "moe" else dense for kind in kinds])
    rank_of = np.arange(count) % stages
    if mirrored:
        rank_of = np.minimum(np.arange(count), count - 1 - np.arange(count))
    sizes = np.zeros(count, dtype=np.int64)
    search(layers, np.array([before, behind, np.mean(layers)]), rank_of, MOVES, sizes)
    return tuple(sizes.tolist())


def _steps(cols: Columns, found: Prices) -> tuple[Ints, ...]:
    """Work of a dense and an MoE layer, and of what stands before the first layer and behind the last, in parts of the
    heaviest layer, as `step.balance.weights` has it; nothing where layers are cut evenly."""
    model, again = cols.scenario.model, repeats_experts(cols)
    dense, moe, embedding, head = found.layers.T
    exchanges = (2 + again) * found.exchange
    moe = np.where(cols.paired, np.maximum(moe, exchanges), moe + exchanges)
    seconds = {"dense": dense, "moe": moe}
    behind = model.mtp_layers * seconds[model.layer_kinds[-1]] + (1 + model.mtp_layers) * head
    unit = np.max([seconds[kind] for kind in set(model.layer_kinds)], axis=0) / STEPS_A_LAYER
    parts = (np.round(each / unit).astype(np.int64) for each in (dense, moe, embedding, behind))
    return tuple(np.where(cols.cut_evenly, 0, each) for each in parts)
