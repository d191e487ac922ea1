"""A look at a recording as tables, one for each of its pictures.

L layers, E experts.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd

from moesim.routing.profile import RoutingProfile
from moesim.traces.inspection import Inspection


def summary(inspection: Inspection) -> pd.DataFrame:
    """The main numbers: group, measure, value, unit."""
    return pd.DataFrame(inspection.rows(), columns=["group", "measure", "value", "unit"])


def load(inspection: Inspection) -> pd.DataFrame:
    """Copies of every expert in every layer, and over the layer's mean [L x E lines]."""
    copies = inspection.load.copies
    layer, expert = (index.ravel() for index in np.indices(copies.shape))
    ratio = copies / np.maximum(copies.mean(axis=1, keepdims=True), 1e-300)
    layers = np.array(inspection.meta.model_layers)[layer]
    return pd.DataFrame({"layer": layers, "expert": expert, "copies": copies.ravel(), "over_mean": ratio.ravel()})


def imbalance(inspection: Inspection) -> pd.DataFrame:
    """One line a batch size and number of ranks (0: over the experts themselves)."""
    return pd.DataFrame([asdict(row) for row in inspection.imbalance])


def sources(inspection: Inspection) -> pd.DataFrame:
    """Where the excess of each batch size comes from."""
    return pd.DataFrame([asdict(row) for row in inspection.sources])


def drops(inspection: Inspection) -> pd.DataFrame:
    """Share of copies dropped by batch size (0: the whole recording) and capacity factor."""
    lines = [
        (row.sequences, factor, share)
        for row in inspection.drops
        for factor, share in zip(row.factors, row.dropped, strict=True)
    ]
    return pd.DataFrame(lines, columns=["sequences", "capacity_factor", "dropped"])


def locality(inspection: Inspection) -> pd.DataFrame:
    """Experts shared with an earlier token, by distance and layer; empty where only counts were recorded."""
    found = inspection.locality
    lines = [
        (lag, layer, share, free)
        for lag, shares in zip(found.lags, found.overlap, strict=True)
        for layer, share, free in zip(inspection.meta.model_layers, shares, found.independent, strict=True)
    ] if found is not None else []  # fmt: skip
    return pd.DataFrame(lines, columns=["tokens_before", "layer", "shared", "independent_draws"])


def coactivation(inspection: Inspection) -> pd.DataFrame:
    """The strongest pairs of every layer; empty where only counts were recorded."""
    found = inspection.coactivation
    lines = [
        (layer, low, high, phi)
        for index, layer in enumerate(inspection.meta.model_layers)
        for low, high, phi in zip(found.low[index], found.high[index], found.strongest[index], strict=True)
    ] if found is not None else []  # fmt: skip
    return pd.DataFrame(lines, columns=["layer", "expert", "other", "phi"])


def goodness(profile: RoutingProfile) -> pd.DataFrame:
    """How well a profile draws what it was not fitted on, a line a measure."""
    return pd.DataFrame([row.model_dump() for row in profile.meta.goodness])
