"""The law of one engine iteration: how long a batch of prompt tokens and decoding requests takes, and what it holds."""
