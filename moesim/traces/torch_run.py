"""One run under way: its steps, its checkpoints, and the words about it in the trace's header.

L layers with experts, E experts.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moesim.errors import FileError, UserError
from moesim.files import whole_file
from moesim.randomness import Streams
from moesim.traces.torch_door import Tensor, functional, torch
from moesim.traces.torch_experts import engine
from moesim.traces.torch_log import Row, rows_of
from moesim.traces.torch_model import Context, Routed, forward, initial
from moesim.traces.torch_record import Recording, describe_device, describe_software, record
from moesim.traces.torch_routers import balancing_loss, counts, moved_bias, z_loss
from moesim.traces.torch_text import Text
from moesim.traces.torch_world import World
from moesim.traces.training import TrainingConfig

PROBE = 10
WARM_UP = 0.1
FLOOR = 0.1
LONGEST_GRADIENT = 1.0
LOGGED = 200
RESERVE = 0.05


@dataclass(frozen=True)
class Progress:
    """Where a run is: `steps` in all, and the loss that was logged last."""

    name: str
    step: int
    steps: int
    loss: float


Report = Callable[[Progress], None]


def digest(config: TrainingConfig) -> str:
    """A short name of everything that decides what a run does, on an unhurried machine."""
    fields = config.model_dump_json(exclude={"time_budget", "checkpoint_every"})
    return hashlib.blake2b(fields.encode(), digest_size=8).hexdigest()


class _Clock:
    """Seconds since this process took up a run, and seconds a step since the first, slower steps."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.mark: tuple[int, float] | None = None

    def now(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.started

    def per_step(self, step: int) -> float | None:
        """Mean seconds a step since the first call, which returns None."""
        if self.mark is None:
            self.mark = (step, self.now())
            return None
        return (self.now() - self.mark[1]) / (step - self.mark[0])


@dataclass
class Run:
    """A run under way: everything that a checkpoint holds, and what is made anew from the configuration."""

    config: TrainingConfig
    text: Text
    world: World
    step: int = 0
    steps: int = 0
    loss: float = math.nan
    moments: tuple[int, ...] = ()
    rows: list[Row] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)

    def __post_init__(self) -> None:
        config, device = self.config, self.world.device
        self.steps, self.moments = config.steps, config.moments(config.steps)
        self.parameters = initial(config, device)
        self.experts = engine(device, config.precision)
        self.bias = torch.zeros(len(config.model_layers), config.experts, dtype=torch.float64, device=device)
        every = self.parameters.values()
        groups = [
            {"params": [tensor for tensor in every if tensor.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [tensor for tensor in every if tensor.ndim == 1], "weight_decay": 0.0},
        ]
        # The rate is set anew before each step.
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=device.type == "cuda")

    def go(self, checkpoint: Path, progress: Report | None) -> None:
        """Step by step to the end, recording, logging and saving on the way."""
        clock = _Clock()
        while self.step < self.steps:
            logged = self.advance()
            self._keep_to_budget(clock)
            if not self.world.first:
                continue
            self.rows += logged
            if self.step in self.moments or self.step == self.steps:
                self.recordings.append(record(self.config, self.parameters, self.context(), self.text, self.step))
            every = self.config.checkpoint_every
            if every and self.step % every == 0 and self.step < self.steps:
                self.store(checkpoint)
            if progress is not None:
                progress(Progress(self.config.name, self.step, self.steps, self.loss))

    def context(self, generator: torch.Generator | None = None) -> Context:
        """What a pass needs; the bias steers the choice only where it is what balances."""
        biased = self.config.balancing == "bias-update"
        return Context(self.bias if biased else None, self.experts, generator)

    def advance(self) -> list[Row]:
        """One step of training; rows for the log where it is this step's turn."""
        config, world = self.config, self.world
        streams = Streams(config.seed)
        place = f"train/step{self.step}/rank{world.rank}"
        batch = self.text.batch(streams.generator(place), config.batch, config.sequence_length).to(world.device)
        noise = torch.Generator(world.device).manual_seed(streams.integer(place + "/noise") >> 1)
        logits, layers = forward(config, self.parameters, batch[:, :-1], self.context(noise))
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        self.optimiser.zero_grad(set_to_none=True)
        (loss + self._extra(layers)).backward()
        parameters = list(self.parameters.values())
        world.average([tensor.grad for tensor in parameters])
        torch.nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * _rate(self.step, self.steps)
        self.optimiser.step()
        copies = torch.stack([counts(layer.choice.experts, config.experts) for layer in layers])
        world.add(copies)
        if config.balancing == "bias-update":
            self.bias = moved_bias(self.bias, copies, config.balance_rate)
        self.step += 1
        every = max(1, config.steps // LOGGED)
        if self.step % every and self.step != self.steps and self.step not in self.moments:
            return []
        self.loss = world.mean(loss.detach())
        return rows_of(config, self.step, self.loss, copies.cpu().numpy(), config.batch * world.size)

    def _extra(self, layers: list[Routed]) -> Tensor:
        config = self.config
        total = torch.zeros((), device=self.world.device)
        for layer in layers:
            if config.balancing == "auxiliary-loss":
                loss = balancing_loss(config.router, layer.logits, layer.choice.experts)
                total = total + config.balance_rate * loss
            if config.z_loss:
                total = total + config.z_loss * z_loss(layer.logits)
        return total

    def _keep_to_budget(self, clock: _Clock) -> None:
        """Cut the run to the steps that the budget has time for; all processes agree.

        What is still to be recorded moves to the same shares of the shorter run.
        """
        budget = self.config.time_budget
        if budget is None or self.step % PROBE:
            return
        self.world.synchronise()
        each, left = clock.per_step(self.step), self.world.least(budget * (1 - RESERVE) - clock.now())
        if each is None:
            return
        more = int(max(left, 0.0) / self.world.most(each))
        steps = min(self.steps, self.step + max(more, 1))
        if steps < self.steps:
            done = tuple(moment for moment in self.moments if moment <= self.step)
            planned = self.config.moments(steps)[len(done) :]
            self.moments = done + tuple(max(moment, self.step + 1) for moment in planned)
        self.steps = steps

    def described(self, command: str) -> dict[str, str]:
        """The texts of the trace's header."""
        config, device = self.config, self.world.device
        losses = ", ".join(f"{r.loss:.3f} at step {r.step}" for r in self.recordings)
        tokenised = "bytes" if config.vocabulary == 256 else f"{config.vocabulary} byte pairs"
        text = f"{tokenised}; text {self.text.digest}: {self.text.note}"
        sequences = f"{config.batch * self.world.size} sequences of {config.sequence_length} tokens"
        return {
            "model": f"decoder of {config.layers} layers, width {config.width}, {config.experts} experts of width "
            f"{config.expert_width}, top {config.top_k}, {config.shared_experts} shared",
            "router": f"{config.router.rule}, balancing {config.balancing}"
            + (f" at {config.balance_rate:g}" if config.balance_rate else ""),
            "device": describe_device(device),
            "software": describe_software(device),
            "command": command,
            "note": f"held-out loss {losses}; {self.step} steps of {sequences} on {self.world.size} process(es), "
            f"{config.precision}; seed {config.seed}; "
            f"{text}; choices before any capacity; configuration {digest(config)}",
        }

    def store(self, path: Path) -> None:
        """Write a checkpoint, the whole file or none."""
        state = {
            "configuration": digest(self.config),
            "text": self.text.digest,
            "counters": [self.step, self.steps, self.loss],
            "moments": list(self.moments),
            "parameters": {name: tensor.detach() for name, tensor in self.parameters.items()},
            "optimiser": self.optimiser.state_dict(),
            "bias": self.bias,
            "rows": [asdict(row) for row in self.rows],
            "recordings": [vars(recording) for recording in self.recordings],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)  # torch tells a full disk as an error of its own, and not why
        with whole_file(path) as file:
            file.write(buffer.getbuffer())

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; raises UserError where it is of another run."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.world.device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise FileError(f"{path} is a damaged checkpoint; remove it to begin anew") from error
        if (state["configuration"], state["text"]) != (digest(self.config), self.text.digest):
            raise UserError(f"{path} is of another configuration or text; name another folder, or begin anew")
        self.step, self.steps, self.loss = state["counters"]
        self.moments = tuple(state["moments"])
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(state["parameters"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.bias = state["bias"]
        self.rows = [Row(**row) for row in state["rows"]]
        self.recordings = [Recording(**_on_processor(recording)) for recording in state["recordings"]]


def _on_processor(recording: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in recording.items()}


def _rate(step: int, steps: int) -> float:
    """Share of the full learning rate: a short rise, then a cosine down to a tenth."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done))
