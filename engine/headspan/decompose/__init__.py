"""Decompose the tower's outputs into contributions: formulas, fixed matrices and moments."""
