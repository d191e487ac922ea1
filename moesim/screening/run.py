"""The closed form of many candidates: laws asked once for each distinct key, answers put together with arrays.

C candidates. What depends on little (prices of one token, exchanges of a family of layouts) is asked for all at first;
the rest is worked out in blocks of candidates of similar loads, which bounds the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.garbage import uncollected
from moesim.routing.moments import Moments
from moesim.scenario.scenario import Scenario
from moesim.screening.candidates import Candidates, Choices, Progress, Screened
from moesim.screening.columns import MIRRORED, Columns, Keyed, columns, distinct
from moesim.screening.cutting import Name, layouts
from moesim.screening.exchanges import Families, buffers, families, moved
from moesim.screening.layouts import Layout, Places, cuts
from moesim.screening.loads import Routed, known_moments, routed
from moesim.screening.memory import PARTS, Sizes, memory_parts, sizes
from moesim.screening.once import hop_seconds, once_a_step, updates
from moesim.screening.prices import Asked, Prices, Table, asked, prices
from moesim.screening.reference import is_known, network_of, one_by_one
from moesim.screening.steps import Work, steps
from moesim.screening.unit_prices import Collectives

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
AT_ONCE = 1 << 18
"""Candidates for whom the laws are asked at once."""
BLOCK = 1 << 14
"""Candidates whose answers are put together at once, at most; blocks are of one size, and as many as any number of
workers."""
WORKERS = 2


class _Known(NamedTuple):
    """What all blocks share: what the laws were asked for, by key; `hop` [2, C] seconds of messages."""

    moments: dict[int, Moments]
    families: Families | None
    asked: Asked
    sizes: Sizes
    updates: Keyed
    hop: Floats
    layouts: dict[Name, Layout]


def screen(scenario: Scenario, choices: Choices, candidates: Candidates, progress: Progress | None = None) -> Screened:
    """The closed form of every candidate; all have to be legal.

    `progress(what, share)` hears how far it is.
    """
    count = len(candidates)
    answers = np.zeros((count, 4 + len(PARTS)))
    for first in range(0, count, AT_ONCE):
        mine = slice(first, first + AT_ONCE)

        def report(share: float, first: int = first, mine: slice = mine) -> None:
            if progress is not None:
                progress("screening", (first + share * len(answers[mine])) / count)

        few = candidates.rows(mine)
        if is_known(scenario):
            with uncollected():
                answers[mine] = _screened(columns(scenario, choices, few), report)
        else:
            answers[mine] = one_by_one(scenario, choices, few, report)
    step, exposed, bubble, dropped = answers[:, :4].T
    return Screened(step, exposed, bubble, answers[:, 4:].sum(axis=1), answers[:, 4:], PARTS, dropped)


def _screened(cols: Columns, report: Callable[[float], None]) -> Floats:
    """Answers of some candidates [C, 4 + parts]."""
    answers, rows, known = np.zeros((len(cols), 4 + len(PARTS))), cols.rows, _known(cols)
    order = np.lexsort((rows.pipeline, rows.capacity, cols.tokens, rows.expert_tensor, rows.expert))
    blocks = np.array_split(order, -(-len(cols) // BLOCK))
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        done = pool.map(lambda mine: _block(cols, known, mine), blocks)
        for number, (mine, found) in enumerate(zip(blocks, done, strict=True)):
            answers[mine] = found
            report((number + 1) / len(blocks))
    return answers


def _known(cols: Columns) -> _Known:
    """Asks the laws."""
    moe = cols.scenario.model.is_moe
    moments = known_moments(cols) if moe else {}
    found = families(cols, moments, network_of(cols.scenario)) if moe else None
    prices_asked = asked(cols, found)
    hop = np.stack(hop_seconds(cols, prices_asked.stack))
    return _Known(moments, found, prices_asked, sizes(cols), updates(cols), hop, cols.memo.law("layouts"))


def _block(cols: Columns, known: _Known, mine: Ints) -> Floats:
    """Answers of one block of candidates [N, 4 + parts]."""
    block, prices_asked = cols.part(mine), known.asked.rows(mine)
    found = None if known.families is None else known.families.rows(mine)
    priced, units = prices(block, prices_asked, found), prices_asked.units
    lain, which = layouts(block, priced, known.layouts)
    places = Places(lain)
    load = exchanges = held = None
    if found is not None:
        load = routed(block, units.alone, units.key, places, known.moments)
        exchanges, held = moved(block, found, load), buffers(block, found, load)
    answers = np.zeros((len(mine), 4 + len(PARTS)))
    first, shape = distinct(block.rows.pipeline, block.chunks, block.is_kind(*MIRRORED))
    for number in range(len(first)):
        chosen = np.flatnonzero(shape == number)
        cut, rows = cuts(lain, which[chosen], block.rows.tensor[chosen], places), mine[chosen]
        own, own_sizes, own_load = block.part(chosen), known.sizes.rows(rows), _load(load, chosen)
        own_prices, stack = _prices(priced, chosen), prices_asked.stack[chosen]
        once = once_a_step(own, cut, own_sizes.groups, known.updates.rows(rows), stack)
        own_moved = None if exchanges is None else exchanges._replace(key=exchanges.key[chosen])
        hop, message = known.hop[:, rows]
        work = Work(own_prices, own_load, own_moved, hop, message, once)
        answers[chosen, :3] = np.stack(steps(own, cut, work), axis=-1)
        answers[chosen, 3] = 0.0 if own_load is None else own_load.dropped[own_load.group]
        answers[chosen, 4:] = memory_parts(own, cut, own_sizes, own_load, None if held is None else held.rows(chosen))
    return answers


def _load(found: Routed | None, chosen: Ints) -> Routed | None:
    """The routed rows of some candidates."""
    return None if found is None else found._replace(group=found.group[chosen], cost=found.cost[chosen])


def _prices(found: Prices, chosen: Ints) -> Prices:
    """The prices of some candidates."""
    collectives = Collectives._make(values[chosen] for values in found.alone.collectives)
    table = Table._make([*(values[chosen] for values in found.alone[:4]), collectives])
    return Prices._make([table, *(values[chosen] for values in found[1:])])
