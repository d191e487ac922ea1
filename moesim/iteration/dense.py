"""What every rank does alike for the tokens of its attention replica: projections, feed-forward layers, head.

t = the replica's tokens, arrays [B]; all functions give seconds [B] of one layer on one GPU. Activations are converted
by the norm or the activation before a product, as serving engines fuse them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.costs.kernels import gemm_time, memory_bound_time
from moesim.costs.tensor_split import key_value_copies
from moesim.scenario.serving import ServingScenario
from moesim.specs.gpu import GpuSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Dense:
    """The dense kernels of a scenario's model, split over `tensor` GPUs."""

    scenario: ServingScenario
    tensor: int

    @property
    def gpu(self) -> GpuSpec:
        """The GPU they run on."""
        return self.scenario.cluster.gpu

    def product(self, tokens: Floats, out: float, inner: float, dtype: str | None = None) -> Floats:
        """A dense product [t, inner] x [inner, out]."""
        kind = dtype or self.scenario.precision.compute
        measured = self.scenario.cluster.calibration
        return np.asarray(
            gemm_time(self.gpu, tokens, max(1.0, out), max(1.0, inner), kind, measured, quantize=False).seconds
        )

    def memory_pass(self, what: str, elements: Floats) -> Floats:
        """A memory-bound pass over so many elements."""
        return np.asarray(
            memory_bound_time(
                self.gpu, what, np.maximum(elements, 1.0), "bf16", self.scenario.cluster.calibration
            ).seconds
        )

    def attention(self, tokens: Floats) -> Floats:
        """Norm, projections and rotary of one attention block; the scores are priced apart."""
        model, tensor = self.scenario.model, self.tensor
        heads, width = model.n_heads / tensor, model.d_model
        norm = self.memory_pass("norm", tokens * width)
        latent = model.mla
        if latent is None:
            keys = model.kv_heads * int(key_value_copies(model, tensor)) / tensor
            wide = (heads + 2 * keys) * model.head
            parts = self.product(tokens, wide, width) + self.product(tokens, width, heads * model.head)
            return norm + parts + self.memory_pass("rotary", tokens * (heads + keys) * model.head)
        # Absorbed or not, keys and values cost the same products a token: rank x heads x (nope + value).
        rank, down = latent.q_lora_rank, latent.kv_lora_rank + latent.qk_rope
        queries = heads * (latent.qk_nope + latent.qk_rope)
        parts = self.product(tokens, rank + down, width)
        parts = parts + self.product(tokens, queries, rank or width)
        parts = parts + self.product(tokens, heads * (latent.qk_nope + latent.v_head), latent.kv_lora_rank, "bf16")
        parts = parts + self.product(tokens, width, heads * latent.v_head)
        return norm + parts + 2 * self.memory_pass("norm", tokens * (rank + down))

    def feed_forward(self, tokens: Floats, width: float, matrices: int) -> Floats:
        """A feed-forward layer of hidden `width`, already split."""
        model = self.scenario.model
        first = self.product(tokens, (matrices - 1) * width, model.d_model)
        return first + self.memory_pass("activation", tokens * width) + self.product(tokens, model.d_model, width)

    def dense_layer(self, tokens: Floats) -> Floats:
        """Norm and dense feed-forward layer."""
        model = self.scenario.model
        norm = self.memory_pass("norm", tokens * model.d_model)
        return norm + self.feed_forward(tokens, (model.d_ff_dense or 0) / self.tensor, model.dense_matrices)

    def beside_experts(self, tokens: Floats) -> Floats:
        """Shared experts, or the dense layer beside experts; nothing where the model has none."""
        model = self.scenario.model
        found = np.zeros_like(tokens)
        if model.shared_expert_width:
            found = found + self.feed_forward(tokens, model.shared_expert_width / self.tensor, model.expert_matrices)
        if model.dense_beside_experts:
            found = found + self.feed_forward(tokens, (model.d_ff_dense or 0) / self.tensor, model.dense_matrices)
        return found

    def head(self, positions: Floats) -> Floats:
        """Final norm, projection to the vocabulary, and sampling of `positions`."""
        model = self.scenario.model
        if not model.vocab:
            return np.zeros_like(positions)
        words = model.vocab / self.tensor
        norm = self.memory_pass("norm", positions * model.d_model)
        sampling = self.memory_pass("cross-entropy", positions * model.vocab)
        return norm + self.product(positions, words, model.d_model, "bf16") + sampling
