"""Which sweep a folder belongs to: kept beside its answers, so that another sweep does not replace its table.

The same sweep has the same scenario, road and question, and varies at least the fields that it varied. Its values,
points, seeds and metrics may be others, and whatever computes it: that is how a sweep grows.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields

from moesim.errors import UserError, shorten
from moesim.specs.sweep import SweepSpec
from moesim.sweeps.base import Base

HEADER = "sweep.json"
_HASH_BYTES = 16
_MOST_FIELDS = 4


@dataclass(frozen=True)
class Header:
    """A sweep in short. `scenario` is its name, `written` the hash of its document, `meant` of what that says with all
    names looked up; "" where it says nothing without the points."""

    question: str
    scenario: str
    road: str
    fields: tuple[str, ...]
    written: str
    meant: str

    def text(self) -> str:
        """As it stands in the folder."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def differences(self, there: Header) -> list[str]:
        """In what this is another sweep than the one that is there; nothing where it is the same."""
        named = [name for name in ("question", "road") if getattr(self, name) != getattr(there, name)]
        if self.written != there.written and (self.meant != there.meant or not self.meant):
            named.append("scenario")
        if not set(there.fields) <= set(self.fields):
            named.append("fields that vary")
        return named

    def __str__(self) -> str:
        shown = [*self.fields[:_MOST_FIELDS], *(["..."] if len(self.fields) > _MOST_FIELDS else [])]
        what = f"{self.road} of {self.scenario} over {', '.join(map(shorten, shown)) or 'seeds'}"
        return f'"{shorten(self.question, 100)}" ({what})' if self.question else what


def header_of(spec: SweepSpec, base: Base) -> Header:
    """The header of a sweep of `base`."""
    document = json.dumps(base.document, sort_keys=True, default=str)
    try:
        meant = base.at({}).key
    except UserError:
        meant = ""
    return Header(spec.question, base.name or base.where, spec.road, spec.fields, _hash(document), meant)


def read_header(text: str) -> Header | None:
    """The header in a text; None where that was cut or changed."""
    try:
        found = json.loads(text)
        header = Header(**{one.name: found[one.name] for one in fields(Header)})
    except (ValueError, KeyError, TypeError):
        return None
    texts = (header.question, header.scenario, header.road, header.written, header.meant, *header.fields)
    return Header(**{**asdict(header), "fields": tuple(header.fields)}) if _all_text(texts) else None


def another(folder: object, there: Header, this: Header) -> UserError:
    """What to say where `folder` belongs to another sweep."""
    which = " and ".join(this.differences(there))
    return UserError(
        f"{folder} holds another sweep: {there}; this one is {this}. They differ in {which}: name another --out"
    )


def _all_text(values: tuple[object, ...]) -> bool:
    return all(isinstance(value, str) for value in values)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).hexdigest()
