"""Faults on purpose: processes killed at any moment, machines that refuse. `python -m tests.faults kills`."""
