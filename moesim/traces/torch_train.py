"""`moesim trace train`: trains one small model, or those of a preset, and records what their routers decide.

A run depends on its configuration, its text and its seed alone (on one machine's processor: to the last byte), also
when it was killed and resumed. Under torchrun every process trains on its own batches and gradients are averaged; the
first one records.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from moesim.errors import FileError, UserError
from moesim.files import run_in
from moesim.traces.corpus import gather
from moesim.traces.store import load, save
from moesim.traces.torch_log import write_log
from moesim.traces.torch_record import as_trace
from moesim.traces.torch_run import Progress, Report, Run, digest
from moesim.traces.torch_text import Text, tokenise
from moesim.traces.torch_world import World, join
from moesim.traces.training import TrainingConfig, preset

__all__ = ["Progress", "train", "train_preset"]


def train(
    config: TrainingConfig,
    folder: str | os.PathLike[str],
    progress: Report | None = None,
    resume: bool = False,
    text: Text | None = None,
) -> list[Path]:
    """Train one model; the trace is `NAME.safetensors` in the folder, the training log its rows in `log.csv`.

    `resume` takes up a run that was broken off at its last checkpoint, and leaves a finished one alone. `text` is by
    default what the machine has. Raises UserError where the folder's files are of another configuration or text.
    """
    world = join()
    with _alone(Path(folder), world):
        return _train(config, Path(folder), progress, resume, text, _default_command(config))


def train_preset(
    name: str,
    folder: str | os.PathLike[str],
    text: str | os.PathLike[str] | None = None,
    progress: Report | None = None,
    resume: bool = False,
) -> list[Path]:
    """Train all models of a preset, those already finished left alone on `resume`; a preset's time budget holds for
    all of them together. `text` is a folder with a subfolder of text for each domain (default: what the machine has).
    """
    started, chosen, world = time.monotonic(), preset(name), join()
    prepared: dict[tuple[int, int], Text] = {}
    command = f"moesim trace train --preset {name}" + (" --text FOLDER" if text is not None else "")
    paths: list[Path] = []
    with _alone(Path(folder), world):
        corpus = gather(None if text is None else Path(text), max(config.text_limit for config in chosen.runs))
        for index, config in enumerate(chosen.runs):
            key = (config.vocabulary, config.sequence_length)
            if key not in prepared:
                prepared[key] = tokenise(corpus, *key, world.device)
            if chosen.time_budget is not None:
                left = chosen.time_budget - (time.monotonic() - started)
                share = max(left / (len(chosen.runs) - index), 1.0)
                config = TrainingConfig(**{**dict(config), "time_budget": share})
            paths += _train(config, Path(folder), progress, resume, prepared[key], command)
    return list(dict.fromkeys(paths))


@contextmanager
def _alone(folder: Path, world: World) -> Iterator[None]:
    """Makes the folder, and keeps other runs out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make {folder}: {error.strerror}") from error
    with run_in(folder, "training run") if world.first else nullcontext():
        yield


def _default_command(config: TrainingConfig) -> str:
    return f"moesim.traces.torch_train.train({config.name!r})"


def _train(
    config: TrainingConfig, folder: Path, progress: Report | None, resume: bool, text: Text | None, command: str
) -> list[Path]:
    world = join()
    trace, log = folder / f"{config.name}.safetensors", folder / "log.csv"
    checkpoint = folder / f"{config.name}.checkpoint.pt"
    name = digest(config)
    if resume and trace.exists():
        if f"configuration {name}" not in load(trace).meta.note:
            raise UserError(f"{trace} is of another configuration; name another folder, or begin anew without resume")
        if world.first:
            checkpoint.unlink(missing_ok=True)
        return [trace, log]
    if text is None:
        corpus = gather(limit=config.text_limit)
        text = tokenise(corpus, config.vocabulary, config.sequence_length, world.device)
    run = Run(config, text, world)
    if resume and checkpoint.exists():
        run.restore(checkpoint)
    run.go(checkpoint, progress)
    if world.first:
        # The trace comes last: where it is, the run is over and its log is written.
        write_log(log, config.name, run.rows)
        save(as_trace(config, run.recordings, text, run.described(command)), trace)
        checkpoint.unlink(missing_ok=True)
    world.wait()
    return [trace, log]
