"""The benchmark data sets, one family a file."""
