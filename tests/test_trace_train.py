"""The torch run: configurations and text without torch, then the model, its training, traces and resumption."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from moesim.errors import FileError, MissingPackageError, UnknownNameError, UserError
from moesim.traces.corpus import LEAST, PIECE, Corpus, Domain, export, gather
from moesim.traces.store import load
from moesim.traces.trace import RouterTrace
from moesim.traces.training import TrainingConfig, preset

try:
    from moesim.traces import torch_experts, torch_log, torch_model, torch_text, torch_train
    from moesim.traces.torch_door import torch
    from moesim.traces.torch_world import World

    CPU = torch.device("cpu")
    # Threads that wait for each other are slow on a busy machine, and these models are tiny.
    torch.set_num_threads(1)
    TORCH = True
except MissingPackageError:
    TORCH = False
needs_torch = pytest.mark.skipif(not TORCH, reason="torch is not installed (extra `trace`)")

WORDS = b"the quick brown fox jumps over the lazy dog and runs into the wood "
SHIPPED = Path(__file__).parents[1] / "moesim" / "catalog" / "data" / "traces"
BASE: dict[str, Any] = {
    "name": "test", "layers": 2, "width": 16, "heads": 2, "sequence_length": 16, "batch": 4, "steps": 8,
    "experts": 4, "top_k": 2, "expert_width": 8, "vocabulary": 280, "record_sequences": 6,
}  # fmt: skip


def made_text(seed: int, size: int = LEAST + 1000) -> bytes:
    """Words in a random order, so that a model has something to learn."""
    words = WORDS.split()
    chosen = np.random.default_rng(seed).integers(len(words), size=size // 4)
    return b" ".join(words[index] for index in chosen)[:size]


def write_text(folder: Path) -> Path:
    for seed, domain in enumerate(("one", "two", "three")):
        (folder / domain).mkdir(parents=True)
        (folder / domain / "a.txt").write_bytes(made_text(seed))
        (folder / domain / "b.txt").write_bytes(made_text(seed + 10)[:9000])
    return folder


def test_presets_hold_the_six_routers() -> None:
    for name in ("tiny", "small", "gpu"):
        runs = preset(name).runs
        rules = [run.router.rule for run in runs]
        assert rules == [
            "switch-top-1",
            "gshard-top-2",
            "softmax-top-k",
            "sigmoid-top-k",
            "softmax-top-k",
            "expert-choice",
        ]
        assert [run.balancing for run in runs] == ["auxiliary-loss"] * 3 + ["bias-update", "none", "none"]
        assert len({run.name for run in runs}) == 6
    gpu = preset("gpu")
    assert gpu.time_budget is not None
    assert gpu.time_budget <= 9 * 60
    for run in gpu.runs:
        assert 8 <= run.layers <= 16
        assert 512 <= run.width <= 1024
        assert run.precision == "bf16"
        assert run.record_sequences >= 100
        assert run.record_sequences * run.sequence_length >= 50_000
    with pytest.raises(UnknownNameError, match="tiny"):
        preset("tony")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": 3}, "no even multiple"),
        ({"moe_every": 3}, "leaves none"),
        ({"moe_every": 2, "recorded_layers": (0,)}, r"\[0\]; layers with experts are \(1,\)"),
        ({"top_k": 5}, "between 1 and 4"),
        ({"router": {"rule": "gshard-top-2"}, "balancing": "bias-update", "balance_rate": 0.1}, "takes none"),
        ({"balancing": "auxiliary-loss"}, "above 0"),
        ({"record_steps": ()}, "none is given"),
        ({"steps": "8"}, "integer"),
        ({"learning_rte": 0.1}, "learning_rte"),
    ],
)
def test_a_wrong_configuration_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingConfig(**{**BASE, **changed})


def test_moments_are_early_middle_and_late() -> None:
    config = TrainingConfig(**BASE)
    assert config.moments(1000) == (20, 300, 1000)
    assert config.moments(2) == (1, 2)
    stated = TrainingConfig(**{**BASE, "record_steps": (5, 3, 99)})
    assert stated.moments(8) == (3, 5)
    assert stated.moments(2) == (2,)


def test_a_users_text_is_read_by_domain(tmp_path: Path) -> None:
    folder = write_text(tmp_path / "text")
    (folder / "one" / "picture.bin").write_bytes(b"\0" * 50)
    corpus = gather(folder, limit=100_000)
    assert [domain.name for domain in corpus.domains] == ["one", "three", "two"]
    assert corpus.unread == 1
    assert corpus == gather(folder, limit=100_000)
    assert max(len(piece) for domain in corpus.domains for piece in domain.pieces) == PIECE
    assert str(tmp_path) not in repr([domain.description for domain in corpus.domains])
    assert sum(map(len, corpus.domains[0].pieces)) > 70_000
    assert sum(map(len, gather(folder, limit=LEAST).domains[0].pieces)) == LEAST
    export(corpus, tmp_path / "carried")
    carried = gather(tmp_path / "carried", limit=100_000)
    for before, after in zip(corpus.domains, carried.domains, strict=True):
        assert sorted(before.pieces) == sorted(after.pieces)


def test_too_little_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such folder"):
        gather(tmp_path / "absent")
    with pytest.raises(UserError, match="no subfolder"):
        gather(tmp_path)
    (write_text(tmp_path / "text") / "empty").mkdir()
    with pytest.raises(UserError, match="too little text: empty"):
        gather(tmp_path / "text")


def test_the_machines_own_text_has_code_and_mathematics() -> None:
    corpus = gather(limit=LEAST)
    assert {"code", "mathematics"} <= {domain.name for domain in corpus.domains}
    assert not any("/" in domain.description for domain in corpus.domains)


def test_held_out_pieces_are_a_twentieth_of_the_bytes() -> None:
    pieces = tuple(made_text(seed, 100 + 4000 * (seed % 2)) for seed in range(400))
    train, held_out = Domain("d", "", pieces).split()
    assert sorted(train + held_out) == sorted(pieces)
    total = sum(map(len, pieces))
    assert 0.045 * total < sum(map(len, held_out)) < 0.06 * total


def test_without_torch_it_is_said_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from moesim.errors import MissingPackageError\n"
        "try:\n    import moesim.traces.torch_train\n"
        "except MissingPackageError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'moesim[trace]'" in told


# max/mean over experts, mean over layers, of each moment of a trace.
def imbalance(trace: RouterTrace) -> list[float]:
    found = []
    for step in np.unique(trace.step):
        experts = trace.select(trace.step == step).experts
        loads = [
            np.bincount(layer[layer != trace.none], minlength=trace.meta.experts)
            for layer in experts.transpose(1, 0, 2)
        ]
        found.append(float(np.mean([load.max() / load.mean() for load in loads])))
    return found


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("cpu-*.safetensors")), ids=lambda path: path.stem)
def test_shipped_cpu_traces_are_labelled_and_show_what_balancing_does(path: Path) -> None:
    trace = load(path)
    assert trace.meta.device.startswith("cpu")
    assert trace.meta.command == "moesim trace train --preset small"
    assert np.unique(trace.step).size == 3
    assert np.bincount(np.unique(trace.step, return_inverse=True)[1]).min() >= 100
    assert len(trace.meta.domains) >= 5
    early, _, late = imbalance(trace)
    if "unbalanced" in path.stem:
        assert late > 1.3 * early
        assert late > 2.5
    elif "expert-choice" in path.stem:
        assert late == pytest.approx(1.0)
    else:
        assert late < 2.0


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> torch_text.Text:
    corpus = gather(write_text(tmp_path_factory.mktemp("corpus") / "text"), limit=LEAST)
    return torch_text.tokenise(corpus, 280, 16, CPU)


@needs_torch
def test_byte_pairs_spell_the_text_they_came_from() -> None:
    raw = made_text(0, 5000) + b"aaaaaaa\0the end  \n   of aaaaaa\0\0"
    tokens = torch.tensor(list(raw))
    rounds = torch_text.learn(tokens, 300)
    spelt = {index: bytes([index]) for index in range(256)}
    for pairs in rounds:
        for left in torch.nonzero(pairs.right >= 0).ravel().tolist():
            spelt[int(pairs.joined[left])] = spelt[left] + spelt[int(pairs.right[left])]
    coded = torch_text.encode(tokens, rounds)
    assert b"".join(spelt[token] for token in coded.tolist()) == raw
    assert len(coded) < len(raw) / 2
    assert sorted(spelt) == list(range(300))
    joined = [spelt[index] for index in range(256, 300)]
    assert not any(b"\0" in token or b" " in token.lstrip(b" \n") for token in joined)


@needs_torch
def test_runs_of_one_byte_are_joined_from_the_left() -> None:
    pairs = torch_text.Round(torch.full((4,), -1), torch.full((4,), -1))
    pairs.right[1], pairs.joined[1] = 1, 3
    coded = torch_text.encode(torch.tensor([1, 1, 1, 2, 1, 1, 1, 1, 2, 1]), [pairs])
    assert coded.tolist() == [3, 1, 2, 3, 3, 2, 1]


@needs_torch
def test_held_out_sequences_take_domains_in_turn(text: torch_text.Text) -> None:
    sequences, domain = text.sequences(6, 16)
    assert domain == [0, 1, 2, 0, 1, 2]
    assert sequences.shape == (6, 17)
    assert not torch.equal(sequences[0], sequences[3])
    assert text.batch(np.random.default_rng(0), 4, 16).shape == (4, 17)


def reference(x: Any, experts: Any, kept: Any, weights: tuple[Any, Any]) -> Any:
    """Each copy by itself."""
    outputs = torch.zeros(*experts.shape, x.shape[1])
    for token, choice in torch.nonzero(kept).tolist():
        expert = experts[token, choice]
        gate, up = (x[token] @ weights[0][expert]).chunk(2)
        outputs[token, choice] = (torch.nn.functional.silu(gate) * up) @ weights[1][expert]
    return outputs


@needs_torch
@pytest.mark.parametrize("grouped", [False, True])
def test_experts_on_sorted_rows_give_what_each_copy_by_itself_gives(grouped: bool) -> None:
    if grouped and not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("this torch has no grouped product on the processor")
    generator = torch.Generator().manual_seed(2)
    x, one, two = (torch.randn(s, generator=generator) / 4 for s in ((30, 16), (5, 16, 32), (5, 16, 16)))
    experts = torch.randint(-1, 4, (30, 3), generator=generator)
    kept = (experts >= 0) & (torch.rand(30, 3, generator=generator) < 0.8)
    found = []
    for compute in (torch_experts.Experts(grouped), reference):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, one, two)]
        output = compute(inputs[0], experts, kept, (inputs[1], inputs[2])).float()
        found.append([output.detach(), *torch.autograd.grad(output.square().sum(), inputs)])
    tolerance = 0.03 if grouped else 1e-5
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))
    assert (found[0][0][~kept] == 0).all()


@needs_torch
def test_sorted_rows_are_aligned_and_apart() -> None:
    experts = torch.tensor([[2, 0], [2, 1], [0, 2], [-1, 2]])
    kept = experts >= 0
    place, ends = torch_experts.sort_rows(experts, kept, 4, 8)
    assert ends.tolist() == [8, 16, 24, 24]
    assert place.tolist() == [16, 0, 17, 8, 1, 18, 24, 19]


@needs_torch
@pytest.mark.parametrize("changed", [{}, {"moe_every": 2, "shared_experts": 1}, {"precision": "bf16"}])
def test_no_token_sees_a_later_one(changed: dict[str, Any]) -> None:
    config = TrainingConfig(**{**BASE, **changed})
    parameters = torch_model.initial(config, CPU)
    context = torch_model.Context(None, torch_experts.Experts())
    tokens = torch.randint(0, 280, (2, 16), generator=torch.Generator().manual_seed(0))
    before, layers = torch_model.forward(config, parameters, tokens, context)
    tokens[:, 9] += 1
    after, _ = torch_model.forward(config, parameters, tokens % 280, context)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])
    assert len(layers) == len(config.model_layers)


@needs_torch
def test_capacity_takes_away_what_an_expert_has_no_room_for() -> None:
    tight = TrainingConfig(**{**BASE, "capacity": {"factor": 0.25}})
    roomy = TrainingConfig(**{**BASE, "capacity": {"factor": 4.0}})
    parameters = torch_model.initial(tight, CPU)
    context = torch_model.Context(None, torch_experts.Experts())
    tokens = torch.randint(0, 280, (2, 16), generator=torch.Generator().manual_seed(0))
    without, _ = torch_model.forward(TrainingConfig(**BASE), parameters, tokens, context)
    assert torch.equal(torch_model.forward(roomy, parameters, tokens, context)[0], without)
    assert not torch.equal(torch_model.forward(tight, parameters, tokens, context)[0], without)


@needs_torch
def test_a_run_learns_and_its_trace_says_what_it_is(tmp_path: Path, text: torch_text.Text) -> None:
    config = TrainingConfig(**{**BASE, "steps": 60, "learning_rate": 0.01, "shared_experts": 1, "moe_every": 2})
    seen: list[torch_train.Progress] = []
    path, log = torch_train.train(config, tmp_path, seen.append, text=text)
    trace = load(path)
    assert [progress.step for progress in seen] == list(range(1, 61))
    assert seen[-1].loss < seen[0].loss - 1.0
    assert trace.meta.device.startswith("cpu")
    assert trace.meta.model_layers == (1,)
    assert trace.meta.domains == ("one", "three", "two")
    assert sorted(set(trace.step.tolist())) == [1, 18, 60]
    assert (trace.sequences, trace.tokens) == (18, 18 * 16)
    assert trace.domain.tolist() == [0, 1, 2] * 6
    assert trace.token_id is not None
    assert trace.weights is not None
    np.testing.assert_allclose(trace.weights.astype(float).sum(-1), 1.0, atol=2e-3)
    assert (np.diff(trace.weights.astype(float), axis=-1) <= 0).all()
    np.testing.assert_array_equal(trace.token_id[: 6 * 16], text.sequences(6, 16)[0][:, :-1].flatten())
    losses = [float(part.split(" at step")[0].split()[-1]) for part in trace.meta.note.split(";")[0].split(", ")]
    assert losses[0] > losses[1] > losses[2]
    with log.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["router"] for row in rows} == {"test"}
    assert all(float(row["drop_1_00"]) >= float(row["drop_1_25"]) >= float(row["drop_2_00"]) for row in rows)
    assert not list(tmp_path.glob("*.pt*"))
    assert str(tmp_path) not in trace.meta.model_dump_json()


@needs_torch
def test_the_rows_of_the_log_say_what_a_capacity_would_drop() -> None:
    config = TrainingConfig(**{**BASE, "layers": 1, "experts": 4, "top_k": 1, "sequence_length": 10})
    row = torch_log.rows_of(config, 7, 2.5, np.array([[8, 6, 6, 0]]), 2)[0]
    # 20 copies: rooms of 5, 7 and 10 rows.
    assert (row.max_over_mean, row.idle_experts) == (1.6, 1)
    assert (row.drop_1_00, row.drop_1_25, row.drop_2_00) == (5 / 20, 1 / 20, 0.0)


@needs_torch
@pytest.mark.parametrize("index", range(6))
def test_the_tiny_preset_gives_the_same_bytes_twice(index: int, tmp_path: Path) -> None:
    config = preset("tiny").runs[index]
    corpus = Corpus(tuple(Domain(str(seed), "made", (made_text(seed, PIECE),) * 4) for seed in range(2)))
    made = torch_text.tokenise(corpus, config.vocabulary, config.sequence_length, CPU)
    paths = [torch_train.train(config, tmp_path / name, text=made)[0] for name in ("first", "second")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    trace = load(paths[0])
    assert trace.sequences == 3 * config.record_sequences
    if config.router.rule == "expert-choice":
        rows = round(config.sequence_length * config.top_k / config.experts)
        chosen = trace.experts[trace.experts != trace.none]
        assert np.bincount(chosen).tolist() == [rows * trace.sequences * trace.layers] * config.experts
    else:
        assert (trace.experts != trace.none).all()


@needs_torch
def test_a_preset_trains_all_its_models_and_leaves_finished_ones_alone(tmp_path: Path) -> None:
    folder = write_text(tmp_path / "text")
    paths = torch_train.train_preset("tiny", tmp_path / "out", text=folder)
    names = {run.name for run in preset("tiny").runs}
    assert {path.name for path in paths} == {f"{name}.safetensors" for name in names} | {"log.csv"}
    assert load(paths[0]).meta.command == "moesim trace train --preset tiny --text FOLDER"
    with (tmp_path / "out" / "log.csv").open(encoding="utf-8") as file:
        assert {row["router"] for row in csv.DictReader(file)} == names
    before = paths[-1].read_bytes()
    paths[-1].unlink()
    steps: list[str] = []
    again = torch_train.train_preset(
        "tiny", tmp_path / "out", folder, lambda progress: steps.append(progress.name), resume=True
    )
    assert again == paths
    assert set(steps) == {"expert-choice"}
    assert paths[-1].read_bytes() == before


@needs_torch
def test_another_seed_gives_another_trace(tmp_path: Path, text: torch_text.Text) -> None:
    traces = [
        load(torch_train.train(TrainingConfig(**{**BASE, "seed": seed}), tmp_path / str(seed), text=text)[0])
        for seed in (0, 1)
    ]
    assert (traces[0].experts != traces[1].experts).mean() > 0.1


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from moesim.traces import torch_text, torch_train
from moesim.traces.corpus import gather
from moesim.traces.training import TrainingConfig
config = TrainingConfig.model_validate_json(sys.argv[1])
corpus = gather(Path(sys.argv[2]), 65536)
text = torch_text.tokenise(corpus, config.vocabulary, config.sequence_length, torch.device("cpu"))
def report(progress):
    if progress.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
torch_train.train(config, sys.argv[3], report, text=text)
"""


