"""How does OLMoE's step on one node follow its expert parallelism, under balanced routing and under its own?"""

# %% Every combination, each under four seeds
from pathlib import Path

import moesim

over = {"parallelism.expert": [1, 2, 4, 8], "routing.load": ["uniform", "olmoe-like"]}
found = moesim.sweep(Path(__file__).with_name("olmoe-8-h100.yaml"), over=over, seeds=4)

# %% Seconds of a step, mean over the seeds, and what has no answer
print(found.table.pivot_table("step_time", index="parallelism.expert", columns="routing.load").round(2))
print(found.counts, *found.failed["reason"])
