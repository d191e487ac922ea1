"""Hugging Face's `output_router_logits`: raw scores, to which the model's router rule is applied here.

An .npy file [layers, tokens, experts], or a safetensors file with one such tensor or a tensor [tokens, experts] a layer
(named by numbers), and optionally `bias` [layers, experts], which steers the choice. T tokens, L layers, E experts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError, UserError, shorten
from moesim.routing.routers import router
from moesim.routing.routers.base import Batch, Router
from moesim.traces.importers.arrays import read_npy
from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.importers.build import Draft, build, even_lengths
from moesim.traces.tensors import read_tensors
from moesim.traces.trace import RouterTrace

_CHUNK = 1 << 15
_NUMBER = re.compile(r"\d+")


def _recognises(source: Source) -> bool:
    if source.kind == "npy":
        found = read_npy(source.path)
        return found.ndim in (3, 4) and found.dtype.kind == "f"
    return source.kind == "tensors" and "moesim_trace" not in source.metadata


def _read(source: Source, options: ImportOptions) -> RouterTrace:
    layers, bias = _layers(source)
    if options.router is None:
        raise UserError(f"{source.path} holds scores, not choices: give the option router, e.g. rule: softmax-top-k")
    rule = router(options.router, layers[0].shape[1], options.need_top_k(source.path))
    if rule.by_sequence or rule.balanced:
        raise UserError(f"the rule {options.router.rule} does not choose token by token; scores alone do not tell")
    notes: list[str] = []
    lengths = even_lengths(len(layers[0]), options, source.path, notes)
    chosen = [
        _choose(rule, layer, None if bias is None else bias[index], source.path) for index, layer in enumerate(layers)
    ]
    width = max(experts.shape[1] for experts, _ in chosen)
    fill = [(0, 0)]
    draft = Draft(
        path=source.path,
        choices=np.stack([np.pad(e, [*fill, (0, width - e.shape[1])], constant_values=-1) for e, _ in chosen], axis=1),
        weights=np.stack([np.pad(w, [*fill, (0, width - w.shape[1])]) for _, w in chosen], axis=1),
        lengths=lengths,
        experts=layers[0].shape[1],
        router=options.router.rule,
        software="Hugging Face transformers",
        notes=[*notes, "padding tokens, if any, cannot be told from others"],
    )
    return build(draft, options.model_copy(update={"top_k": None}) if rule.variable else options)


def _choose(
    rule: Router, scores: NDArray[Any], bias: NDArray[np.float64] | None, path: Path
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Choices and weights of a layer [T, K], a piece at a time."""
    experts, weights = [], []
    for begin in range(0, len(scores), _CHUNK):
        with np.errstate(invalid="ignore"):  # what is no number is told below
            piece = np.asarray(scores[begin : begin + _CHUNK], np.float64)
        if not np.isfinite(piece).all():
            raise FileError(f"cannot read {path}: a score is not a finite number")
        assignment = rule.choose(piece, bias, Batch())
        experts.append(assignment.experts.astype(np.int32))
        weights.append(assignment.weights.astype(np.float32))
    width = max(piece.shape[1] for piece in experts)
    filled = [np.pad(piece, ((0, 0), (0, width - piece.shape[1])), constant_values=-1) for piece in experts]
    weighed = [np.pad(piece, ((0, 0), (0, width - piece.shape[1]))) for piece in weights]
    return np.concatenate(filled), np.concatenate(weighed)


def _layers(source: Source) -> tuple[list[NDArray[Any]], NDArray[np.float64] | None]:
    """Scores [T, E] of each layer, and the bias [L, E] where there is one."""
    if source.kind == "npy":
        return _split(read_npy(source.path), source.path), None
    tensors = read_tensors(source.path)
    arrays = {name: _floats(array, tensors.types[name], source.path) for name, array in tensors.arrays.items()}
    bias = arrays.pop("bias", None)
    if len(arrays) == 1:
        layers = _split(next(iter(arrays.values())), source.path)
    else:
        layers = [arrays[name] for name in sorted(arrays, key=lambda name: [int(n) for n in _NUMBER.findall(name)])]
    shapes = {layer.shape for layer in layers}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        told = shorten(sorted(shapes), 160)
        raise FileError(f"cannot read {source.path}: its layers are not of one shape [tokens, experts]: {told}")
    if bias is not None and bias.shape != (len(layers), layers[0].shape[1]):
        raise FileError(f"cannot read {source.path}: its bias {bias.shape} is not [layers, experts]")
    return layers, None if bias is None else bias.astype(np.float64)


def _floats(array: NDArray[Any], kind: str, path: Path) -> NDArray[Any]:
    if kind == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind != "f":
        raise FileError(f"cannot read {path}: it holds {kind}, not scores")
    return array


def _split(scores: NDArray[Any], path: Path) -> list[NDArray[Any]]:
    """[L, T, E] or [L, batch, sequence, E] as a list of layers [T, E]."""
    if scores.ndim not in (3, 4) or scores.dtype.kind != "f" or 0 in scores.shape:
        raise FileError(
            f"cannot read {path}: it is {scores.dtype} {scores.shape}, not scores [layers, tokens, experts]"
        )
    return list(scores.reshape(scores.shape[0], -1, scores.shape[-1]))


HF_ROUTER_LOGITS = Importer(
    "hf-router-logits",
    "Hugging Face output_router_logits as .npy or .safetensors [layers, tokens, experts]; needs a router rule",
    _recognises,
    _read,
)
