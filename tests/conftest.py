"""Settings of every test: property tests draw the same examples on every run, so that a gate is red only for a reason.
`HYPOTHESIS_PROFILE=explore python -m pytest` draws new ones."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
