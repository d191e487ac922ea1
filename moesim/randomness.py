"""One seed, many independent named streams of randomness; there is no global generator anywhere.

The stream of a name depends on the seed and the name alone, so that drawing more from one stream, or adding a new one,
never changes another. Names read like paths: "routing/layer3/sample0".
"""

from __future__ import annotations

import hashlib

import numpy as np


class Streams:
    """Named streams under one seed; two objects with the same seed give the same numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def integer(self, name: str) -> int:
        """A 64-bit unsigned integer that belongs to `name`, for kernels that carry their own generator."""
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def generator(self, name: str) -> np.random.Generator:
        """A fresh numpy generator at the start of the stream `name`."""
        return np.random.Generator(np.random.PCG64(self.integer(name)))
