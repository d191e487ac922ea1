"""The catalog: models, GPUs, fabrics, profiles and calibrations by name, every number with its source."""

from moesim.catalog.loader import (
    OVERLAY_VARIABLE,
    calibration,
    derive,
    kinds,
    load,
    measured,
    names,
    not_modelled,
    raw,
)

__all__ = ["OVERLAY_VARIABLE", "calibration", "derive", "kinds", "load", "measured", "names", "not_modelled", "raw"]
