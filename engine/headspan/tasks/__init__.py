"""Tasks by which pruned models are scored: their declarations, their data, and their figures."""
