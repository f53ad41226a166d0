"""Scores of features, as sums over pairs that are added block by block."""
