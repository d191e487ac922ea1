"""The simulated road: a discrete-event simulation on simpy."""
