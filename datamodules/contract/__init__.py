"""What every package may import: batches, errors, whole files, checkpoints."""
