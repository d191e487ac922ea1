"""Where each candidate's layers are cut: `step.balance` for many, by their own priced seconds.

C candidates, of which equal cuts share a `Layout`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.screening._cut_kernels import search_all
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
    table = np.stack(keys, axis=-1)[first]
    numbers: dict[Name, int] = {}
    of_key = []
    for row, key_row, sizes in zip(first, table.tolist(), _sizes(cols, table), strict=True):
        name = (*key_row[:2], bool(key_row[2]), sizes)
        if name not in known:
            scenario = cols.scenario_at(int(row))
            stated = scenario.stack_options.model_copy(update={"pipeline_layout": sizes})
            known[name] = Layout(scenario.model_copy(update={"stack_options": stated}))
        of_key.append(numbers.setdefault(name, len(numbers)))
    return [known[name] for name in numbers], np.array(of_key)[key]


def _sizes(cols: Columns, table: Ints) -> list[tuple[int, ...]]:
    """Layers of each chunk, for rows of pipeline ranks, chunks a rank, whether mirrored, and steps [K, 7]."""
    kept, model = cols.scenario.stack_options.pipeline_layout, cols.scenario.model
    counts = table[:, 0] * table[:, 1]
    searched = np.asarray(table[:, 3:].any(axis=1))
    if kept:
        searched = searched & (counts != len(kept))
    found = iter(cut_layers(model.layer_kinds, table[searched]))
    return [
        next(found) if looked else kept if kept and len(kept) == count else (model.layers // count,) * count
        for looked, count in zip(searched.tolist(), counts.tolist(), strict=True)
    ]


def cut_layers(kinds: tuple[str, ...], table: Ints) -> list[tuple[int, ...]]:
    """The cuts of `step.balance`, for rows [K, 7] of pipeline ranks, chunks a rank, whether ranks hold mirror images,
    and work in parts of a layer: of a dense and an MoE layer, before the first and behind the last."""
    stages, counts = np.ascontiguousarray(table[:, 0]), table[:, 0] * table[:, 1]
    work = table[:, 3:] / STEPS_A_LAYER
    layers = np.ascontiguousarray(work[:, [int(kind == "moe") for kind in kinds]])
    ends = np.column_stack([work[:, 2:], layers.mean(axis=-1)])
    sizes = np.zeros((len(table), counts.max(initial=0)), dtype=np.int64)
    search_all(layers, ends, stages, counts, np.ascontiguousarray(table[:, 2]), MOVES, sizes)
    return [tuple(row[:count]) for row, count in zip(sizes.tolist(), counts.tolist(), strict=True)]


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
