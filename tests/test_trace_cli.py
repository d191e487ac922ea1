"""The verb `trace` as a user meets it: import, inspect, fit, train, evolve, and what they refuse."""

from __future__ import annotations

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_cli import ROOT, refused, run
from typer.testing import CliRunner

from moesim.catalog import recorded
from moesim.errors import FileError
from moesim.routing.profile import RoutingProfile
from moesim.trace_cli import app
from moesim.traces import fit as fitting
from moesim.traces import recordings, store

NAME = "cpu-small-top-4-of-16-bias"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """The JSON lines of a vLLM logger: 40 requests of 30 tokens, 3 layers, top-2 of 8."""
    generator = np.random.default_rng(0)
    lines = [json.dumps({"type": "meta", "model": "toy", "top_k": 2})]
    for request in range(40):
        taste = generator.normal(0, 1, (3, 8))
        for token in range(30):
            for layer in range(3):
                ids = np.argsort(-(taste[layer] + generator.gumbel(size=8)))[:2].tolist()
                row = {"type": "route", "req_id": f"r{request}", "token_idx": token, "layer": layer}
                lines.append(json.dumps({**row, "topk_ids": ids, "topk_weights": [0.6, 0.4]}))
    path = tmp_path / "moe_routes.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_import_inspect_and_use(recording: Path, tmp_path: Path) -> None:
    told = run("trace", "import", recording, "--out", tmp_path / "toy.safetensors", "--option", "experts=8", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["experts"] == 8
    assert store.load(tmp_path / "toy.safetensors").tokens >= 39 * 30
    looked = run("trace", "inspect", tmp_path / "toy.safetensors", "--out", tmp_path / "page.html", "--json")
    assert looked.returncode == 0, looked.stderr
    assert len(json.loads(looked.stdout)["load"]) > 0
    assert "<html" in (tmp_path / "page.html").read_text(encoding="utf-8")
    model = ["--set", "model={base: mixtral-8x7b, layers: 3, moe_layers: 3}", "--set", "parallelism={expert: 8}"]
    work = ["--set", "workload={global_batch: 128, sequence_length: 512}", "--set", "cluster.gpus=8"]
    load = ["--set", f"routing.load={{trace: {tmp_path / 'toy.safetensors'}}}"]
    scenario = ROOT / "scenarios" / "mixtral-8x7b-64-h100.yaml"
    answered = run("estimate", scenario, *model, *work, *load, "--json", "--even-if-infeasible")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["summary"]["expert_load_max_over_mean"]["value"] > 1.0


def test_fit_writes_a_profile_with_its_goodness(tmp_path: Path) -> None:
    told = run("trace", "fit", NAME, "--out", tmp_path / "mine.safetensors", COLUMNS="160")
    assert told.returncode == 0, told.stderr
    profile = RoutingProfile.load(tmp_path / "mine.safetensors")
    shipped = RoutingProfile.load(recorded.find("fitted", NAME))
    assert profile.meta.goodness
    assert all(row.metric.split(",")[0] in told.stdout for row in profile.meta.goodness)
    np.testing.assert_allclose(profile.affinity, shipped.affinity, atol=0.05)


def test_counts_fit_a_simple_law(tmp_path: Path) -> None:
    counts = {"toy/expert_counts/text": [[900, 500, 300, 300], [600, 500, 500, 400]]}
    (tmp_path / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    told = run("trace", "fit", tmp_path / "counts.json", "--name", "toy-like", "--option", "top_k=1")
    assert told.returncode == 0, told.stderr
    assert "toy-like:" in told.stdout
    assert "log_normal:" in told.stdout
    refused(run("trace", "import", tmp_path / "counts.json", "--option", "top_k=1"), 2, "counts without tokens")


def test_evolve() -> None:
    scenario = ROOT / "scenarios" / "olmoe-8-h100.yaml"
    refused(run("trace", "evolve", scenario), 2, "routing.load.balancing is absent")
    law = "routing.load.balancing={kind: none, growth: 0.02, steps: 200}"
    told = run("trace", "evolve", scenario, "--set", law, "--json")
    rows = json.loads(told.stdout)["evolution"]
    assert rows[-1]["max_over_mean"] > 2 * rows[0]["max_over_mean"]


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed (extra `trace`)")
def test_train_and_replay(tmp_path: Path) -> None:
    told = run("trace", "train", "--preset", "tiny", "--out", tmp_path, "--json", OMP_NUM_THREADS="1")
    assert told.returncode == 0, told.stderr
    written = json.loads(told.stdout)["written"]
    assert str(tmp_path / "log.csv") in written
    traces = [path for path in written if path.endswith(".safetensors")]
    assert len(traces) == 6
    assert all("cpu" in store.load(path).meta.device for path in traces)
    again = run("trace", "train", "--preset", "tiny", "--out", tmp_path, "--resume", "--json", OMP_NUM_THREADS="1")
    assert json.loads(again.stdout)["written"] == written


def test_mistakes(tmp_path: Path, recording: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"counts": [1, 2]}))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 40)
    refused(run("trace", "import", tmp_path / "bad.pkl"), 2, "pickle")
    refused(run("trace", "import", tmp_path / "empty.jsonl"), 2, "empty")
    refused(run("trace", "inspect", tmp_path / "cut.safetensors"), 2, "cut.safetensors")
    refused(run("trace", "inspect", "cpu-small-swich-top-1"), 2, "nearest: cpu-small-switch-top-1")
    refused(run("trace", "import", recording, "--option", "topk=2"), 2, "top_k")
    refused(run("trace", "import", recording, "--option", "experts"), 2, "key=value")
    refused(run("trace", "import", recording, "--format", "vllm"), 2, "vllm-jsonl")
    refused(run("trace", "fit", NAME, "--out", tmp_path / "no" / "such" / "x.safetensors"), 2, "x.safetensors")
    refused(run("trace", "train", "--preset", "huge"), 2, "preset")
    refused(run("trace", "import", recording, "--out", "/dev/null"), 2, "no plain file")
    refused(run("trace", "import", recording, "--out", tmp_path), 2, "it is a folder")
    refused(run("trace", "import", recording, "--format", "npz"), 2, "name the .npz")
    np.savez(tmp_path / "low.npz", experts=np.tile(np.array([0, -3]), (9, 2, 1)))
    refused(run("trace", "import", tmp_path / "low.npz"), 2, "only -1 stands for no expert")
    assert not list(tmp_path.glob(".moesim*"))


@pytest.mark.parametrize("verb", ["import", "inspect", "fit"])
@pytest.mark.parametrize("out", ["/proc/x.safetensors", "no/such/x.safetensors", "."])
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    verb: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: object, **__: object) -> None:
        raise AssertionError("it read the recording first")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recordings, "read_recording", worked)
    found = CliRunner().invoke(app, [verb, NAME, "--out", out]).exception
    assert isinstance(found, FileError)
    assert f"cannot write {out}" in str(found)
    assert not list(tmp_path.iterdir())


def test_so_is_the_place_that_a_fit_finds_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worked(*_: object, **__: object) -> None:
        raise AssertionError("it fitted first")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "fit", worked)
    found = CliRunner().invoke(app, ["fit", NAME, "--name", "no/such"]).exception
    assert isinstance(found, FileError)
    assert "cannot write no/such.safetensors" in str(found)


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed (extra `trace`)")
def test_a_damaged_checkpoint_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "switch-top-1.checkpoint.pt").write_bytes(b"no checkpoint")
    told = run("trace", "train", "--preset", "tiny", "--out", tmp_path, "--resume", OMP_NUM_THREADS="1")
    assert told.returncode == 2, told.stderr
    assert "damaged checkpoint" in told.stderr
