"""How large what a pickle describes would be, told from its opcodes alone: nothing is built, and nothing of it runs.

A pickle may refer to what it has made already, so that a few hundred bytes stand for a tree of billions; whoever walks
the tree, or hashes it as a key, never comes to an end.
"""

from __future__ import annotations

import pickletools
from typing import IO, Any

MOST_OPCODES = 20_000_000
MOST_GROWTH = 8
FREE_OBJECTS = 10_000
_PUT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GET = ("GET", "BINGET", "LONG_BINGET")
# These put items into what lies below them, which stays on the stack.
_FILL = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


class _Node:
    """An object of the pickle, and what is in it."""

    __slots__ = ("inner", "size")

    def __init__(self, inner: list[Any]) -> None:
        self.inner = inner
        self.size = 0


_MARK = _Node([])


def check_growth(file: IO[bytes]) -> None:
    """Raises `ValueError` where a pickle stands for far more objects than it has opcodes, holds itself, or is none."""
    stack: list[_Node] = []
    memo: dict[int, _Node] = {}
    opcodes = 0
    for opcode, argument, _ in pickletools.genops(file):
        opcodes += 1
        if opcodes > MOST_OPCODES:
            raise ValueError(f"it has more than {MOST_OPCODES:,} opcodes")
        if opcode.name != "STOP":
            _step(opcode, argument, stack, memo)
    most = FREE_OBJECTS + MOST_GROWTH * opcodes
    if stack and _size(stack[-1], most) > most:
        raise ValueError(f"its {opcodes:,} opcodes would grow to more than {most:,} objects")


def _step(opcode: Any, argument: Any, stack: list[_Node], memo: dict[int, _Node]) -> None:
    """One opcode, as `pickletools.dis` follows it."""
    if opcode.name in _PUT:
        if not stack:
            raise ValueError("it is damaged")
        memo[len(memo) if opcode.name == "MEMOIZE" else int(argument)] = stack[-1]
        return
    if opcode.name in _GET:
        if int(argument) not in memo:
            raise ValueError("it is damaged")
        stack.append(memo[int(argument)])
        return
    taken = _taken(opcode, stack)
    if opcode.name in _FILL and taken:
        taken[0].inner.extend(taken[1:])
        stack.append(taken[0])
    elif opcode.name == "DUP" and taken:
        stack += [taken[0], taken[0]]
    elif opcode.name == "MARK":
        stack.append(_MARK)
    else:
        stack += [_Node(taken) for _ in opcode.stack_after]


def _taken(opcode: Any, stack: list[_Node]) -> list[_Node]:
    """What an opcode takes from the stack, lowest first, without the mark."""
    before = opcode.stack_before
    marked = pickletools.markobject in before or (opcode.name == "POP" and bool(stack) and stack[-1] is _MARK)
    fixed = before.index(pickletools.markobject) if pickletools.markobject in before else len(before)
    above: list[_Node] = []
    if marked and opcode.name != "MARK":
        while stack and stack[-1] is not _MARK:
            above.append(stack.pop())
        if not stack:
            raise ValueError("it is damaged")
        stack.pop()
        fixed = 0 if opcode.name == "POP" else fixed
    if len(stack) < fixed:
        raise ValueError("it is damaged")
    below = stack[len(stack) - fixed :]
    del stack[len(stack) - fixed :]
    return [*below, *reversed(above)]


def _size(root: _Node, most: int) -> int:
    """Objects of the tree, shared ones counted wherever they stand, up to `most` + 1; each node is looked at once.
    A size of -1 stands for a node whose inside is being counted."""
    todo = [root]
    while todo:
        node = todo[-1]
        if node.size > 0:
            todo.pop()
        elif node.size == 0:
            node.size = -1
            todo += [inner for inner in node.inner if inner.size == 0]
            if any(inner.size == -1 for inner in node.inner):
                raise ValueError("it holds itself")
        else:
            node.size = min(most + 1, 1 + sum(inner.size for inner in node.inner))
            todo.pop()
    return root.size
