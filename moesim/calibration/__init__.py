"""Calibration: fits the laws' coefficients to measurements, and writes them as a file that scenarios can name."""

from moesim.calibration.fit import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
