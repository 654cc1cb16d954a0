"""From raw files to one cleaned table of interactions."""
