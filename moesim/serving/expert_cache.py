"""What an engine fetches from host memory, iteration by iteration: real caches, fed with tokens of the sampler.

At each size of a grid a chain of iterations is drawn before a run, every decoding request a sequence that goes on from
iteration to iteration and is as long as the workload's outputs; a cache follows the chain, starting as the chain leaves
it. An engine's iteration takes the chain's place of its own number, between two sizes one or the other's. An MoE layer
has the chain of the layer looked at that is nearest in turn, at a place of its own.

G sizes, I iterations of a chain, N tokens of an iteration, L layers looked at, M MoE layers, R ranks, P experts of a
rank, E experts, K choices; B iterations asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.iteration.law import IterationLaw
from moesim.iteration.offload import ExpertFetch, Missing
from moesim.routing.cache import missed
from moesim.scenario.serving import Pool, ServingScenario
from moesim.serving.routed_samples import MOST_SEQUENCES, RULE_MOST, batch_draws
from moesim.step.draws import RACES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048)
"""Tokens of an iteration that is drawn; a larger one fetches as many as the largest."""
MOST_TOKENS = 1 << 16
LONGEST, SHORTEST = 512, 16
"""Iterations of a chain."""
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Chains:
    """Experts `wanted` and `missing` by the rank that fetches most, [I, L] at each of `tokens` [G] an iteration."""

    tokens: Floats
    wanted: tuple[Floats, ...]
    missing: tuple[Floats, ...]

    def at(self, tokens: Floats, number: Ints, layers: int, shift: Ints) -> Missing:
        """Of iterations `number` [B] of so many tokens [B], in `layers` layers, `shift` [M] places apart."""
        place = np.clip(np.interp(tokens, self.tokens, np.arange(len(self.tokens))), 0.0, len(self.tokens) - 1.0)
        low = np.floor(place).astype(np.int64)[:, None]
        turn = number[:, None] + shift
        # One neighbour or the other, evenly in proportion: their mean would be smoother than either.
        which = low + (turn * _GOLDEN % 1.0 < place[:, None] - low)
        wanted, missing = (_looked_up(chains, which, turn, layers) for chains in (self.wanted, self.missing))
        return Missing(wanted, missing)


def _looked_up(chains: tuple[Floats, ...], which: Ints, turn: Ints, layers: int) -> Floats:
    """[B, M] from the chains `which` [B, M] at `turn` [B, M]."""
    found = np.empty(turn.shape)
    column = np.broadcast_to(np.arange(layers) % chains[0].shape[1], turn.shape)
    for one in np.unique(which).tolist():
        there = which == one
        found[there] = chains[one][turn[there] % len(chains[one]), column[there]]
    return found


@dataclass(frozen=True)
class ExpertCaches:
    """The chains of an instance's iterations: of those with prompts, and of those that decode alone."""

    prompts: Chains
    decode: Chains
    layers: int


class CacheDraws:
    """What one engine fetches; `generator` says where in the chains its layers stand."""

    def __init__(self, caches: ExpertCaches, generator: np.random.Generator) -> None:
        self.caches = caches
        self.shift: Ints = generator.integers(0, LONGEST, caches.layers)

    def at(self, tokens: Floats, first: int, prompts: bool) -> Missing:
        """Of iterations number `first`, `first` + 1, ... of so many tokens [B]."""
        number = first + np.arange(len(tokens))
        chains = self.caches.prompts if prompts else self.caches.decode
        return chains.at(tokens, number, self.caches.layers, self.shift)


def expert_caches(scenario: ServingScenario, pool: Pool, law: IterationLaw) -> ExpertCaches | None:
    """The caches of a pool's engines; None where their GPUs hold all of their experts."""
    if law.fetch is None:
        return None
    engine, replicas = scenario.engine, pool.instance.replicas
    seats = engine.max_requests * replicas
    if scenario.workload.arrivals.concurrency is not None:
        seats = min(seats, scenario.workload.arrivals.concurrency)
    positions = 1 + engine.drafted
    decode = _chains(law, law.fetch, seats * positions, _outputs(scenario), positions)
    if pool.phase == "decode":
        return ExpertCaches(decode, decode, law.fetch.layers)
    prompts = _chains(law, law.fetch, engine.token_budget * replicas, law.fetch.prompt, None)
    return ExpertCaches(prompts, decode if pool.phase == "mixed" else prompts, law.fetch.layers)


def _outputs(scenario: ServingScenario) -> float:
    work = scenario.workload
    return work.output_tokens.average if work.output_tokens is not None else float(LONGEST)


def _chains(law: IterationLaw, fetch: ExpertFetch, most: int, sequence: float, positions: int | None) -> Chains:
    """Chains at all sizes up to the first that is `most` tokens; an iteration takes `positions` tokens of each
    sequence, or, where that is None, whole prompts one after the other."""
    scenario = law.scenario
    race = isinstance(scenario.router, RACES) or scenario.routing.load.trace is not None
    budget = MOST_TOKENS if race else 4 * RULE_MOST
    step = positions or 1
    sizes = [step * size for size in SIZES if size * SHORTEST * step <= budget]
    sizes = sizes[: 1 + sum(size < most for size in sizes)]
    counts = [_chain(fetch, size, min(LONGEST, budget // size), sequence, positions) for size in sizes]
    return Chains(np.array(sizes, np.float64), tuple(one[0] for one in counts), tuple(one[1] for one in counts))


def _chain(
    fetch: ExpertFetch, tokens: int, iterations: int, sequence: float, positions: int | None
) -> tuple[Floats, Floats]:
    """Wanted and missing experts [I, L] of a chain of `iterations` of `tokens` tokens."""
    scenario = fetch.load.scenario
    if positions is None:
        seats, pieces = 1, max(1, round(iterations * tokens / sequence))
    else:
        seats = tokens // positions
        pieces = max(1, min(round(iterations * positions / sequence), MOST_SEQUENCES // seats))
    draws = batch_draws(scenario, iterations * tokens, seats * pieces)
    experts = scenario.model.n_experts
    wanted = np.zeros((iterations, len(fetch.load.layers), experts + 1), np.bool_)
    for at, layer in enumerate(fetch.load.layers.tolist()):
        choices = draws.draw(layer, 0, 0, 1).choices[0].astype(np.int64)
        turns = _in_turn(choices, iterations, seats)
        np.put_along_axis(wanted[:, at], turns, True, axis=1)
    by_rank = fetch.by_rank(wanted[..., :experts].astype(np.float64)) > 0
    if fetch.offload.keep == "popular":
        missing = (by_rank & (fetch.popular == 0.0)).sum(axis=-1)
    else:
        missing = missed(by_rank, fetch.offload.resident, "recent")
    return by_rank.sum(axis=-1).max(axis=-1).astype(np.float64), missing.max(axis=-1).astype(np.float64)


def _in_turn(choices: Ints, iterations: int, seats: int) -> Ints:
    """Choices [I, N K] by iteration, from those of sequences one after the other [I N, K]: each seat works through its
    own, all at different places of a sequence."""
    by_seat = choices.reshape(seats, iterations, -1)
    rolled = [np.roll(one, at * iterations // seats, axis=0) for at, one in enumerate(by_seat)]
    return np.asarray(np.stack(rolled, axis=1).reshape(iterations, -1))
