"""Other spellings of GPUs, number formats and libraries, as measurement files have them, brought to the catalog's."""

from __future__ import annotations

from functools import lru_cache

from moesim.costs.kernels.formats import number_format
from moesim.errors import UserError
from moesim.network.dispatchers import nearest_dispatcher
from moesim.validation.words import format_name, gpu_name, plain


@lru_cache(maxsize=4096)
def dtype(text: str) -> str:
    """A number format as the catalog spells it: bfloat16 is bf16; one that no law knows keeps its own name."""
    try:
        return number_format(format_name(text)).name
    except UserError:
        return plain(text)


@lru_cache(maxsize=4096)
def gpu(text: str) -> str | None:
    """The catalog's name of a GPU: "h100_sxm" and "NVIDIA H100 80GB HBM3" are h100-sxm; None where it holds none."""
    try:
        return gpu_name(text)
    except UserError:
        return None


@lru_cache(maxsize=4096)
def library(text: str, exchange: bool) -> str:
    """A communication library by the name of the law that was fitted on it, else its own name."""
    if exchange:
        name, note = nearest_dispatcher(text)
        return text if note else name
    return "nccl" if plain(text).split("-")[0] == "nccl" else text
