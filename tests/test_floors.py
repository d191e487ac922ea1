"""Imports go one way: a file imports only from floors below its own, and inside a floor from rooms listed before it."""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "moesim"

# Lowest first. A room is a folder or a file of the package.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "version",
        "errors",
        "files",
        "inputs",
        "thrift",
        "parquet_files",
        "units",
        "garbage",
        "randomness",
        "provenance",
        "columns",
        "shipped",
    ),
    ("specs", "catalog"),
    ("routing", "traces", "placement"),
    ("network", "costs", "measurement"),
    ("scenario", "step", "iteration", "results"),
    ("closed_form", "engine", "serving"),
    ("roads", "curves", "screening"),
    ("validation", "calibration", "sweeps", "rebalancing"),
    ("planner",),
    ("listing",),
    ("__init__",),
    ("terminal",),
    (
        "compare_cli",
        "trace_cli",
        "evidence_cli",
        "sweep_cli",
        "place_cli",
        "rebalance_cli",
        "plan_cli",
        "dashboard_cli",
        "sensitivity_cli",
    ),
    ("cli",),
    ("__main__",),
)
RANK = {room: (floor, place) for floor, rooms in enumerate(FLOORS) for place, room in enumerate(rooms)}
INDEPENDENT_ROADS = {"closed_form", "engine"}

# Foreign packages with one door each: package -> the only files (patterns) or rooms that may import it.
DOORS = {
    "simpy": ("engine", "serving"),
    "torch": ("traces/torch_*.py", "measurement/torch_*.py"),
    "altair": (
        "*/charts.py",
        "results/*_charts.py",
        "sweeps/*_charts.py",
        "results/*_chart.py",
        "results/chart_style.py",
    ),
    "vl_convert": ("results/page.py", "results/charts.py"),
    "numba": ("*_kernels.py",),
    "dask": ("sweeps/dask_executor.py",),
    "distributed": ("sweeps/dask_executor.py",),
    "streamlit": (),
}
# Lazy doors: files that may import first-party modules inside functions, because start-up time matters there.
LAZY_DOORS = {
    "__init__.py",
    "cli.py",
    "compare_cli.py",
    "trace_cli.py",
    "evidence_cli.py",
    "place_cli.py",
    "rebalance_cli.py",
    "plan_cli.py",
    "sweep_cli.py",
    "sensitivity_cli.py",
    "sweeps/effects.py",
    "planner/plan.py",
    "roads.py",
    "results/result.py",
    "serving/result.py",
    "results/compare.py",
}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(tree: ast.AST) -> list[tuple[str, ast.AST]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(f"{node.module}.{alias.name}", node) for alias in node.names]
    return found


def target_room(module: str) -> str | None:
    """The room of an imported first-party name; the front door is `__init__`."""
    parts = module.split(".")
    if parts[0] != "moesim":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"


def test_every_room_stands_on_a_floor() -> None:
    assert {room_of(path) for path in FILES} <= set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = room_of(path)
    wrong = []
    for module, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
        room = target_room(module)
        if room is None or room == own:
            continue
        if RANK[room] >= RANK[own] or {room, own} == INDEPENDENT_ROADS:
            wrong.append(module)
    assert not wrong, f"{own} may not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_foreign_packages_enter_at_their_door(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    for module, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
        allowed = DOORS.get(module.split(".")[0])
        if allowed is not None:
            assert any(fnmatch(name, door) or name.startswith(f"{door}/") for door in allowed), (
                f"{name} imports {module}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_hides_in_a_function(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix() in LAZY_DOORS:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    hidden = [module for function in functions for module, _ in imports(function) if module.startswith("moesim")]
    assert not hidden


def test_no_cycle_between_files() -> None:
    names = {".".join(("moesim", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    edges: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top_level = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        edges[name] = set()
        for node in top_level:
            for module, _ in imports(ast.Module(body=[node], type_ignores=[])):
                edges[name] |= {known for known in (module, module.rpartition(".")[0]) if known in names}
    settled: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path, name))}"
        if name not in settled:
            for other in edges[name] - {name}:
                visit(other, (*path, name))
            settled.add(name)

    for name in edges:
        visit(name, ())
