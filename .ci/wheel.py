"""Smoke test of what is released: builds the sdist, the wheel from the sdist, and uses the wheel outside the checkout.

    .venv/bin/python .ci/wheel.py

The wheel goes into a fresh virtual environment that sees, of this one's packages, only what the wheel says that it
requires (linked, so that nothing is downloaded twice): a requirement that is not declared is missing there, and so is
every extra. Commands then run in an empty folder, under a new HOME, without the checkout on any path.
"""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SCENARIO = "olmoe-8-h100"
KINDS = {".py", ".yaml", ".safetensors", ".toml", ".typed", ".css"}
MISSING = {
    "app": ("dashboard",),
    "trace": ("trace", "train", "--out", "trained"),
    "dask": ("sweep", "sweeps/capacity-mixtral-64-h100", "--executor", "dask"),
}


def main() -> None:
    """Builds, installs, uses; raises where anything is not as a user would need it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = told("build", build, folder)
        told("contents", check_contents, wheel)
        python = told("install", install, wheel, folder)
        use(python, folder)


def told(what: str, step: Callable[..., Any], *given: Any) -> Any:
    """The step's answer; says how long it took."""
    begin = time.monotonic()
    answer = step(*given)
    print(f"wheel: {what} {time.monotonic() - begin:.1f} s", flush=True)
    return answer


def run(words: list[str], **how: Any) -> str:
    """What a command prints; raises with both streams where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **how)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel, made of the sdist's files alone."""
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    run([*pip, "install", "--target", str(folder / "backend"), *backend])
    own = {**os.environ, "PYTHONPATH": str(folder / "backend")}
    dist = folder / "dist"
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(dist)], cwd=ROOT, env=own)
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as packed:
        packed.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)], cwd=unpacked, env=own)
    (wheel,) = dist.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Raises for a file of the package, the app or the scenarios that did not travel."""
    places = {"moesim": "moesim", "app": "moesim/_app", "scenarios": "moesim/_scenarios"}
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in places.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.suffix in KINDS or path.name == "py.typed"]
        lost = [str(path) for path in files if f"{place}/{path.relative_to(ROOT / folder).as_posix()}" not in held]
        if lost or not files:
            raise SystemExit(f"not in {wheel.name}: {', '.join(lost) or folder}")


def install(wheel: Path, folder: Path) -> Path:
    """The Python of a fresh environment that holds the wheel and what it requires."""
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "fresh")])
    python = folder / "fresh" / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    with zipfile.ZipFile(wheel) as packed:
        (metadata,) = [name for name in packed.namelist() if name.endswith(".dist-info/METADATA")]
        required = email.message_from_bytes(packed.read(metadata)).get_all("Requires-Dist") or []
    link(required, site)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", str(python)]
    run([*pip, "install", "--no-deps", "--no-index", str(wheel)])
    run([*pip, "check"])
    return python


def link(required: list[str], site: Path) -> None:
    """Puts the packages that a list of requirements needs, and what these need, into `site`, each as a link."""
    waiting, seen = [Requirement(text) for text in required], set()
    while waiting:
        one = waiting.pop()
        if one.name in seen or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        seen.add(one.name)
        found = distribution(one.name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
        waiting += [Requirement(text) for text in found.requires or ()]


def use(python: Path, folder: Path) -> None:
    """The main verbs, as one who has installed the wheel and nothing else."""
    away, home = folder / "away", folder / "home"
    away.mkdir()
    home.mkdir()
    how = {"cwd": away, "env": {"HOME": str(home), "PATH": f"{python.parent}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}}
    where = run([str(python), "-c", "import moesim; print(moesim.__file__)"], **how).strip()
    expect(Path(where).is_relative_to(python.parents[1]), f"moesim comes from {where}")

    def verb(*words: str) -> str:
        return told(f"moesim {' '.join(words)}", lambda: run(["moesim", *words], **how))

    expect("simulate" in verb("--help"), "--help names no verbs")
    expect("traces" in verb("catalog"), "the catalog has no traces")
    quick = json.loads(verb("estimate", SCENARIO, "--json"))["summary"]["step_time"]["value"]
    whole = json.loads(verb("simulate", SCENARIO, "--set", "simulation.microbatch_samples=1", "--json"))
    slow = whole["summary"]["step_time"]["value"]
    expect(0.8 < slow / quick < 1.25, f"estimated {quick} s, simulated {slow} s")
    results = away / "out" / SCENARIO
    expect((results / "report.html").is_file() and (results / "operations.parquet").is_file(), "results are missing")
    expect("step" in verb("trace", "inspect", "cpu-small-switch-top-1"), "the trace is not told")
    for extra, words in MISSING.items():
        told(f"moesim {' '.join(words)}, without the extra {extra}", lack, extra, words, how)


def lack(extra: str, words: tuple[str, ...], how: dict[str, Any]) -> None:
    """Raises where a verb whose extra is missing says anything but the one line that installs it."""
    done = subprocess.run(["moesim", *words], capture_output=True, text=True, check=False, **how)
    one = done.stderr.count("\n") == 1 and f"pip install 'moesim[{extra}]'" in done.stderr
    expect(done.returncode == 2 and one, f"moesim {words[0]} without {extra} says: {done.stderr or done.stdout}")


def expect(holds: bool, otherwise: str) -> None:
    """Raises where it does not hold."""
    if not holds:
        raise SystemExit(f"wheel: {otherwise}")


if __name__ == "__main__":
    main()
