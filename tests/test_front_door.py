"""The front door: what `__all__` says, what is bound, and what the README lists agree; start-up stays light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import moesim

README = Path(__file__).parents[1] / "README.md"


def test_all_names_are_bound_and_nothing_else() -> None:
    assert sorted(moesim.__all__) == moesim.__all__
    assert set(moesim.__all__) == set(moesim._DOORS)
    for name in moesim.__all__:
        assert getattr(moesim, name) is vars(moesim)[name]
        assert callable(getattr(moesim, name))


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(moesim, "no_such_name")


def test_readme_lists_every_name() -> None:
    listed = set(re.findall(r"`moesim\.(\w+)", README.read_text(encoding="utf-8")))
    assert set(moesim.__all__) <= listed


def test_rooms_do_not_shadow_the_front_door() -> None:
    """A subpackage of the same name would replace the function once it is imported."""
    package = Path(moesim.__file__).parent
    rooms = {path.stem for path in package.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert not rooms & set(moesim.__all__)


def test_importing_loads_nothing_heavy() -> None:
    heavy = ["numpy", "pandas", "numba", "altair", "scipy", "simpy", "pydantic", "typer", "rich", "pyarrow"]
    code = f"import sys, moesim; print([name for name in {heavy!r} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_help_loads_no_room() -> None:
    heavy = ["pandas", "numba", "altair", "scipy", "simpy", "pyarrow", "numpy", "pydantic"]
    code = f"import sys\nimport moesim.cli\nprint([name for name in {heavy!r} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
