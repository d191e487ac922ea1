"""Attention scores and values (fused kernels): MHA, GQA, MLA; causal or not; forward or backward.

t = base + |products, bytes|_2. Products of the visible (query, key) pairs, a causal triangle counted in tiles: forward
2 (d + v) a pair and head, backward 2 (3 d + 2 v), d and v the widths of a query and a value head. The projections
around them are dense products (`gemm_time`). Coefficients: "kernel-attention".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moesim.costs.kernels.choice import Floats, KernelTime, choose
from moesim.costs.kernels.formats import number_format
from moesim.costs.kernels.gemm import plain, positive, share
from moesim.errors import UnknownNameError, UserError
from moesim.specs.gpu import GpuSpec

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class LatentHeads:
    """The heads of MLA as its kernel sees them; `latent` where keys and values are one tensor."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    latent: bool


def latent_heads(heads: int, nope: int, rope: int, value: int, rank: int, absorbed: bool) -> LatentHeads:
    """MLA with `rank` values of latent a token: absorbed, heads share one key of rank + rope, its rank the value."""
    if absorbed:
        return LatentHeads(heads, 1, rank + rope, rank, True)
    return LatentHeads(heads, heads, nope + rope, value, False)


def attention_time(
    gpu: GpuSpec,
    tokens: Any,
    length: Any,
    heads: Any,
    kv_heads: Any,
    head_dim: Any,
    value_dim: Any,
    causal: bool = True,
    direction: Direction = "forward",
    dtype: str = "bf16",
    measured: str | None = None,
    *,
    sequences: Any = None,
    latent: bool = False,
    free_share: float = 1.0,
    kernel: str | None = None,
    release: str | None = None,
) -> KernelTime:
    """Seconds for `tokens` queries (all sequences together) over `length` keys a sequence; arrays broadcast.

    Without `sequences`: tokens / length of them, or one whose last `tokens` are asked where tokens are fewer (decoding
    states its own number). `latent`: keys and values are one tensor, read once. Raises `UserError`.
    """
    if direction not in ("forward", "backward"):
        raise UnknownNameError("direction", direction, ("forward", "backward"))
    kind, notes = _format(gpu, dtype)
    chosen = choose("kernel-attention", gpu, kind, measured, kernel, release)
    names = {"tokens": tokens, "length": length, "heads": heads, "kv_heads": kv_heads}
    tokens, length, heads, kv_heads = positive(**names)
    width, value = positive(head_dim=head_dim, value_dim=value_dim)
    if np.any(kv_heads > heads):
        raise UserError("kv_heads: must be at most heads")
    count = np.maximum(tokens / length, 1.0) if sequences is None else positive(sequences=sequences)[0]
    pairs = _pairs(tokens, length, count, causal, chosen.values["tile"])
    products = 2.0 * (width + value) if direction == "forward" else 2.0 * (3.0 * width + 2.0 * value)
    work = pairs * heads * products / (chosen.peak * share(free_share) * chosen.values[direction])
    keys = count * length * kv_heads * (width if latent else width + value)
    moved = (tokens * heads * (width + value) + keys) * chosen.kind.weight
    moved = moved * (chosen.values["backward_bytes"] if direction == "backward" else 1.0)
    seconds = chosen.values["base"] + np.hypot(work, moved / (chosen.bandwidth * chosen.values["memory"]))
    answer = chosen.answer(plain(seconds), length=length, head_dim=width)
    return KernelTime(answer.seconds, answer.basis, answer.band, (*notes, *answer.notes))


def _pairs(tokens: Floats, length: Floats, sequences: Floats, causal: bool, tile: float) -> Floats:
    """(query, key) pairs computed: all of them, or those up to each query's own place with its tile of the diagonal."""
    queries = tokens / sequences
    if not causal:
        return tokens * length
    queries = np.minimum(queries, length)
    diagonal = np.minimum(tile, queries) / 2.0
    result: Floats = tokens * np.minimum(length - queries / 2.0 + diagonal, length)
    return result


def _format(gpu: GpuSpec, dtype: str) -> tuple[str, tuple[str, ...]]:
    """Scores run in bf16, or in fp8 where it is asked for and the GPU has it."""
    kind = number_format(dtype)
    if kind.rate == "bf16" and kind.weight == 2.0:
        return kind.name, ()
    if kind.rate == "fp8" and gpu.fp8 is not None:
        return "fp8", () if kind.name == "fp8" else (f"{kind.name}: attention in fp8",)
    return "bf16", (f"{kind.name}: attention in bf16",)
