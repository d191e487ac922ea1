"""What costs, network and capacity hand out is shared by caches and threads: nobody may change it."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(__file__).parents[1] / "moesim"
ROOMS = sorted((PACKAGE / "costs").rglob("*.py")) + sorted((PACKAGE / "network").rglob("*.py"))
ROOMS += [PACKAGE / "routing" / "capacity.py", PACKAGE / "routing" / "overflow.py"]


NAMES = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in ROOMS]
MODULES = [importlib.import_module(name) for name in NAMES]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_dataclass_is_frozen(module: ModuleType) -> None:
    own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    for one in own:
        if dataclasses.is_dataclass(one):
            assert one.__dataclass_params__.frozen, one.__name__  # type: ignore[attr-defined]
