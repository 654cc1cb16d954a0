"""The rules of a benchmark: splits, candidates, histories, and the fingerprint over them."""
