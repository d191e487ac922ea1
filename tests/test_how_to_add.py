"""What the README says about adding a model, GPU, router, dispatcher or importer, done as written and used.

The snippets are cut out of the README. Data goes into a MOESIM_CATALOG folder; files and registry lines go into a copy
of the package, where the suites that a newcomer is told of find them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moesim
from moesim import catalog

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRACTS = {
    "tests/test_routing_contract.py": "top-any",
    "tests/test_routers_expected.py": "top-any",
    "tests/test_network_dispatchers.py": "direct-put",
    "tests/test_network_laws.py": "source_and_a_residual",
    "tests/test_network_choice.py": "test_network_choice",
    "tests/test_trace_importers.py": "token-lines",
    "tests/test_floors.py": "top_any or direct_put or token_lines or cycle",
}
USED = """
import json, sys
import moesim
from moesim.traces.importers import read, recognise, Source

scenario = moesim.load("olmoe-8-h100", ["routing.router=top-any", "simulation.microbatch_samples=1"])
quick, whole = moesim.estimate(scenario), moesim.simulate(scenario)
rows = moesim.compare_dispatchers(moesim.load("deepseek-v3-2048-h800"))
trace = read("tokens.jsonl")
print(json.dumps({
    "router": [answer.summary["step_time"].value for answer in (quick, whole)],
    "dispatchers": {row.name: row.result and row.result.summary["step_time"].value for row in rows},
    "importer": recognise(Source("tokens.jsonl")).name,
    "experts": trace.experts.tolist(),
    "sequence": trace.sequence.tolist(),
}))
"""


def fences(marker: str) -> list[tuple[str, str, str]]:
    """Language, path and text of the fenced blocks from an HTML comment to the next heading or comment."""
    begin = README.index(f"<!-- add: {marker} -->\n") + 1
    end = min(found for sign in ("<!-- add", "\n## ", "\n### ") if (found := README.find(sign, begin)) > 0)
    blocks = re.findall(r"```(\w+)\n ?# (\S+)\n(.*?)```", README[begin:end], flags=re.DOTALL)
    assert blocks, marker
    return blocks


def patched(text: str, change: str) -> str:
    """A text with the lines added that a change marks with "+", each after the last line before it that is not marked;
    at the end where there is none."""
    lines, at = text.splitlines(), None
    for line in change.splitlines():
        if line.startswith("+"):
            lines.insert(len(lines) if at is None else at, line[1:])
            at = None if at is None else at + 1
        else:
            at = lines.index(line[1:], at or 0) + 1
    return "\n".join(lines) + "\n"


@pytest.fixture
def own_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for marker in ("model", "gpu"):
        for _, path, text in fences(marker):
            (tmp_path / path).write_text(text, encoding="utf-8")
    monkeypatch.setenv("MOESIM_CATALOG", str(tmp_path))
    return tmp_path


def test_a_model_and_a_gpu_are_entries_of_a_folder(own_catalog: Path) -> None:
    overrides = re.findall(r"--set (\S+=my-\w+)", README)
    assert len(overrides) == 2
    own = moesim.load("olmoe-8-h100", [*overrides, "simulation.microbatch_samples=1"])
    assert (own.model.name, own.cluster.gpu.name) == ("my-moe", "my-gpu")
    assert {own.model.sources[""].basis, own.cluster.gpu.sources[""].basis} == {"paper", "datasheet"}
    times = [road(own).summary["step_time"] for road in (moesim.estimate, moesim.simulate)]
    assert times[0].value == pytest.approx(times[1].value, rel=0.05)
    # The GPU is slower than an H100 in every rate but that of its memory.
    there = moesim.estimate(moesim.load("olmoe-8-h100", overrides[:1])).summary["step_time"]
    assert times[0].value > there.value


def test_a_router_with_other_numbers_is_an_entry_too(own_catalog: Path) -> None:
    (own_catalog / "routers.yaml").write_text("my-gate: {rule: gshard-top-2, second_threshold: 0.3}\n")
    assert "my-gate" in catalog.names("routers")
    found = moesim.load("mixtral-8x7b-64-h100", ["routing.router=my-gate"])
    assert (found.model.router.rule, found.model.router.second_threshold) == ("gshard-top-2", 0.3)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a newcomer edits, with the README's router, dispatcher and importer in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("moesim", "scenarios"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc", "*.tmp.*"))
    (folder / "tests").mkdir()
    for path in (ROOT / "tests").glob("*.py"):
        shutil.copy(path, folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for marker in ("router", "dispatcher", "importer"):
        for language, name, text in fences(marker):
            path = folder / name
            path.write_text(text if language == "python" else patched(path.read_text(), text), encoding="utf-8")
    return folder


def run(checkout: Path, *words: str) -> str:
    own = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, *words], cwd=checkout, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_router_dispatcher_and_importer_are_used(checkout: Path) -> None:
    lines = [{"sequence": 0, "experts": [[3, 9], [0, 5]]}, {"sequence": 1, "experts": [[1, 2], [4, 7]]}]
    (checkout / "tokens.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    found = json.loads(run(checkout, "-c", USED))
    quick, whole = found["router"]
    assert whole == pytest.approx(quick, rel=0.08)
    seconds = {name: time for name, time in found["dispatchers"].items() if time is not None}
    # One copy a rank is less than one a choice; two hops send less over the NICs.
    assert seconds["deepep-normal"] < seconds["direct-put"] < seconds["nccl-all-to-all"]
    assert found["importer"] == "token-lines"
    np.testing.assert_array_equal(found["experts"], [line["experts"] for line in lines])
    assert found["sequence"] == [0, 1]


def test_the_suites_run_on_them_at_once(checkout: Path) -> None:
    words = ["-p", "no:cacheprovider", "-k", " or ".join(CONTRACTS.values()), *CONTRACTS]
    told = run(checkout, "-m", "pytest", "-v", *words)
    for file, name in CONTRACTS.items():
        ran = [line for line in told.splitlines() if line.startswith(file) and "PASSED" in line]
        assert any(re.search(name.replace(" or ", "|"), line) for line in ran), f"{file} did not run on {name}"
