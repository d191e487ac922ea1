"""Measurement tables: their columns, and the timing of kernels and collectives on the machine at hand."""