@needs_torch
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    folder = write_text(tmp_path / "text")
    config = TrainingConfig(
        **{**BASE, "checkpoint_every": 3, "balancing": "bias-update", "balance_rate": 0.02, "seed": 5},
        router={"rule": "sigmoid-top-k", "bias": True},
    )
    made = torch_text.tokenise(gather(folder, LEAST), 280, 16, CPU)
    whole = torch_train.train(config, tmp_path / "whole", text=made)
    arguments = [config.model_dump_json(), str(folder), str(tmp_path / "killed")]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "test.checkpoint.pt").exists()
    assert not (tmp_path / "killed" / "test.safetensors").exists()
    steps: list[int] = []
    resumed = torch_train.train(
        config, tmp_path / "killed", lambda progress: steps.append(progress.step), resume=True, text=made
    )
    assert steps == [7, 8]
    for one, other in zip(whole, resumed, strict=True):
        assert one.read_bytes() == other.read_bytes()
    torch_train.train(config, tmp_path / "killed", lambda progress: steps.append(progress.step), resume=True, text=made)
    assert steps == [7, 8]
    other_seed = TrainingConfig(**{**dict(config), "seed": 6})
    with pytest.raises(UserError, match="another configuration"):
        torch_train.train(other_seed, tmp_path / "killed", resume=True, text=made)


