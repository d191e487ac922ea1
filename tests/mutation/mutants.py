"""Mutants of a source file: every place where one of Cosmic Ray's operators changes it, but where nothing can see it.

Left out: annotations, which stay text under `from __future__ import annotations`; the decorator that compiles a kernel,
for kernels that are mutated run as plain Python, and the one of an overload, for the type checker alone; and bit
operators in the place of arithmetic ones, which any call refuses.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import parso.python.tree  # before cosmic_ray, whose own import of it is circular
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

assert parso.python.tree

Span = tuple[tuple[int, int], tuple[int, int]]
UNSEEN = ("compiled", "overload")
BITWISE = ("RShift", "LShift", "BitOr", "BitAnd", "BitXor")


@dataclass(frozen=True, order=True)
class Mutant:
    """The `occurrence`-th place of an operator in a file; `line` and `column` are where it begins."""

    path: str
    line: int
    column: int
    operator: str
    occurrence: int

    @property
    def name(self) -> str:
        """A short name that stays the same while the file does."""
        return f"{self.path}:{self.line}:{self.column} {self.operator} #{self.occurrence}"

    @property
    def place(self) -> tuple[str, int, int, str]:
        """Where it is, and what kind of change: replacements of one operator by others share a place."""
        return self.path, self.line, self.column, self.operator.partition("_")[0]

    def source(self, text: str) -> str:
        """The file's text with the change made."""
        changed = mutate_code(text, get_operator(f"core/{self.operator}")(), self.occurrence)
        if changed is None:
            raise ValueError(f"{self.name}: no such place")
        return str(changed)


def mutants_of(root: Path, path: str) -> Iterator[Mutant]:
    """All mutants of the file `path` below `root`, in the order of operators."""
    text = (root / path).read_text(encoding="utf-8")
    nodes, idle = list(ast_nodes(get_ast(text))), list(_idle_spans(ast.parse(text)))
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments() or _refused(name):
            continue
        operator = kind()
        places = ((begin, end) for node in nodes for begin, end in operator.mutation_positions(node))
        for occurrence, (begin, end) in enumerate(places):
            if not any(first <= begin and end <= last for first, last in idle):
                yield Mutant(path, begin[0], begin[1], name.removeprefix("core/"), occurrence)


def users(path: Path, line: int) -> Iterator[int]:
    """Lines of a file that use a name which the statement on `line` of its top level binds."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here = [node for node in tree.body if node.lineno <= line <= (node.end_lineno or node.lineno)]
    kinds = (ast.Assign, ast.AnnAssign)
    bound = {one.id for node in here if isinstance(node, kinds) for one in ast.walk(node) if _stored(one)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in bound and not _stored(node):
            yield node.lineno


def _stored(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _refused(name: str) -> bool:
    """Whether it puts a bit operator in the place of an arithmetic one."""
    family, *pair = name.removeprefix("core/").split("_")
    return family == "ReplaceBinaryOperator" and pair[0] not in BITWISE and pair[1] in BITWISE


def _idle_spans(tree: ast.Module) -> Iterator[Span]:
    """Stretches of text that nothing runs."""
    for node in ast.walk(tree):
        for part in ("annotation", "returns"):
            found = getattr(node, part, None)
            if isinstance(found, ast.expr):
                yield _span(found)
        for decorator in getattr(node, "decorator_list", ()):
            if isinstance(decorator, ast.Name) and decorator.id in UNSEEN:
                (line, column), end = _span(decorator)
                yield (line, column - 1), (end[0] + 1, 0)


def _span(node: ast.expr) -> Span:
    return (node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0)
