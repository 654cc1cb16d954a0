"""Plan and state of a grid of runs; no torch."""
