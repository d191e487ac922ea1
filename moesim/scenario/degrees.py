"""Which degrees and counts would do, for messages about those that do not."""

from __future__ import annotations

from collections.abc import Iterable

from moesim.specs.model import ModelSpec

_MOST_LISTED = 12


def undivided(model: ModelSpec, tensor: int) -> list[str]:
    """What of a model does not divide over `tensor` ranks, in words.

    Key-value heads divide, or divide the ranks, equally many of which then hold the same head. A vocabulary need not:
    stacks fill it up.
    """
    heads, wide = model.kv_heads, max(model.kv_heads, tensor)
    dense = (model.d_ff_dense or 0) if "dense" in model.layer_kinds or model.dense_beside_experts else 0
    found = [f"{model.n_heads} attention heads"] if model.n_heads % tensor else []
    if model.mla is None and wide % min(heads, tensor):
        found.append(f"{heads} key-value heads")
    if dense % tensor:
        found.append(f"the dense layers' width {dense}")
    if model.is_moe and model.shared_expert_width % tensor:
        found.append(f"the shared experts' width {model.shared_expert_width}")
    return found


def divisors(number: int) -> list[int]:
    """All divisors of `number`, ascending."""
    small = [one for one in range(1, int(number**0.5) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})


def nearest_multiple(count: int, unit: int) -> int:
    """The multiple of `unit` nearest to `count`, at least one of it."""
    return max(unit, (count + unit // 2) // unit * unit)


def choices(allowed: Iterable[int], wanted: int) -> str:
    """A clause that lists what is allowed and the nearest of it; empty where nothing is."""
    listed = sorted(allowed)
    if not listed:
        return ""
    shown = ", ".join(str(one) for one in listed[:_MOST_LISTED])
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return f"; allowed: {shown}{more}; nearest: {min(listed, key=lambda one: (abs(one - wanted), one))}"
