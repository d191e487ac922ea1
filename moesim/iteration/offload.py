"""Experts in host memory: how many of a layer's an iteration wants and does not find, and what that costs.

Experts come in the format in which they are served. A request's own taste is what a cache of recent experts lives on:
the requests of an iteration are laid out as a sample of it. Left out: that a request's next token often wants what its
last one wanted, which a cache of recent experts gains by; that it has to learn a new request's taste,
that prompts between decoding iterations push out what these used, and what the host needs to learn what a router asked
for (graphs hold the pieces between routers).
B iterations, G token counts, L layers looked at, R ranks, P experts of a rank, K experts fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma

import numpy as np
from numpy.typing import NDArray

from moesim.iteration.fetch_wait import Layer, Link, expected_walk, walk
from moesim.iteration.formats import expert_format, weight_bytes
from moesim.iteration.routed import RoutedLoad
from moesim.routing.cache import expected_hits
from moesim.scenario.serving import ServingScenario
from moesim.specs.parameters import expert_parameters
from moesim.specs.serving import InstanceSpec

Floats = NDArray[np.float64]
IN_TRANSIT = 2.0
"""Experts that a GPU has room for beside those it keeps: one is computed while the next one comes."""
_GRID = np.unique(np.concatenate([np.arange(1.0, 17.0), np.geomspace(16.0, 1 << 14, 40).round()]))


def resident_experts(scenario: ServingScenario, instance: InstanceSpec) -> int | None:
    """Experts of a layer that a GPU keeps; None where it keeps all of its own."""
    offload = scenario.placement.offload
    if offload is None or not scenario.model.is_moe:
        return None
    return offload.resident if offload.resident < scenario.model.n_experts // instance.expert else None


def expert_bytes(scenario: ServingScenario, instance: InstanceSpec) -> float:
    """Bytes of one expert's weights on one GPU."""
    each = expert_parameters(scenario.model) * weight_bytes(expert_format(scenario.precision))
    return float(each / instance.expert_split)


