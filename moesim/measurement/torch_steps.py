"""`moesim measure steps`: times whole training steps of the models that `moesim trace train` trains, and one expert
layer of each, as validation cases: `moesim validate` sets them beside `moesim estimate` of the same models.

B sequences of N tokens, d width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from moesim.errors import UnknownNameError, UserError
from moesim.files import check_target, write_whole
from moesim.measurement.outcome import today
from moesim.measurement.steps import Item, as_yaml, layer_case, step_case
from moesim.measurement.torch_device import choose_device, device_name, gpu_name, settled, software
from moesim.measurement.torch_door import torch
from moesim.measurement.torch_timer import Timed, Timer
from moesim.randomness import Streams
from moesim.traces.torch_model import mixture
from moesim.traces.torch_run import Run
from moesim.traces.torch_text import Text
from moesim.traces.torch_world import World
from moesim.traces.training import TrainingConfig, preset

Progress = Callable[[str, float], None]

WARM_STEPS = 3
LAYER_SHARE = 0.2
"""Share of a model's time that goes into its layer."""
SETS = 3
TOKENS = 200_000
"""Random tokens that steps are made of: what they say does not change how long a step takes."""


def measure_steps(
    output: str | os.PathLike[str],
    name: str = "gpu",
    seconds: float = 10.0,
    device: str | None = None,
    models: Iterable[str] = (),
    progress: Progress | None = None,
) -> list[Item]:
    """Times the models of a preset for `seconds` each on `device` and writes the cases to `output` (.yaml) at the end.

    `models`: only these of the preset. At Ctrl-C nothing is written. Raises `UserError` for a bad argument.
    """
    path = check_target(output, "a file of validation cases", (".yaml", ".yml"))
    if not 0 < seconds < float("inf"):
        raise UserError(f"seconds is {seconds}; it must be a positive number")
    chosen, runs = choose_device(device), {config.name: config for config in preset(name).runs}
    for model in (wanted := tuple(dict.fromkeys(models)) or tuple(runs)):
        if model not in runs:
            raise UnknownNameError("model of the preset", model, runs)
    items: list[Item] = []
    with settled(chosen):
        for number, model in enumerate(wanted):
            if progress is not None:
                progress(f"measuring {model}", number / len(wanted))
            items += cases_of(runs[model], chosen, seconds)
    write_whole(path, as_yaml(items))
    return items


def cases_of(config: TrainingConfig, device: torch.device, seconds: float) -> list[Item]:
    """The step and the layer of one model, timed."""
    run = Run(config, _random_text(config, device), World(0, 1, device))
    gpu, told = gpu_name(device), f"moesim measure steps on {device_name(device)}, {software(device)}, {today()}"
    step, layer = timed_step(run, (1.0 - LAYER_SHARE) * seconds), timed_layer(run, LAYER_SHARE * seconds)
    kind = "grouped products" if run.experts.grouped else "one product an expert"
    return [
        case(config, gpu, timed.time, {"where": f"{told}: {kind}, {timed.repeats} samples, spread {timed.spread:.3f}"})
        for case, timed in ((step_case, step), (layer_case, layer))
    ]


def timed_step(run: Run, seconds: float) -> Timed:
    """A whole step, from the batch to the new weights."""
    for _ in range(WARM_STEPS):
        run.advance()
    return Timer(run.world.device, seconds).time([run.advance], graph=False)


def timed_layer(run: Run, seconds: float) -> Timed:
    """The forward pass of the first layer with experts, [B, N, d] in and out, launched kernel by kernel."""
    config, device = run.config, run.world.device
    noise = torch.Generator(device).manual_seed(0)
    context, at = run.context(noise), f"layer{config.model_layers[0]}."
    kind = torch.bfloat16 if config.precision == "bf16" else torch.float32
    shape = (config.batch, config.sequence_length, config.width)
    sets = [torch.randn(shape, generator=noise, device=device).to(kind) for _ in range(SETS)]

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            return mixture(config, run.parameters, at, x, (context, 0))[0]

    return Timer(device, seconds).time([partial(forward, x) for x in sets], graph=False)


def _random_text(config: TrainingConfig, device: torch.device) -> Text:
    generator = Streams(config.seed).generator("measure/steps/tokens")
    tokens = torch.from_numpy(generator.integers(config.vocabulary, size=TOKENS).astype(np.int32)).to(device)
    return Text(("random",), (tokens,), (tokens,), "random tokens", "random")
