"""What a capacity rule does to a scope's tokens: who stays with a full expert, and where the others go.

T tokens of the scope (a source rank, or the whole group), E experts, K choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.routing import _capacity_kernels as kernels
from moesim.routing.capacity import CapacityRule, Precedence

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]
Counters = NDArray[np.int32]
Gating = Literal["softmax", "renormalized", "sigmoid"]

GATINGS: dict[Gating, int] = {
    "softmax": kernels.SOFTMAX,
    "renormalized": kernels.RENORMALIZED,
    "sigmoid": kernels.SIGMOID,
}
LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Scores:
    """What a token thinks of the experts that it did not choose: token t that of row `row` [T] of `weights` [rows, E].

    The weights of the race from which it drew its experts (zero: never); or, where `realised`, its scores themselves.
    """

    weights: Floats
    row: Integers
    realised: bool = False


@dataclass(frozen=True)
class Settled:
    """Where copies ended: `choices` [T, K], E where dropped, in the columns in which the router had them; copies of
    each expert as `routed` by the router and as `kept` in the end [E]."""

    choices: NDArray[np.uint16]
    routed: Counters
    kept: Counters


def settle(
    rule: CapacityRule,
    choices: Integers,
    rows: Integers,
    *,
    gates: NDArray[np.float32] | None = None,
    scores: Scores | None = None,
    seed: int = 0,
) -> Settled:
    """Settle the choices [T, K] (E or negative: none) of one scope, whose experts have room for `rows` [E] copies.

    First every expert keeps the copies of highest precedence among those that chose it. Then, unless the overflow is
    dropped, the others go in the same precedence to an expert with room that their token does not hold, the token's
    next best or a random one; where there is none, they are dropped. So no rerouted copy takes the place of one that
    the router sent. `gates` [T, K] decide a priority by gate; `scores` decide who is next best: with the race's
    weights, the race goes on among the experts that are free. `seed` (64 bits) decides everything random.
    """
    E, top_k = rows.size, choices.shape[1]
    final = np.where(choices < 0, E, choices).astype(np.uint16).ravel()
    loads = np.zeros(E + 1, np.int32)
    kernels.count(final, loads)
    routed, over = loads[:E], np.append(loads[:E] > rows, False)
    if not over.any():
        return Settled(final.reshape(choices.shape), routed, routed)
    word = np.uint64(seed)
    queue = _queue(rule.precedence(top_k), final.reshape(choices.shape), over, gates, word)
    room = np.where(over[:E], rows, rows - routed).astype(np.int64)
    late = np.empty(queue.size, np.int32)
    late = late[: kernels.admit(final, queue, room, late)]
    if rule.overflow != "drop":
        if rule.overflow == "reroute":
            scores = Scores(np.ones((1, E)), np.zeros(len(choices), np.int32))
        if scores is None:
            raise InternalError("overflow to the next best expert needs the scores of those not chosen")
        weights, row = np.ascontiguousarray(scores.weights, np.float64), np.ascontiguousarray(scores.row, np.int32)
        kernels.rehome(final, top_k, late, room, weights, row, scores.realised, word)
    return Settled(final.reshape(choices.shape), routed, (rows - room).astype(np.int32))


def gates_of(
    choices: Integers, weights: Floats, row: Integers, seed: int = 0, gating: Gating = "softmax"
) -> NDArray[np.float32]:
    """Gates [T, K] drawn for choices whose order is known: token t raced by weights [rows, E] at `row` [T].

    Expert e arrives at an Exp(w_e) time, the inverse of its exponentiated logit (log(w) plus Gumbel noise), and
    successive arrivals are Exp(what is left of the weights) apart: exact for the sigmoid, and for a softmax over the
    chosen ("renormalized"). A softmax over all experts needs the others' sum, which is drawn log-normal with its
    exact mean and variance given the last arrival. No choice (E or negative) has gate 0. Where a limit to groups
    has passed over experts, the times are those of a race without it.
    """
    T, K = choices.shape
    E = weights.shape[1]
    names = np.where(choices < 0, E, choices).astype(np.uint16).ravel()
    rates: NDArray[np.float64] = np.ascontiguousarray(weights, np.float64)
    rows = np.ascontiguousarray(row, np.int32)
    times, rest, gates = np.empty((T, K)), np.zeros(T), np.empty((T, K), np.float32)
    word = np.uint64(seed)
    kernels.draw_times(names, rates, rows, word, times)
    if gating == "softmax":
        by_row = np.argsort(rows, kind="stable")
        for tokens in np.split(by_row, np.flatnonzero(np.diff(rows[by_row])) + 1):
            if tokens.size:
                kernels.rest_of_row(names, rates[rows[tokens[0]]], tokens, times, word, rest)
    kernels.fill_gates(times, rest, GATINGS[gating], gates)
    return gates


def _queue(
    precedence: Precedence, choices: NDArray[np.uint16], over: NDArray[np.bool_], gates: Floats | None, word: np.uint64
) -> Counters:
    """The copies of experts that are `over` [E+1], flat, those that stay first."""
    if precedence.by_gate and gates is None:
        raise InternalError(f"priority {precedence.priority!r} needs the gates of the choices")
    T, K = choices.shape
    tokens = np.arange(T, dtype=np.int32)
    if precedence.priority == "batch-prioritized" and gates is not None:
        tokens = tokens[_falling(gates.max(axis=1))]
    queue: Counters = np.empty(T * K, np.int32)
    choice_major = precedence.order == "choice-major"
    queue = queue[: kernels.find_contested(choices.ravel(), K, tokens, over, choice_major, queue)]
    if precedence.priority == "probability" and gates is not None:
        return queue[_falling(gates.ravel()[queue])]
    if precedence.priority == "random":
        keys = np.empty(queue.size, np.uint64)
        kernels.random_keys(queue, word, keys)
        shuffled: Counters = queue[np.sort(keys) & LOW]
        return shuffled
    return queue


def _falling(values: Floats) -> NDArray[np.uint64]:
    """The order in which values, to single precision, fall; equal ones keep theirs."""
    # A float's bits, its sign folded in, order as the float does; the place below them makes every key distinct, so
    # that the quickest sort is stable.
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    rising = np.where(bits < 0, ~bits, bits ^ np.int32(-(2**31))).view(np.uint32)
    keys = (~rising).astype(np.uint64) << np.uint64(32) | np.arange(values.size, dtype=np.uint64)
    return np.asarray(np.sort(keys) & LOW)
