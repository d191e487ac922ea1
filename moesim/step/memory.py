"""Memory of every pipeline rank's fullest GPU, by part: states, activations that the schedule keeps, buffers.

What stays for the whole step (states, buffers of libraries) is added up; of what comes and goes the larger of two
moments counts: the fullest moment between forward and backward, or the optimizer step.
L MoE layers, S samples, R expert-parallel ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.costs import memory as law
from moesim.costs.exchange_memory import Exchange, exchange_bytes
from moesim.costs.memory import Shards, Split, TokenLayer, coefficients
from moesim.costs.tensor_split import attention_products, input_copies, key_value_copies
from moesim.scenario.scenario import Scenario
from moesim.specs import parameters
from moesim.step.data_parallel import replicas
from moesim.step.layout import chunks_on
from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork
from moesim.step.schedules import order

Floats = NDArray[np.float64]
PASSING = ("activations", "temporaries", "logits", "dispatch buffers", "fragmentation")
"""Parts that are gone when the optimizer runs."""


def memory_parts(model: StepModel, routed: RoutedWork | None) -> dict[str, float]:
    """Bytes by part on the fullest GPU of the step; perfectly balanced routing where `routed` is absent."""
    ranks = memory_by_rank(model, routed)
    return ranks[fullest(ranks)]


def fullest(ranks: tuple[dict[str, float], ...]) -> int:
    """The pipeline rank whose GPU needs most."""
    return max(range(len(ranks)), key=lambda rank: sum(ranks[rank].values()))


def memory_by_rank(model: StepModel, routed: RoutedWork | None) -> tuple[dict[str, float], ...]:
    """Bytes by part on the fullest GPU of every pipeline rank."""
    step = _Step(model, routed)
    return tuple(_Device(step, device).parts() for device in range(model.scenario.parallelism.pipeline))


@dataclass(frozen=True)
class _Rows:
    """Rows that ranks compute for each of their own tokens: `kept` [L, R] on average, as activations of many
    microbatches add up; `busiest` [L] of the busiest rank in a microbatch, which a buffer must hold; `sent` copies."""

    kept: Floats
    busiest: Floats
    sent: float


def _rows(model: StepModel, routed: RoutedWork | None) -> _Rows:
    scenario, layers = model.scenario, max(1, len(model.moe_index))
    if not scenario.model.is_moe:
        return _Rows(np.zeros((1, 1)), np.zeros(1), 0.0)
    if routed is None:
        slots = scenario.expert_slots
        kept = np.minimum(np.full(slots, scenario.copies_per_group / slots), model.capacity_rows)
        even = float(model.computed_rows(kept).sum()) / scenario.parallelism.expert / scenario.tokens_per_rank
        return _Rows(np.full((layers, 1), even), np.full(layers, even), even / scenario.parallelism.expert_tensor)
    rows = routed.rows / scenario.tokens_per_rank
    sent = float(rows.mean()) / scenario.parallelism.expert_tensor
    return _Rows(rows.mean(axis=1), rows.max(axis=-1).mean(axis=-1), sent)


class _Step:
    """What all pipeline ranks share."""

    def __init__(self, model: StepModel, routed: RoutedWork | None) -> None:
        scenario = self.scenario = model.scenario
        layout = scenario.parallelism
        self.model, self.data, self.rows = model, coefficients(), _rows(model, routed)
        self.split = split_of(scenario)
        self.modules = frozenset({"full"} if scenario.recompute == "full" else scenario.recomputed_modules)
        copies = replicas(scenario)
        self.shards = {"": _shards(scenario, copies.dense), "expert ": _shards(scenario, copies.expert)}
        self.gathered = gathered_at_once(scenario)
        # Sequence parallelism gathers a block's input before its first product.
        whole_input = layout.sequence_parallel and layout.tensor > 1
        self.input_bytes = 2.0 * scenario.model.d_model * layout.tensor if whole_input else 0.0
        self.channels = self._channels((copies.dense, copies.expert))
        self._tokens = {chosen: self._token_law(chosen) for chosen in (frozenset[str](), self.modules)}

    def token(self, modules: frozenset[str], rows: float) -> TokenLayer:
        """What a token leaves behind in a layer where `rows` copies are computed for each."""
        none, one = self._tokens[modules]
        return replace(none, experts=none.experts + rows * (one.experts - none.experts))

    def _token_law(self, modules: frozenset[str]) -> tuple[TokenLayer, TokenLayer]:
        """The same for no copies and for one; between and beyond it is a straight line."""
        spec, precision = self.scenario.model, self.scenario.precision
        none, one = (law.token_layer_bytes(spec, precision, rows, modules, self.split) for rows in (0.0, 1.0))
        return none, one

    def _channels(self, copies: tuple[int, int]) -> float:
        """Buffers of the communicators, of microbatches between pipeline ranks, and of a context ring."""
        scenario, layout = self.scenario, self.scenario.parallelism
        sizes = (layout.tensor, layout.context, layout.pipeline, layout.expert, *copies)
        groups = sum(size > 1 for size in sizes) if scenario.cluster.fabric.kind != "torus" else 0
        tokens = (scenario.tokens_per_rank, scenario.tokens_per_replica)
        hops, ring = law.channel_bytes(scenario.model, *tokens, layout.tensor)
        total = (hops if layout.pipeline > 1 else 0.0) + (ring if layout.context > 1 else 0.0)
        return float(total + groups * law.communicator_bytes())

    def exchange(self, busiest: float) -> float:
        """Buffers of a dispatch and a combine that bring the busiest rank so many copies for each of its tokens."""
        scenario, mover, even = self.scenario, self.model.mover, self.model.mover.even_demand
        tokens = float(scenario.tokens_per_rank)
        exchange = Exchange(
            tokens=tokens,
            sent=tokens * self.rows.sent,
            received=tokens * busiest,
            distinct=min(1.0, float(even.rank_tokens.sum() / even.copies.sum())),
            dispatch=mover.payload.dispatch,
            combine=mover.payload.combine,
            hidden=scenario.model.d_model,
            experts=scenario.expert_slots,
            ranks=scenario.parallelism.expert,
            domain=mover.network.ranks_per_domain,
            multiprocessors=mover.busy_multiprocessors,
        )
        return exchange_bytes(mover.dispatcher.name, exchange, self.model.overlaps)


class _Device:
    """What one pipeline rank's fullest GPU holds."""

    def __init__(self, step: _Step, device: int) -> None:
        self.step, self.scenario, self.held = step, step.scenario, step.model.held[device]
        self.chunks = tuple(step.model.chunks[index] for index in sorted(chunks_on(step.scenario, device)))
        self.in_flight = held_at_once(*step.model.schedule, device)
        kinds, index = self.scenario.model.layer_kinds, step.model.moe_index
        self.moe = tuple(
            sum(kinds[layer] == "moe" for layer in chunk.layers) + chunk.mtp_layers * (kinds[-1] == "moe")
            for chunk in self.chunks
        )
        places = [index[layer] for chunk in self.chunks for layer in chunk.layers if layer in index] or [0]
        self.kept = float(step.rows.kept[places].mean(axis=0).max())
        self.busiest = max(self.kept, float(step.rows.busiest[places].max()))

    def parts(self) -> dict[str, float]:
        """Bytes by part, those of nothing left out."""
        states, update = self._states()
        passing = {**self._activations(), "logits": self._logits()}
        if any(self.moe) and self.scenario.parallelism.expert > 1:
            passing["dispatch buffers"] = self.step.exchange(self.busiest)
        passing["fragmentation"] = float(self.step.data["fragmentation"]) * sum(passing.values())
        if update > sum(passing.values()):
            passing = {"optimizer step": update}
        always = {"communication buffers": self._communication(), "libraries": float(self.step.data["library_bytes"])}
        return {name: size for name, size in {**states, **passing, **always}.items() if size}

    def _shares(self) -> tuple[tuple[str, float, Shards], ...]:
        """(prefix, parameters, sharding) of the dense part and of the experts, redundant ones apart."""
        held, shards = self.held, self.step.shards
        found = (
            ("", held.dense, shards[""]),
            ("expert ", held.expert - held.redundant, shards["expert "]),
            ("redundant expert ", held.redundant, shards["expert "]),
        )
        return tuple(part for part in found if part[1])

    def _states(self) -> tuple[dict[str, float], float]:
        """Weights, gradients and optimizer states, and what the update allocates beside them."""
        parts, update = {}, 0.0
        for prefix, count, shards in self._shares():
            found = law.state_bytes(count, shards, self.scenario.precision)
            if prefix and self.scenario.placement.offload is not None:
                found = _resident(self.scenario, found)
            elif self.scenario.cluster.fabric.kind != "torus":  # a compiled program updates tensor by tensor
                update += law.optimizer_step_bytes(count, shards, self.scenario.precision)
            parts.update({prefix + name: size for name, size in found.items()})
        return parts, update

    def _activations(self) -> dict[str, float]:
        """What microbatches in flight keep, and what the backward of one layer needs beside it: recomputed and
        off-loaded values are there again, and gradients on their way.

        Weight gradients that are put off hold what their products read, inputs and output gradients: nearly what the
        backward had (Qi et al. 2023, table 1: 32 of 34 bytes), recomputed and off-loaded values among it.
        """
        step, tokens = self.step, self.scenario.tokens_per_rank
        whole, kept = (step.token(chosen, self.kept) for chosen in (frozenset[str](), step.modules))
        layers = sum(len(chunk.layers) for chunk in self.chunks)
        if not layers:
            return {}
        stays = max(0.0, 1.0 - self.scenario.stack_options.offload_layers / layers)
        sizes = [*(stays * size for size in self._chunk_bytes(kept)), *self._chunk_bytes(whole)]
        again = max(0.0, whole.largest - stays * kept.largest)
        gradients = law.gradient_pass_bytes(self.scenario.model, self.kept, step.split)
        return {
            "activations": tokens * float((self.in_flight @ np.array(sizes)).max()),
            "temporaries": float(tokens * (again + gradients + step.input_bytes)),
        }

    def _chunk_bytes(self, token: TokenLayer) -> list[float]:
        """Bytes that a token leaves behind in each chunk."""
        counts = [len(chunk.layers) + chunk.mtp_layers for chunk in self.chunks]
        pairs = zip(counts, self.moe, strict=True)
        return [count * token.attention + (count - moe) * token.dense + moe * token.experts for count, moe in pairs]

    def _logits(self) -> float:
        """Logits kept by every microbatch between its head and its loss' backward, and one's gradients."""
        spec, heads = self.scenario.model, [float(chunk.head) for chunk in self.chunks]
        if not any(heads):
            return 0.0
        in_flight = float((self.in_flight @ np.array([*heads, *[0.0] * len(heads)])).max())
        data = self.step.data["logit_bytes"]
        each = data["kept"] * in_flight * (1 + spec.mtp_layers) + data["gradient"]
        return float(self.scenario.tokens_per_rank * spec.vocab * each)

    def _communication(self) -> float:
        """Channels that are always there, and what full or gradient sharding gathers and reduces."""
        (dense, expert), held, shards = self.step.gathered, self.held, self.step.shards
        rooms = [(held.dense, dense, shards[""]), (held.expert, expert, shards["expert "])]
        each = (law.gathered_bytes(*room, self.scenario.precision) for room in rooms if room[0])
        return float(self.step.channels + sum(each))


