"""What a run found: failures by name with the smallest input of each, the slowest inputs, and the peak of memory."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .guard import Verdict


@dataclass
class Findings:
    """Counts as it goes and writes `NAME.json` and the inputs worth keeping into `folder`."""

    name: str
    generator: str
    folder: Path
    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    def add(self, data: bytes, verdict: Verdict) -> None:
        """Counts one input."""
        self.inputs += 1
        self.accepted += verdict.accepted
        if verdict.seconds > self.slowest:
            self.slowest = verdict.seconds
            self._keep("slowest", data)
        if verdict.failure is not None:
            known = self.failures.setdefault(verdict.failure.name, {"inputs": 0, "bytes": len(data) + 1})
            known["inputs"] += 1
            if len(data) < known["bytes"]:
                known |= {"bytes": len(data), **asdict(verdict.failure)}
                known["kept"] = self._keep(f"failure-{list(self.failures).index(verdict.failure.name)}", data)
        if self.inputs % 1000 == 0 or (verdict.failure and self.failures[verdict.failure.name]["inputs"] == 1):
            self.write()

    def write(self) -> None:
        """Writes what is known so far."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        told = {
            "target": self.name,
            "generator": self.generator,
            "inputs": self.inputs,
            "accepted": self.accepted,
            "slowest_seconds": round(self.slowest, 3),
            "peak_bytes": peak,
            "wall_seconds": round(time.monotonic() - self.begin, 1),
            "failures": self.failures,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.name}-{self.generator}.json").write_text(json.dumps(told, indent=1) + "\n")

    def __str__(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = time.monotonic() - self.begin
        lines = [
            f"{self.name} ({self.generator}): {self.inputs:,} inputs in {seconds:,.0f} s, {self.accepted:,} accepted, "
            f"slowest {self.slowest:.2f} s, peak {peak:.2f} GiB, {len(self.failures)} failures"
        ]
        lines += [f"  {told['inputs']:>6}x {name}: {told['kept']}" for name, told in self.failures.items()]
        return "\n".join(lines)

    def _keep(self, what: str, data: bytes) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}-{self.generator}-{what}.bin"
        path.write_bytes(data)
        return str(path)
