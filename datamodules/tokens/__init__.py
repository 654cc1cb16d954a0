"""From instructions to token ids."""