def split_of(scenario: Scenario) -> Split:
    """What the layout does not divide as tokens are."""
    layout = scenario.parallelism
    return Split(layout.expert_tensor, input_copies(layout), int(key_value_copies(scenario.model, layout.tensor)))


def gathered_at_once(scenario: Scenario) -> tuple[float, float]:
    """Parameters that full sharding gathers at once: of a dense part, the next layer's beside this one's or a
    vocabulary table; of the experts, those of this layer and the next."""
    model, layout = scenario.model, scenario.parallelism
    kinds, ahead = set(model.layer_kinds), float(coefficients()["gather_units"])
    attention = model.attention_blocks * attention_products(model, split_of(scenario).keys, 1)
    dense = parameters.dense_ffn_parameters(model) if "dense" in kinds or model.dense_beside_experts else 0.0
    shared = parameters.shared_expert_parameters(model) if "moe" in kinds else 0.0
    experts = scenario.expert_slots * parameters.expert_parameters(model) if "moe" in kinds else 0.0
    layer, table = attention + dense + shared, float(model.d_model * model.vocab)
    return max(ahead * layer, table) / layout.tensor, ahead * experts / (layout.expert * layout.expert_tensor)


def _resident(scenario: Scenario, found: dict[str, float]) -> dict[str, float]:
    """What is left on the GPU of the experts' states: weights and gradients of the resident ones."""
    offload = scenario.placement.offload
    local = scenario.model.n_experts / scenario.parallelism.expert
    share = min(1.0, offload.resident / local) if offload is not None else 1.0
    return {"weights": share * found["weights"], "gradients": share * found["gradients"], "optimizer": 0.0}


