"""Megatron-LM's router trace (`router_trace_rank*.jsonl`) and its router replay (a list of tensors).

A trace line is one layer of one microbatch on one rank. Its choices come from a map of which experts a token has, so
they stand in the order of experts; records with dropped tokens are skipped by Megatron, and their microbatch here.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moesim.errors import FileError
from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.importers.build import Draft, build, count_noun, even_lengths
from moesim.traces.importers.lines import Block, Rows, json_tables, lists_to_block, put_together, run_lengths
from moesim.traces.importers.sglang import whole_numbers
from moesim.traces.trace import RouterTrace

_RANK = re.compile(r"router_trace_rank(\d+)\.jsonl")
_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("block", pa.string()),
        ("layer", pa.int32()),
        ("rank", pa.int32()),
        ("top_indices", pa.list_(pa.list_(pa.int32()))),
    ]
)
_STEPS = 1 << 31


def _recognises(source: Source) -> bool:
    return "top_indices" in source.row or any(_RANK.fullmatch(name) for name in source.names)


def _read_trace(source: Source, options: ImportOptions) -> RouterTrace:
    parts, others = [], 0
    for path in _files(source, options):
        for table in json_tables(path, _SCHEMA):
            rows, left = _rows(table, path)
            parts += rows
            others += left
    _refuse_stages(parts, source.path)
    block = put_together(Rows.joined(parts, source.path), source.path)
    notes = [f"without {count_noun(others, 'record')} of other blocks (multi-token prediction)"] if others else []
    if block.left_out:
        notes.append(f"without {count_noun(block.left_out, 'record')} of microbatches that lack a layer")
    order, lengths, step = _sequences(block, options, source.path, notes)
    draft = Draft(
        path=source.path,
        choices=block.choices if order is None else block.choices[order],
        lengths=lengths,
        step=step,
        layers=block.layers,
        ordered=False,
        software="Megatron-LM",
        notes=notes,
    )
    return build(draft, options)


def _files(source: Source, options: ImportOptions) -> list[Path]:
    if source.kind != "folder":
        return [source.path]
    found = [(int(match[1]), name) for name in source.names if (match := _RANK.fullmatch(name))]
    wanted = [source.path / name for rank, name in sorted(found) if options.ranks is None or rank in options.ranks]
    if not wanted:
        raise FileError(f"cannot read {source.path}: it has no router_trace_rank*.jsonl of the ranks asked for")
    return wanted


def _rows(table: pa.Table, path: Path) -> tuple[list[Rows], int]:
    """Records of the decoder, and how many others there are."""
    for name in ("step", "layer", "rank", "top_indices"):
        if table.column(name).null_count:
            raise FileError(f"cannot read {path}: a record has no {name}")
    decoder = pc.equal(table.column("block").fill_null("decoder"), "decoder")
    kept = table.filter(decoder).combine_chunks()
    if not kept.num_rows:
        return [], table.num_rows
    tokens = kept.column("top_indices").combine_chunks()
    step, rank, layer = (kept.column(name).to_numpy().astype(np.int64) for name in ("step", "rank", "layer"))
    if step.min() < 0 or step.max() >= _STEPS or rank.min() < 0 or rank.max() >= 1 << 20 or layer.min() < 0:
        raise FileError(f"cannot read {path}: a step, rank or layer is out of range")
    row = Rows(
        key=rank * _STEPS + step,
        layer=layer,
        tokens=np.diff(tokens.offsets.to_numpy()).astype(np.int64),
        ids=lists_to_block(tokens.flatten(), path, np.int32),
    )
    return [row], table.num_rows - kept.num_rows


def _refuse_stages(parts: list[Rows], path: Path) -> None:
    """Ranks of different pipeline stages hold different layers, and their tokens cannot be matched."""
    pairs = [np.unique(part.key // _STEPS * _STEPS + part.layer) for part in parts]
    ranks: dict[int, set[int]] = {}
    for pair in np.concatenate(pairs).tolist() if pairs else []:
        ranks.setdefault(pair // _STEPS, set()).add(pair % _STEPS)
    if len({frozenset(layers) for layers in ranks.values()}) > 1:
        raise FileError(
            f"cannot read {path}: its ranks hold different layers (pipeline stages); read those of one stage at a time "
            "with the option ranks"
        )


def _sequences(
    block: Block, options: ImportOptions, path: Path, notes: list[str]
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64], NDArray[np.int64]]:
    """The tokens' order where it changes, lengths of sequences, and each one's step.

    Megatron's tokens are [sequence, batch] flattened: with several sequences a microbatch they alternate.
    """
    batches = run_lengths(np.cumsum((np.diff(block.key, prepend=-1) != 0) | (np.diff(block.place, prepend=-1) != 0)))
    begins = np.cumsum(batches) - batches
    step = block.key[begins] % _STEPS
    length = options.sequence_length
    if length is None:
        notes.append("a microbatch is read as one sequence (option sequence_length cuts it)")
        return None, batches, step
    if (batches % length).any():
        raise FileError(f"cannot read {path}: its microbatches are not sequences of {length:,} tokens")
    count = batches // length
    place = np.arange(int(batches.sum())) - np.repeat(begins, batches)
    each = np.repeat(count, batches)
    order = np.lexsort((place // each, place % each, np.repeat(np.arange(batches.size), batches)))
    return order, np.full(int(count.sum()), length, np.int64), np.repeat(step, count)


def _replay_recognises(source: Source) -> bool:
    content = source.torch
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(layer, np.ndarray) and layer.ndim == 2 for layer in content)
    )


def _read_replay(source: Source, options: ImportOptions) -> RouterTrace:
    content = source.torch
    if not isinstance(content, list) or not content:
        raise FileError(f"cannot read {source.path}: it is no list with a tensor [tokens, choices] a layer")
    layers = [whole_numbers(layer, 2, f"layer {index} of {source.path}") for index, layer in enumerate(content)]
    if len({layer.shape for layer in layers}) > 1:
        raise FileError(f"cannot read {source.path}: its layers differ in tokens or choices")
    notes: list[str] = []
    lengths = even_lengths(len(layers[0]), options, source.path, notes)
    draft = Draft(source.path, np.stack(layers, axis=1), lengths, software="Megatron-LM", notes=notes)
    return build(draft, options)


MEGATRON_TRACE = Importer(
    "megatron-trace",
    "Megatron-LM router trace: one router_trace_rank*.jsonl, or the folder of all ranks",
    _recognises,
    _read_trace,
)
MEGATRON_REPLAY = Importer(
    "megatron-replay",
    "Megatron-LM router replay: a list of tensors [tokens, choices] (.pt)",
    _replay_recognises,
    _read_replay,
)
