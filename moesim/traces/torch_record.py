"""The recorder: what the routers of a model decide about held-out text, as a trace.

T tokens, L recorded layers, K choices, S sequences.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.routing.assignment import NO_EXPERT
from moesim.traces.torch_door import Tensor, functional, torch
from moesim.traces.torch_model import Context, Parameters, forward
from moesim.traces.torch_text import Text
from moesim.traces.trace import RouterTrace, TraceMeta, type_for
from moesim.traces.training import TrainingConfig

LICENCE = "Apache-2.0 (our own recording; it holds token ids, not the text)"


@dataclass(frozen=True)
class Recording:
    """Decisions after one step: `experts` [T, L, K] (int16, `NO_EXPERT` where none), `weights` [T, L, K] (float16)
    where kept, and the mean loss on the same tokens."""

    step: int
    loss: float
    experts: Tensor
    weights: Tensor | None


def record(config: TrainingConfig, parameters: Parameters, context: Context, text: Text, step: int) -> Recording:
    """Route the held-out sequences, nothing drawn; choices stand before any capacity."""
    sequences, _ = text.sequences(config.record_sequences, config.sequence_length)
    kept = [config.model_layers.index(layer) for layer in recorded_layers(config)]
    losses, experts, weights = [], [], []
    with torch.no_grad():
        for batch in sequences.split(config.batch):
            logits, layers = forward(config, parameters, batch[:, :-1], context)
            losses.append(functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
            experts.append(_stacked([layers[index].choice.experts for index in kept], NO_EXPERT))
            weights.append(_stacked([layers[index].choice.weights for index in kept], 0.0))
    width = max(part.shape[2] for part in experts)
    return Recording(
        step,
        float(torch.stack(losses).sum()) / sequences[:, 1:].numel(),
        torch.cat([_wide(part, width, NO_EXPERT) for part in experts]).to(torch.int16).cpu(),
        torch.cat([_wide(part, width, 0.0) for part in weights]).half().cpu() if config.record_weights else None,
    )


def recorded_layers(config: TrainingConfig) -> tuple[int, ...]:
    """Layers of the model whose decisions are kept, in order."""
    return tuple(sorted(config.model_layers if config.recorded_layers is None else config.recorded_layers))


def as_trace(config: TrainingConfig, recordings: list[Recording], text: Text, meta: dict[str, str]) -> RouterTrace:
    """One trace of all recordings, step after step; `meta` are the texts of its header."""
    sequences, domain = text.sequences(config.record_sequences, config.sequence_length)
    S, N, times = len(domain), config.sequence_length, len(recordings)
    width = max(recording.experts.shape[2] for recording in recordings)
    kind = type_for(config.experts)
    experts = torch.cat([_wide(recording.experts, width, NO_EXPERT) for recording in recordings]).numpy()
    weights = [_wide(r.weights, width, 0.0) for r in recordings if r.weights is not None]
    return RouterTrace(
        experts=np.where(experts == NO_EXPERT, np.iinfo(kind).max, experts).astype(kind),
        sequence=np.repeat(np.arange(S * times, dtype=np.int32), N),
        position=np.tile(np.arange(N, dtype=np.int32), S * times),
        domain=np.tile(np.array(domain, dtype=np.int32), times),
        step=np.repeat(np.array([recording.step for recording in recordings], dtype=np.int32), S),
        meta=TraceMeta(
            experts=config.experts,
            top_k=width,
            model_layers=recorded_layers(config),
            domains=text.domains,
            ordered=True,
            source="recorded by moesim trace train",
            licence=LICENCE,
            **meta,
        ),
        weights=torch.cat(weights).numpy() if weights else None,
        token_id=_ids(sequences, times) if config.record_token_ids else None,
    )


def describe_device(device: torch.device) -> str:
    """The GPU's name, or "cpu" and its architecture: never one for the other."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({platform.machine()})"


def describe_software(device: torch.device) -> str:
    """Versions of torch and, on a GPU, of CUDA and the driver."""
    if device.type != "cuda":
        return f"torch {torch.__version__}"
    tool = shutil.which("nvidia-smi")
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"] if tool else []
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout if query else ""  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        told = ""
    driver = told.split("\n")[0].strip() or "unknown"
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}, driver {driver}"


def _ids(sequences: Tensor, times: int) -> NDArray[np.int32]:
    ids = sequences[:, :-1].flatten().cpu().numpy().astype(np.int32)
    return np.tile(ids, times)


def _stacked(layers: list[Tensor], none: float) -> Tensor:
    width = max(layer.shape[1] for layer in layers)
    return torch.stack([_wide(layer.unsqueeze(1), width, none)[:, 0] for layer in layers], dim=1)


def _wide(part: Tensor, width: int, none: float) -> Tensor:
    """Choices [T, L, K] with as many columns as `width`."""
    return functional.pad(part, (0, width - part.shape[2]), value=none)