def _shards(scenario: Scenario, ranks: int) -> Shards:
    kind = scenario.parallelism.data_sharding
    return Shards(
        weights=ranks if kind == "full" else 1,
        gradients=ranks if kind in ("gradients", "full") else 1,
        optimizer=1 if kind == "none" else ranks,
    )


@lru_cache(maxsize=512)
def held_at_once(kind: str, stages: int, chunks: int, microbatches: int, paired: bool, device: int) -> Floats:
    """Microbatches that a pipeline rank holds at its full moments [moments, 2 C]: of each of its C chunks, ascending,
    those between forward and backward, then those whose weight gradients are put off.

    It is what `schedules.most_held` walks through, once for all sizes.
    """
    slots = order(kind, stages, chunks, microbatches, paired)[device]
    found = sorted({slot.forward.chunk for slot in slots if slot.forward is not None})
    place = {chunk: index for index, chunk in enumerate(found)}
    count, held = len(found), [0] * (2 * len(found))
    moments = set()
    for slot in slots:
        if slot.forward is not None:
            held[place[slot.forward.chunk]] += 1
            moments.add(tuple(held))
        if slot.backward is not None:
            held[place[slot.backward.chunk]] -= 1
            if slot.weight is None:
                held[count + place[slot.backward.chunk]] += 1
                moments.add(tuple(held))
        elif slot.weight is not None:
            held[count + place[slot.weight.chunk]] -= 1
    return np.array(sorted(moments), dtype=np.float64)
