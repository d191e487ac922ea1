"""The rooms that are mutated, their files and a sample of their mutants."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from mutants import Mutant, mutants_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROOMS: dict[str, Any] = yaml.safe_load((HERE / "rooms.yaml").read_text(encoding="utf-8"))


def sources(room: str) -> list[str]:
    """Files of a room, below the root."""
    paths = {path for pattern in ROOMS[room]["sources"] for path in ROOT.glob(pattern)}
    return sorted({path.relative_to(ROOT).as_posix() for path in paths} - set(ROOMS[room].get("but", ())))


def test_files(room: str) -> list[str]:
    """Test files that judge it, below the root."""
    return [f"tests/{name}" for name in ROOMS[room]["tests"]]


def sample(room: str, size: int, seed: int) -> list[Mutant]:
    """One mutant, drawn at random, of each of `size` places of the room, each as likely as any other; 0: all places."""
    places: dict[tuple[str, int, int, str], list[Mutant]] = {}
    for one in sorted(one for path in sources(room) for one in mutants_of(ROOT, path)):
        places.setdefault(one.place, []).append(one)
    print(f"{room}: {len(places)} places, {sum(map(len, places.values()))} mutants in all", flush=True)
    draw = random.Random(seed)
    chosen = sorted(draw.choice(found) for found in places.values())
    return chosen if not 0 < size < len(chosen) else sorted(draw.sample(chosen, size))
