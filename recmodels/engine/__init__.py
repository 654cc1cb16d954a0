"""The attention rule of prompt trees, without a model."""
