"""A recorded trace of a router: which experts every token chose in every layer, and what is known about the token.

T tokens, L MoE layers, K choices, S sequences, E experts, D domains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.specs.base import Spec

Ids = NDArray[np.unsignedinteger]
MAX_LAYERS = 10_000
"""Of a model, as its description allows; some tools number its layers from 0, others from 1."""


class TraceMeta(Spec):
    """What stands in a trace's header. `model_layers` [L]: each recorded layer's place in the model; `ordered`: choices
    are in rank order, best first; `device`: what the recording ran on ("cpu", a GPU's name, "" where unknown)."""

    experts: int = Field(strict=True, ge=1, le=65534)
    top_k: int = Field(strict=True, ge=1, le=65534)
    model_layers: tuple[Annotated[int, Field(ge=0, le=MAX_LAYERS)], ...]
    domains: tuple[str, ...] = ("",)
    ordered: bool = True
    model: str = ""
    router: str = ""
    source: str = ""
    licence: str = ""
    device: str = ""
    software: str = ""
    command: str = ""
    note: str = ""


@dataclass(frozen=True)
class RouterTrace:
    """The trace: `experts` [T, L, K] (uint8 or uint16, the type's largest value where a token has no expert), tokens
    of a sequence together and in order; `sequence` [T] counts sequences from 0 without gaps; `position` [T] in it;
    `domain` [S] (index into the header's), `step` [S] of training (-1 where unknown); `weights` [T, L, K] (float16)
    and `token_id` [T] where recorded. Arrays may be mapped from a file: read-only.
    """

    experts: Ids
    sequence: NDArray[np.int32]
    position: NDArray[np.int32]
    domain: NDArray[np.int32]
    step: NDArray[np.int32]
    meta: TraceMeta
    weights: NDArray[np.float16] | None = None
    token_id: NDArray[np.int32] | None = None

    @property
    def none(self) -> int:
        """What stands where a token has no expert."""
        return int(np.iinfo(self.experts.dtype).max)

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.experts.shape[0])

    @property
    def layers(self) -> int:
        """L."""
        return int(self.experts.shape[1])

    @property
    def sequences(self) -> int:
        """S."""
        return int(self.domain.size)

    @property
    def starts(self) -> NDArray[np.int64]:
        """First token of each sequence, and T at the end [S+1]."""
        return np.searchsorted(self.sequence, np.arange(self.sequences + 1))

    def select(self, keep: NDArray[np.bool_]) -> RouterTrace:
        """The sequences for which `keep` [S] holds, renumbered."""
        tokens = keep[self.sequence]
        numbers = np.cumsum(keep) - 1
        return replace(
            self,
            experts=self.experts[tokens],
            sequence=numbers[self.sequence[tokens]].astype(np.int32),
            position=self.position[tokens],
            domain=self.domain[keep],
            step=self.step[keep],
            weights=None if self.weights is None else self.weights[tokens],
            token_id=None if self.token_id is None else self.token_id[tokens],
        )


def type_for(experts: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest type that holds the names of `experts` experts, and one value more for none."""
    return np.uint8 if experts < np.iinfo(np.uint8).max else np.uint16
