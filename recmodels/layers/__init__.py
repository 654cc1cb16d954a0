"""Layers that tuning methods insert, as plain modules."""
