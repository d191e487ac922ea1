"""The operations of every kind of slot of a schedule, as the compiled walk reads them.

K kinds of slots, O operations of all templates; kinds of slots whose chunks are made alike share a template.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.routing._kernels import Floats
from moesim.screening._walk_kernels import CHAIN, EXPERTS, ONE_SIDE, TWO_SIDES, Slots, Steps
from moesim.screening.layouts import Layout, Plan
from moesim.step.operations import Aside, Operation, Recompute, one_chain, slot_operations

NUMBERS = {
    "router": 2,
    "dense": 3,
    "shared": 4,
    "embedding": 5,
    "head": 6,
    "experts": EXPERTS,
    "dispatch": EXPERTS + 1,
    "combine": EXPERTS + 2,
}
"""Of operations, as `prices.OPERATIONS` has them; an attention's is 1 in a layer of experts, else 0."""
SIDES = ("forward", "backward", "weight")
Template = tuple[Steps, Floats, int]
"""The operations of a slot, which share of the whole operation each is, and how they hang together."""

_TEMPLATES: dict[object, dict[tuple[object, ...], Template]] = {}
"""By the kinds of a model's layers and the make of a slot's chunks: the same whatever the layout."""


def slots(layout: Layout, made: Plan, recompute: Recompute, aside: Aside) -> Slots:
    """What each kind of slot of a plan does on a layout; worked out once."""
    name = (made.name, recompute, aside)
    if name not in layout.memo:
        layout.memo[name] = _slots(layout, made, recompute, aside)
    found: Slots = layout.memo[name]
    return found


def _slots(layout: Layout, made: Plan, recompute: Recompute, aside: Aside) -> Slots:
    none, makes = len(layout.chunks), [*layout.makes, None]
    shared = _TEMPLATES.setdefault((layout.kinds, recompute, aside), {})
    known: dict[tuple[object, ...], int] = {}
    found: list[Template] = []
    template = []
    for ahead, back, weight in made.kinds.tolist():
        weighs = weight < none
        owed = weight if back == none else none
        name = (makes[ahead], makes[back], makes[owed], weighs)
        if name not in known:
            if name not in shared:
                shared[name] = _template(layout, (ahead, back, owed), weighs, recompute, aside)
            known[name] = len(found)
            found.append(shared[name])
        template.append(known[name])
    return Slots(
        np.concatenate([rows for rows, _, _ in found]),
        np.concatenate([shares for _, shares, _ in found]),
        np.cumsum([0, *(len(rows) for rows, _, _ in found)]),
        np.array([shape for _, _, shape in found]),
        np.array(template),
        np.ascontiguousarray(np.append(layout.first, 0)[made.kinds]),
    )


def _template(
    layout: Layout, chunks: tuple[int, int, int], weighs: bool, recompute: Recompute, aside: Aside
) -> Template:
    """The operations of a slot of these chunks, which `weighs` its weight gradients itself or leaves them owed."""
    none = len(layout.chunks)
    own = aside if weighs or chunks[1] == none else replace(aside, weights=False)
    ahead, back, owed = (layout.chunks[chunk] if chunk < none else None for chunk in chunks)
    operations = slot_operations(ahead, back, owed, layout.kinds, recompute, own)
    rows = [_coded(layout, one, chunks, not weighs or aside.weights) for one in operations]
    shares = np.array([one.share for one in operations])
    several = len({one.side for one in operations}) > 1
    shape = CHAIN if one_chain(operations) else TWO_SIDES if several else ONE_SIDE
    return np.array(rows, dtype=np.int32).reshape(-1, 7), shares, shape


def _coded(layout: Layout, one: Operation, chunks: tuple[int, int, int], deferred: bool) -> tuple[int, ...]:
    """One operation as numbers: see `Slots`."""
    moe = one.layer >= 0 and layout.kinds[one.layer] == "moe"
    what = int(moe) if one.kind == "attention" else NUMBERS[one.kind]
    phase = {"backward": 1 if deferred else 2, "weight": 3}.get(one.phase, 0)
    side = SIDES.index(one.side)
    place = int(layout.moe_before[one.layer] - layout.first[chunks[side]]) if moe else 0
    after = one.after[0] if one.after else -1
    return what, phase, int(one.stream == "communication"), side, after, int(one.exit), place
