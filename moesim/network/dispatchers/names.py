"""Which dispatcher answers for a library by whatever name it goes."""

from __future__ import annotations

import re
from collections.abc import Collection

from moesim.network.coefficients import law


def nearest(name: str, known: Collection[str]) -> tuple[str, str]:
    """The dispatcher of `known` that answers for `name`, and a note where it was not fitted on that library."""
    if name in known:
        return name, ""
    word = re.sub(r"[^a-z0-9]", "", name.lower())
    same = {re.sub(r"[^a-z0-9]", "", own): own for own in known}
    if word in same:
        return same[word], ""
    libraries = law("libraries")
    for rule in libraries.data["patterns"]:
        if re.search(rule["pattern"], word):
            found = str(rule["dispatcher"])
            return found, "" if rule.get("itself") else _note(name, found)
    fallback = str(libraries.data["fallback"])
    return fallback, _note(name, fallback)


def _note(name: str, found: str) -> str:
    return f"library {name}: no law of its own, answered by {found}"
