"""From instructions to batches."""