def host_bytes(scenario: ServingScenario, instance: InstanceSpec) -> float:
    """Bytes of experts that stand in host memory for the fullest GPU; those it keeps are not counted there again."""
    kept = resident_experts(scenario, instance)
    if kept is None:
        return 0.0
    model = scenario.model
    layers = model.moe_layers / model.layers * -(-model.layers // instance.pipeline)
    return layers * (model.n_experts // instance.expert - kept) * expert_bytes(scenario, instance)


@dataclass(frozen=True)
class Missing:
    """Experts of a layer that an iteration wants, and those of them that are not in GPU memory.

    Expected: [B, L, R]. Drawn: [B, MoE layers], of the rank with most to fetch.
    """

    wanted: Floats
    missing: Floats

    @property
    def held(self) -> Floats:
        """Share [B] of the wanted ones that is in GPU memory."""
        rest = tuple(range(1, self.wanted.ndim))
        return np.asarray(1.0 - self.missing.sum(axis=rest) / np.maximum(self.wanted.sum(axis=rest), 1e-300))


class ExpertFetch:
    """The expert caches of an instance's GPUs; `prompt`: tokens of a prompt."""

    def __init__(self, load: RoutedLoad, instance: InstanceSpec, prompt: float) -> None:
        offload = load.scenario.placement.offload
        if offload is None:
            raise ValueError("nothing is off-loaded")
        self.load, self.instance, self.offload, self.prompt = load, instance, offload, prompt
        self.layers = load.scenario.model.moe_layers
        accuracy = offload.prefetch_accuracy if offload.prefetch == "previous-layer" else None
        self.link = Link(expert_bytes(load.scenario, instance) / offload.host_bandwidth, accuracy)
        self._tables: dict[bool, tuple[Floats, Floats]] = {}

    def expected(self, tokens: Floats, prompts: NDArray[np.bool_]) -> Missing:
        """Of iterations of `tokens` [B] of the whole instance, `prompts` [B]: whether they hold prompts."""
        wanted, missing = self._between(tokens, False)
        if prompts.any():
            there = prompts[:, None, None]
            with_prompts = self._between(tokens, True)
            wanted, missing = np.where(there, with_prompts[0], wanted), np.where(there, with_prompts[1], missing)
        return Missing(wanted, missing)

    def _between(self, tokens: Floats, prompts: bool) -> tuple[Floats, Floats]:
        if prompts not in self._tables:
            self._tables[prompts] = self.at(_GRID, np.maximum(_GRID / self.prompt, 1.0) if prompts else _GRID)
        at = np.clip(np.interp(tokens, _GRID, np.arange(len(_GRID))), 0.0, len(_GRID) - 1.0)
        low = np.minimum(at.astype(np.int64), len(_GRID) - 2)
        share = (at - low)[:, None, None]
        wanted, missing = ((1 - share) * table[low] + share * table[low + 1] for table in self._tables[prompts])
        return wanted, missing

    def at(self, tokens: Floats, sequences: Floats) -> tuple[Floats, Floats]:
        """Wanted and missing experts [G, L, R] of `tokens` [G] in so many sequences."""
        chance = np.clip(self.load.chances(sequences), 0.0, 1.0 - 1e-12)
        wanted = self.by_rank(-np.expm1(tokens[:, None, None] * np.log1p(-chance)))
        if self.offload.keep == "popular":
            hits = np.broadcast_to(self.popular, wanted.shape)
        else:
            hits = expected_hits(wanted, self.offload.resident, "recent")
        return wanted.sum(axis=-1), (wanted * (1.0 - hits)).sum(axis=-1)

    @property
    def popular(self) -> Floats:
        """1 [L, R, P] for the most popular experts of each rank, as many as it keeps, 0 for others."""
        return expected_hits(self.by_rank(self.load.moments.chance), self.offload.resident, "popular")

    def by_rank(self, by_expert: Floats) -> Floats:
        """What is told by expert [..., L, E], by rank and its experts [..., L, R, P]."""
        placed = self.load.placement
        index = np.broadcast_to(placed.physical, (*by_expert.shape[:-1], placed.physical.shape[-1]))
        found = np.take_along_axis(by_expert, index, axis=-1)
        return np.asarray(found.reshape(*found.shape[:-1], placed.ranks, placed.slots))

    def nothing(self, iterations: int) -> Missing:
        """No expert missing, in so many iterations."""
        return Missing(*(np.zeros((iterations, self.layers)) for _ in range(2)))

    def waits(self, beside: Floats, experts: Floats, tokens: Floats, found: Missing) -> Floats:
        """Seconds [B] that the layers of iterations of `tokens` [B] wait for experts; `beside` and `experts`: compute
        seconds [B] of all layers beside their experts and of these."""
        if found.wanted.ndim == 2:
            most = np.maximum(found.wanted.mean(axis=-1), 1.0)
            layer = Layer(beside / self.layers, experts / self.layers, experts / self.layers / most)
            return np.maximum(walk(layer, self.link, found.missing) - beside - experts, 0.0)
        most = np.maximum(found.wanted.max(axis=-1), 1.0)  # [B, L]
        each = np.broadcast_to(experts[:, None] / self.layers, most.shape)
        layer = Layer(np.broadcast_to(beside[:, None] / self.layers, most.shape), each, each / most)
        total = expected_walk(layer, self.link, self._counts(found.missing, tokens), self.layers).mean(axis=-1)
        return np.asarray(np.maximum(total - beside - experts, 0.0))

    def _counts(self, missing: Floats, tokens: Floats) -> Floats:
        """Chance [B, L, K] that the rank with most to fetch fetches so many of a layer's experts, by their expected
        number [B, L, R]: of those that could be wanted at most each is missing alike."""
        own = self.load.scenario.model.n_experts // self.instance.expert
        could = np.minimum(np.ceil(tokens * self.load.scenario.model.top_k), own)[:, None, None, None]
        share = np.clip(missing[..., None] / could, 1e-12, 1.0 - 1e-12)
        count = np.arange(own + 1, dtype=np.float64)
        logs = np.array([lgamma(value + 1.0) for value in range(own + 1)])
        rest = np.maximum(could - count, 0.0)
        ways = logs[could.astype(np.int64)] - logs - logs[rest.astype(np.int64)]
        found = np.where(count <= could, np.exp(ways + count * np.log(share) + rest * np.log1p(-share)), 0.0)
        below = np.cumsum(found, axis=-1).prod(axis=2)  # no rank fetches more
        return np.asarray(np.diff(below, axis=-1, prepend=0.0))
