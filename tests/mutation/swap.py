"""A mutant put in place of its original in a process that has imported everything: functions get the changed code.

Whoever holds a function, by any name, then runs the changed one. What a module or a class body does when it is imported
cannot be changed so: those mutants need a process of their own that has not imported the module.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

Place = tuple[str, ...]
"""A module's function, or a class and its method."""


def changed_functions(original: str, mutated: str) -> list[tuple[Place, CodeType]] | None:
    """The functions whose code differs, with the new one; None where a module's or a class's own code does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `is` beside a number is a mutant as good as any
        old, new = (compile(text, "<mutant>", "exec", dont_inherit=True) for text in (original, mutated))
    try:
        found = list(_differing(old, new, ()))
    except LookupError:
        return None
    return found or None


def _differing(old: CodeType, new: CodeType, place: Place) -> Iterator[tuple[Place, CodeType]]:
    """Goes down to functions; raises `LookupError` where what runs at import differs."""
    if not _alike(old, new):
        raise LookupError
    inner = zip(_codes(old), _codes(new), strict=True)
    for index, (before, after) in enumerate(inner):
        if _same(before, after):
            continue
        last = max(at for at, code in enumerate(_codes(old)) if code.co_name == before.co_name)
        if index != last or before.co_name.startswith("<"):
            raise LookupError
        if _is_class(before):
            yield from _differing(before, after, (*place, before.co_name))
        else:
            yield (*place, before.co_name), after


def _alike(old: CodeType, new: CodeType) -> bool:
    """Whether two codes do the same, the codes within them aside."""
    if len(_codes(old)) != len(_codes(new)):
        return False
    return _shape(old) == _shape(new)


def _same(old: CodeType, new: CodeType) -> bool:
    return _alike(old, new) and all(_same(*pair) for pair in zip(_codes(old), _codes(new), strict=True))


def _shape(code: CodeType) -> tuple[Any, ...]:
    plain = tuple((type(one), repr(one)) for one in code.co_consts if not isinstance(one, CodeType))
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_exceptiontable, plain


def _codes(code: CodeType) -> list[CodeType]:
    return [one for one in code.co_consts if isinstance(one, CodeType)]


def _is_class(code: CodeType) -> bool:
    return "__module__" in code.co_names and "__qualname__" in code.co_names


def put(module: str, changed: list[tuple[Place, CodeType]]) -> None:
    """Puts the new codes in place and empties the module's caches. Raises `LookupError` where one is not found."""
    for place, code in changed:
        owner: Any = vars(sys.modules[module])
        for name in place[:-1]:
            owner = vars(owner[name])
        _function(owner[place[-1]]).__code__ = code
    for one in vars(sys.modules[module]).values():
        if hasattr(one, "cache_clear"):
            one.cache_clear()


def _function(found: Any) -> FunctionType:
    """The plain function in a property, a class method, a cache or another wrapper."""
    for name in ("__wrapped__", "func", "fget", "__func__"):
        inner = getattr(found, name, None)
        if not isinstance(found, FunctionType) and inner is not None:
            return _function(inner)
    wrapped = getattr(found, "__wrapped__", None)
    if isinstance(wrapped, FunctionType):
        return _function(wrapped)
    if isinstance(found, FunctionType):
        return found
    raise LookupError(f"{found!r} is no function")
