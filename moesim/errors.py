"""The whole exception tree; every verb turns it into one clear message and an exit code.

MoesimError
├── UserError             exit 2   the user's mistake: what, where, allowed, nearest
│   ├── ScenarioError              a scenario, with *all* its problems at once
│   ├── UnitError                  a quantity that does not parse or has the wrong dimension
│   ├── UnknownNameError           a name that no catalog holds, with the nearest known one
│   └── FileError                  a file that cannot be read or written
├── MissingPackageError   exit 2   an optional package is absent, with the line that installs it
├── InfeasibleError       exit 3   a legal question whose answer is "it does not fit", with the binding limit
├── ToleranceError        exit 1   a stated tolerance or limit is broken
└── InternalError         exit 70  our bug: a conservation law or an invariant is broken
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

LISTED = 50

# What steers a terminal: control characters, and marks that turn the direction of text; halves of characters, which
# undecodable file names hold, cannot be printed at all.
_STEERING = dict.fromkeys(
    (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "�"
)
_STEERING |= dict.fromkeys(range(0xD800, 0xE000), "�") | {ord("\t"): " "}
_STEERING_BUT_LINES = {code: text for code, text in _STEERING.items() if code != ord("\n")}


def visible(text: str, lines: bool = True) -> str:
    """Text without what steers a terminal, whoever wrote it; `lines`: it may have several."""
    return text.translate(_STEERING_BUT_LINES if lines else _STEERING)


class MoesimError(Exception):
    """Root of everything that moesim raises on purpose."""

    exit_code = 70

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(str(message)))


class UserError(MoesimError, ValueError):
    """The user's mistake; the message says what, where, what is allowed, and the nearest legal value."""

    exit_code = 2


class UnitError(UserError):
    """A quantity that does not parse, or has the wrong dimension."""


class FileError(UserError):
    """A file that cannot be read or written, with the reason, in one line whatever the file's name."""

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(str(message), lines=False))


class UnknownNameError(UserError):
    """A name that is not known; the message offers the nearest known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {shorten(name)!r}{nearest_hint(name, known)}")


class MissingPackageError(MoesimError, ImportError):
    """An optional package is not installed; the message says what to install."""

    exit_code = 2


class InfeasibleError(MoesimError):
    """A legal question whose answer is no: the message names the binding limit and what would relax it."""

    exit_code = 3


class ToleranceError(MoesimError):
    """A stated tolerance or limit is broken."""

    exit_code = 1


class InternalError(MoesimError):
    """Our bug; please report it."""

    exit_code = 70


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where it is (a dotted key) and what is wrong, with the repair."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class ScenarioError(UserError):
    """Everything that is wrong with one scenario, reported together, the first `LISTED` in words."""

    def __init__(self, problems: Iterable[Problem], source: str = "scenario") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = len(self.problems)
        lines = [visible(f"  - {problem}", lines=False) for problem in self.problems[:LISTED]]
        lines += [f"  - and {count - LISTED:,} more"] if count > LISTED else []
        head = visible(f"{source}: {count:,} problem{'s' if count != 1 else ''}", lines=False)
        super().__init__("\n".join([head, *lines]))


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """A clause naming the nearest known names, or all of them where there are few; empty where none is known."""
    known = sorted(known)
    close = get_close_matches(str(name)[:100], known, n=3, cutoff=0.5)
    if close:
        return f"; nearest: {', '.join(close)}"
    if len(known) <= 12:
        return f"; allowed: {', '.join(known)}" if known else ""
    return f"; {len(known)} are known, among them {', '.join(known[:6])}"


def shorten(value: object, limit: int = 80) -> str:
    """The text of `value`, cut to `limit` characters, control characters made visible."""
    text = value if isinstance(value, str) else _repr(value)
    text = "".join(character if character.isprintable() else "�" for character in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _repr(value: object) -> str:
    """As `repr`; of a number with more digits than Python writes out, what it is."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"
