"""Sweeps: many points of one scenario, on many processes or machines, into one table."""
