"""Recommenders without a tuned language model."""
