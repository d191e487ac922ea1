"""The closed form of many candidate layouts of one training scenario at once: the planner's sieve."""

from moesim.screening.candidates import Candidates, Choices, Screened, scenario_of
from moesim.screening.run import screen

__all__ = ["Candidates", "Choices", "Screened", "scenario_of", "screen"]
