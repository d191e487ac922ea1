"""Links that a scenario writes by hand, and links that are slow or broken.

The ends of a link are nodes: `gpu5` is the GPU of that number in the cluster, any other name (`leaf0`, `spine`, `nic3`)
is a switch or a port that has no traffic of its own. `gpu0-7` is a range.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from moesim.errors import UserError, shorten
from moesim.specs.base import Spec
from moesim.units import BytesPerSecond

DegradedKind = Literal["nic", "scale-up", "uplink", "plane"]
Number = Annotated[int, Field(strict=True, ge=0, lt=1 << 22)]

LEAST_SHARE = 1e-6
"""What is left of a link that still works."""

_NODE = re.compile(r"([A-Za-z](?:[A-Za-z0-9_.]*[A-Za-z_.])?)(?:(\d{1,7})(?:-(\d{1,7}))?)?")
_TARGETS: dict[str, tuple[str, ...]] = {
    "nic": ("gpu",),
    "scale-up": ("gpu",),
    "uplink": ("leaf", "pod"),
    "plane": ("plane",),
}


@dataclass(frozen=True)
class Nodes:
    """The nodes `prefix` + `first` to `last`; a name without a number has neither."""

    prefix: str
    first: int | None
    last: int | None

    @property
    def are_gpus(self) -> bool:
        """Whether they are GPUs of the cluster."""
        return self.prefix == "gpu"

    def __len__(self) -> int:
        return 1 if self.first is None or self.last is None else self.last - self.first + 1

    @property
    def names(self) -> list[str]:
        """All their names in order."""
        if self.first is None or self.last is None:
            return [self.prefix]
        return [f"{self.prefix}{number}" for number in range(self.first, self.last + 1)]


def nodes(text: str) -> Nodes:
    """The nodes that one end of a link names. Raises `UserError` where the text names none."""
    match = _NODE.fullmatch(text)
    if match is None:
        raise UserError(
            f"{shorten(text)!r} names no node; allowed: gpu5, gpu0-7, or a switch's name of letters, digits, _ and . "
            "such as leaf0 or leaf0-3"
        )
    prefix, first, last = match[1], match[2], match[3]
    if prefix.lower() in ("gpu", "gpus"):
        if first is None or prefix.lower() == "gpus":
            raise UserError(f"{text!r} names no GPU; allowed: gpu5, or gpu0-7 for a range")
        prefix = "gpu"
    if first is None:
        return Nodes(prefix, None, None)
    if last is not None and int(last) < int(first):
        raise UserError(f"{text!r} runs backwards; nearest: {prefix}{last}-{first}")
    return Nodes(prefix, int(first), int(last if last is not None else first))


def _two_ends(between: object) -> object:
    """`between` where it names two ends."""
    if not isinstance(between, (list, tuple)) or len(between) != 2 or not all(isinstance(end, str) for end in between):
        raise UserError(f"expected the two ends of a link, such as [gpu0-7, leaf0], got {shorten(between)}")
    for text in between:
        nodes(text)
    return between


Ends = Annotated[tuple[str, str], BeforeValidator(_two_ends)]


class LinkSpec(Spec):
    """Links `between` two ends, `bandwidth` each way; `count` parallel ones count as one of their joint bandwidth.

    Where both ends are ranges, every node of one is joined to every node of the other; `pairwise` joins first with
    first and second with second, the shorter range over and over. `one_way`: from the first end to the second only.
    """

    between: Ends
    bandwidth: BytesPerSecond
    count: int = Field(strict=True, default=1, ge=1, le=1 << 16)
    one_way: bool = False
    pairwise: bool = False

    @model_validator(mode="after")
    def _pairs_up(self) -> LinkSpec:
        one, other = sorted(len(nodes(text)) for text in self.between)
        if self.pairwise and other % one:
            raise ValueError(f"pairwise: {other} nodes are not a multiple of {one}")
        return self

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The nodes that a link joins, one pair a link."""
        one, other = (nodes(text).names for text in self.between)
        if self.pairwise:
            most = max(len(one), len(other))
            return [(one[place % len(one)], other[place % len(other)]) for place in range(most)]
        return [(here, there) for here in one for there in other]

    @property
    def number(self) -> int:
        """How many pairs that makes, without writing them out."""
        one, other = (len(nodes(text)) for text in self.between)
        return max(one, other) if self.pairwise else one * other


class DegradedSpec(Spec):
    """Links that have only `share` of their bandwidth left; 0 is a failed link. Both directions.

    `link` is a `gpu`'s nic (or all its NICs, or hand-written links together), a `gpu`'s scale-up links, the uplinks of
    a `leaf` or a `pod`, or a `plane`; `between` names single links: hand-written ones, or of a mesh or torus of GPUs.
    """

    link: DegradedKind | None = None
    between: Ends | None = None
    gpu: Number | None = None
    leaf: Number | None = None
    pod: Number | None = None
    plane: Number | None = None
    share: float = Field(ge=0.0, le=1.0)

    @field_validator("share")
    @classmethod
    def _not_next_to_nothing(cls, share: float) -> float:
        if 0 < share < LEAST_SHARE:
            raise ValueError(f"must be 0 for a failed link, or at least {LEAST_SHARE:g}")
        return share

    @model_validator(mode="after")
    def _says_which(self) -> DegradedSpec:
        if (self.link is None) == (self.between is None):
            raise ValueError("needs either link (nic, scale-up, uplink or plane) or between: [NODE, NODE]")
        stated = [name for name in ("gpu", "leaf", "pod", "plane") if getattr(self, name) is not None]
        allowed = _TARGETS[self.link] if self.link else ()
        if allowed and (len(stated) != 1 or stated[0] not in allowed):
            got = ", ".join(stated) or "none"
            raise ValueError(f"link {self.link} needs {' or '.join(allowed)}: NUMBER, got {got}")
        if not allowed and stated:
            raise ValueError(f"between names the link; {stated[0]} says nothing here")
        return self

    @property
    def words(self) -> str:
        """How a note calls it: "nic of gpu 5"."""
        if self.between is not None:
            return f"link {self.between[0]} - {self.between[1]}"
        target = next(name for name in _TARGETS[self.link or "nic"] if getattr(self, name) is not None)
        return f"{self.link} of {target} {getattr(self, target)}" if self.link != "plane" else f"plane {self.plane}"
