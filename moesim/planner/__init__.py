"""The planner: which GPUs and which layout train a model within the limits, for least."""
