"""Recorded router decisions: the format, other tools' dumps, a look at one, replay, fit, and the small torch run."""
