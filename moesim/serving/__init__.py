"""Serving: requests through engines on one clock, the steady state in closed form, and what both answer."""
