"""The nouns: what a GPU, a fabric, a model, a layout and a workload are. No behaviour over time."""
