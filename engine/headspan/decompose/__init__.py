"""From the tower's numbers to contributions: formulas, fixed matrices, moments."""
