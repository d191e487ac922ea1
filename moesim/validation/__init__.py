"""Predictions against measurements: case files read, each case predicted, errors told by kind."""
