"""The base of all nouns: frozen, strict, and able to name the nearest key for a misspelt one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from moesim.provenance import Basis, Source, worst


class Spec(BaseModel):
    """A frozen noun; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values of some fields, not validated; what was worked out of the old ones is forgotten."""
        found = super().model_copy(update=update, deep=deep)
        for name in _worked_out(type(self)):
            found.__dict__.pop(name, None)
        return found


@cache
def _worked_out(kind: type[Spec]) -> tuple[str, ...]:
    """Names of the properties that keep their value."""
    return tuple(
        name for base in kind.__mro__ for name, held in vars(base).items() if isinstance(held, cached_property)
    )


class SourcedSpec(Spec):
    """A noun whose numbers say where they were read; `""` holds the source of every number not listed by itself."""

    name: str = "inline"
    sources: dict[str, Source] = Field(default_factory=dict)

    def basis(self, *fields: str) -> Basis:
        """The worst basis of the named fields; a number without a source is the user's own, hence `assumed`."""
        default = self.sources.get("")
        found = (self.sources.get(field, default) for field in fields)
        return worst(source.basis if source else "assumed" for source in found)
