"""Catalog names of GPUs by the name that their driver gives them; it needs no catalog, so that it runs anywhere."""

from __future__ import annotations

import re

_NAMES: tuple[tuple[str, str], ...] = (
    (r"A100[- ]SXM\d*[- ]80GB", "a100-sxm-80g"),
    (r"A100[- ]80GB PCIe|A100[- ]PCIE[- ]80GB", "a100-pcie-80g"),
    (r"H100 80GB HBM3|H100 SXM\d*( 80GB)?", "h100-sxm"),
    (r"H100 PCIe", "h100-pcie"),
    (r"H800|H800 SXM\d*( 80GB)?", "h800-sxm"),
    (r"H200|H200 SXM\d*( 141GB)?", "h200-sxm"),
    (r"H20|H20 SXM\d*", "h20-sxm"),
    (r"B200|B200 SXM\d*( \w+)?", "b200-sxm"),
    (r"B300|B300 SXM\d*( \w+)?", "b300-sxm"),
    (r"GB200", "gb200-nvl72"),
    (r"GB300", "gb300-nvl72"),
    (r"L40S", "l40s"),
    (r"RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-server"),
    (r"RTX 4090", "rtx-4090"),
    (r"MI300X( OAM| VF)?", "mi300x"),
    (r"MI355X( OAM| VF)?", "mi355x"),
)
_MAKERS = re.compile(r"^(NVIDIA|AMD)\s+|\bGeForce\s+|\bInstinct\s+|\bTesla\s+|\bGraphics\s+", re.IGNORECASE)


def catalog_gpu(device_name: str) -> str | None:
    """The catalog's name of the GPU that a driver calls `device_name`; None where the catalog holds no such one.

    A part of a GPU, another memory size or another board of the same chip is another GPU.
    """
    bare = " ".join(_MAKERS.sub("", device_name.strip()).split())
    for pattern, name in _NAMES:
        if re.fullmatch(pattern, bare, re.IGNORECASE):
            return name
    return None
