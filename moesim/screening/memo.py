"""What laws said of one scenario and its choices, kept between calls: a planner asks for the neighbours of its best
candidates in many small batches, which share nearly all of their keys."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from moesim.scenario.scenario import Scenario
from moesim.screening.candidates import Choices

T = TypeVar("T")
_SCENARIOS = 2
"""Of how many scenarios, the last ones, answers are kept."""
_MOST = {"group loads": 256, "layouts": 4096}
"""Answers that take much memory, and how many of them are kept at most."""


class Memo:
    """Answers by law and key, of one scenario and one set of choices."""

    def __init__(self, scenario: Scenario, choices: Choices) -> None:
        self.of = (scenario, choices)
        self._laws: dict[str, dict[Any, Any]] = {}

    def law(self, name: str) -> dict[Any, Any]:
        """The answers of a law, to be read and added to."""
        return self._laws.setdefault(name, {})

    def answer(self, name: str, key: object, ask: Callable[[], T]) -> T:
        """The law's answer; asked for where it is not known, and kept where there is room."""
        known = self.law(name)
        if key in known:
            found: T = known[key]
            return found
        said = ask()
        if len(known) < _MOST.get(name, 1 << 20):
            known[key] = said
        return said

    def shrink(self) -> None:
        """Forgets the answers of laws that are full."""
        for name, most in _MOST.items():
            if len(self.law(name)) >= most:
                self._laws[name] = {}


_LAST: deque[Memo] = deque(maxlen=_SCENARIOS)


def memo_of(scenario: Scenario, choices: Choices) -> Memo:
    """The memo of these very objects; a new one for any others, however alike."""
    for memo in tuple(_LAST):
        if memo.of[0] is scenario and memo.of[1] is choices:
            memo.shrink()
            return memo
    made = Memo(scenario, choices)
    _LAST.append(made)
    return made