@needs_torch
def test_a_checkpoint_of_another_text_is_refused(tmp_path: Path, text: torch_text.Text) -> None:
    config = TrainingConfig(**{**BASE, "checkpoint_every": 3})

    def broken_off(progress: torch_train.Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torch_train.train(config, tmp_path, broken_off, text=text)
    other = torch_text.Text(text.domains, text.train, text.held_out, text.note, "another")
    with pytest.raises(UserError, match="another configuration or text"):
        torch_train.train(config, tmp_path, resume=True, text=other)


@needs_torch
def test_a_time_budget_ends_the_run_with_three_moments(tmp_path: Path, text: torch_text.Text) -> None:
    config = TrainingConfig(**{**BASE, "steps": 1_000_000, "time_budget": 2.0})
    seen: list[torch_train.Progress] = []
    trace = load(torch_train.train(config, tmp_path, seen.append, text=text)[0])
    early, middle, late = sorted(set(trace.step.tolist()))
    assert late == seen[-1].step == seen[-1].steps < 1_000_000
    assert early < middle < late
    assert 0.15 * late < middle < 0.7 * late


@needs_torch
def test_balancing_evens_out_what_nothing_leaves_uneven(tmp_path: Path, text: torch_text.Text) -> None:
    uneven = {
        **BASE,
        "seed": 1,
        "steps": 150,
        "learning_rate": 0.02,
        "experts": 8,
        "record_sequences": 24,
        "expert_width": 16,
    }
    late = {}
    for name, more in {
        "none": {},
        "auxiliary-loss": {"balancing": "auxiliary-loss", "balance_rate": 0.05},
        "bias-update": {"balancing": "bias-update", "balance_rate": 0.02},
    }.items():
        config = TrainingConfig(**{**uneven, **more, "name": name})
        late[name] = imbalance(load(torch_train.train(config, tmp_path, text=text)[0]))[-1]
    assert late["auxiliary-loss"] < 0.8 * late["none"]
    assert late["bias-update"] < 0.8 * late["none"]


TOGETHER = """
import hashlib, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from moesim.traces import torch_run, torch_text, torch_train
from moesim.traces.torch_world import join
from moesim.traces.corpus import gather
from moesim.traces.training import TrainingConfig
config = TrainingConfig.model_validate_json(sys.argv[1])
world = join()
text = torch_text.tokenise(gather(Path(sys.argv[2]), 65536), config.vocabulary, config.sequence_length, world.device)
run = torch_run.Run(config, text, world)
for _ in range(4):
    run.advance()
state = b"".join(tensor.detach().numpy().tobytes() for tensor in [*run.parameters.values(), run.bias])
(Path(sys.argv[3]).parent / f"state{world.rank}").write_text(hashlib.sha256(state).hexdigest())
torch_train.train(config, sys.argv[3], text=text)
"""


@needs_torch
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    folder = write_text(tmp_path / "text")
    config = TrainingConfig(**{**BASE, "balancing": "bias-update", "balance_rate": 0.02})
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ended = subprocess.run(
        [*command, config.model_dump_json(), str(folder), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "state0").read_text() == (tmp_path / "state1").read_text()
    trace = load(tmp_path / "out" / "test.safetensors")
    assert "8 sequences of 16 tokens on 2 process(es)" in trace.meta.note


@needs_torch
def test_one_process_exchanges_nothing() -> None:
    world = World(0, 1, CPU)
    tensor = torch.ones(3)
    world.average([tensor])
    world.add(tensor)
    assert tensor.tolist() == [1.0, 1.0, 1.0]
    assert (world.least(2.0), world.most(3.0), world.mean(torch.tensor(4.0))) == (2.0, 3.0, 4.0)
