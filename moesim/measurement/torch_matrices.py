"""Matrix products and whole expert layers, ready to be timed.

T tokens, K choices, H hidden width, I expert width, E local experts, R rows of all local experts, M rows of the buffer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.measurement.loads import busiest, expert_rows
from moesim.measurement.plan import Words
from moesim.measurement.torch_door import Tensor, functional, torch
from moesim.measurement.torch_inputs import Inputs, Prepared
from moesim.measurement.torch_products import Grouped, dense, ends_of, grouped, high

ALIGNED = 16
_FACTORS = 3
"""Matrices of a gated expert: gate, up, down."""


def prepare_gemm(op: Words, inputs: Inputs) -> Prepared:
    """x [m, k] times w [n, k]^T; where the format is cast into, the cast of x is a part of it."""
    m, n, k, dtype = op["m"], op["n"], op["k"], op["dtype"]
    way, wide = dense(dtype, inputs.device), high(dtype)
    width = torch.empty((), dtype=wide).element_size()
    held = width * (m * k + n * k + m * n) + (n + m) * k * way.casts
    scales, calls, products = way.scales(m, n, k), [], []
    for at in range(inputs.sets(held)):
        x = inputs.draw(f"x{at}", (m, k), wide)
        w = way.cast(inputs.draw(f"w{at}", (n, k), wide, 1.0 if way.casts else k**-0.5))
        calls.append(lambda x=x, w=w: way.multiply(way.cast(x), w, *scales))
        if way.casts:
            ready = way.cast(x)
            products.append(lambda x=ready, w=w: way.multiply(x, w, *scales))
    kernel = f"{way.kernel}, static cast included" if way.casts else way.kernel
    return Prepared(calls, {"kernel": kernel}, products=products)


@dataclass(frozen=True)
class Layer:
    """One set of an expert layer: tokens x [T, H], the token of each row [M], the rows of each token [T, K] (M - 1
    where a choice is no local expert's), their weights [T, K], and both weight tensors [E, 2 I, H], [E, H, I]."""

    x: Tensor
    token: Tensor
    place: Tensor
    share: Tensor
    one: Tensor
    two: Tensor


def prepare_experts(op: Words, inputs: Inputs) -> Prepared:
    """Permute, first product, gated activation, second product and weighted sum, on the busiest rank's experts.

    Every token of the group is presented to the rank, as after an all-gather.
    """
    tokens, hidden, top_k, dtype = op["tokens"], op["hidden"], op["top_k"], op["dtype"]
    inner = op["inter"] // op["expert_tensor"]
    drawn = expert_rows(op["load"], tokens, top_k, op["experts"], inputs.numbers("load"))
    rows: list[int] = busiest(drawn, op["expert_parallel"]).tolist()
    way = grouped(dtype, inputs.device)
    columns = {"kernel": f"{way.kernel}, torch passes", "rows": json.dumps(rows, separators=(",", ":"))}
    active = sum(count > 0 for count in rows)
    matrix = _FACTORS * hidden * inner * (1 if way.casts else high(dtype).itemsize)
    # A cast tensor stands beside the one it is made from.
    weights = len(rows) * matrix * (3 if way.casts else 1)
    passing = high(dtype).itemsize * (2 * tokens * hidden + sum(rows) * (3 * hidden + 3 * inner + 2 * inner))
    ends, buffer = ends_of(rows, inputs.device), (sum(rows) // ALIGNED + 1) * ALIGNED
    scales = (
        way.scales(buffer, len(rows), 2 * inner, hidden),
        way.scales(buffer, len(rows), hidden, inner),
    )
    product = _Product(way, rows, ends, scales)
    calls, products = [], []
    for at in range(inputs.sets(active * matrix + passing, weights + passing)):
        layer = _layer(op, inputs, way, rows, at)
        calls.append(lambda layer=layer: _whole(layer, product))
        products.append(_alone(layer, product))
    return Prepared(calls, columns, products=products)


@dataclass(frozen=True)
class _Product:
    """The grouped product with the rows of each expert; `which` 0 is the first, 1 the second of the layer."""

    way: Grouped
    rows: list[int]
    ends: Tensor
    scales: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]

    def __call__(self, x: Tensor, w: Tensor, which: int) -> Tensor:
        return self.way.multiply(x, w, self.rows, self.ends, *self.scales[which])


def gated(hidden: Tensor) -> Tensor:
    """SwiGLU of [..., 2 I], the gate's half first."""
    gate, up = hidden.chunk(2, dim=-1)
    return functional.silu(gate) * up


def weighted_sum(rows: Tensor, place: Tensor, share: Tensor) -> Tensor:
    """Sums [T, H] of each token's rows [M, H] at `place` [T, K] times `share` [T, K]; the last row counts nothing."""
    found: Tensor = functional.embedding_bag(
        place, rows, mode="sum", per_sample_weights=share, padding_idx=rows.shape[0] - 1
    )
    return found


def places(rows: list[int], tokens: int, top_k: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Which token each row [M] holds, and the rows of each token [T, K]; rows are sorted by expert, then by token.

    A token has an expert at most once. Rows beyond the experts' (at least one, the last) are no one's; M - 1 stands
    for a choice that is not here.
    """
    counts = np.asarray(rows)
    total = int(counts.sum())
    size = (total // ALIGNED + 1) * ALIGNED
    distinct = max(min(tokens, total), 1)
    expert = np.repeat(np.arange(counts.size), counts)
    token = rng.permutation(tokens)[np.arange(total) % distinct]
    token = token[np.lexsort((token, expert))]
    by_token = np.argsort(token, kind="stable")
    first = np.searchsorted(token[by_token], np.arange(tokens))
    place = np.full((tokens, top_k), size - 1)
    place[token[by_token], np.arange(total) - first[token[by_token]]] = by_token
    return np.concatenate([token, np.zeros(size - total, token.dtype)]), place


def _layer(op: Words, inputs: Inputs, way: Grouped, rows: list[int], at: int) -> Layer:
    tokens, hidden, top_k, wide = op["tokens"], op["hidden"], op["top_k"], high(op["dtype"])
    inner = op["inter"] // op["expert_tensor"]
    token, place = places(rows, tokens, top_k, inputs.numbers(f"token{at}"))
    gains = (1.0, 1.0) if way.casts else (hidden**-0.5, inner**-0.5)
    return Layer(
        x=inputs.draw(f"x{at}", (tokens, hidden), wide),
        token=inputs.on_device(token),
        place=inputs.on_device(place),
        share=inputs.draw(f"share{at}", (tokens, top_k), wide).softmax(dim=-1),
        one=way.cast(inputs.draw(f"one{at}", (len(rows), 2 * inner, hidden), wide, gains[0])),
        two=way.cast(inputs.draw(f"two{at}", (len(rows), hidden, inner), wide, gains[1])),
    )


def _whole(layer: Layer, product: _Product) -> Tensor:
    cast = product.way.cast
    rows = cast(layer.x.index_select(0, layer.token))
    return weighted_sum(product(cast(gated(product(rows, layer.one, 0))), layer.two, 1), layer.place, layer.share)


def _alone(layer: Layer, product: _Product) -> Callable[[], Any]:
    """Both products of the layer with their inputs made before."""
    rows = product.way.cast(layer.x.index_select(0, layer.token))
    inner = product.way.cast(gated(product(rows, layer.one, 0)))
    return lambda: (product(rows, layer.one, 0), product(inner, layer.two, 1))
