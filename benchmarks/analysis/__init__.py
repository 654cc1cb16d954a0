"""From run records to rows, differences and tests; no torch."""
