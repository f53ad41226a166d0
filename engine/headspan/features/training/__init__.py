"""Train a dictionary of features on the pairs of stores, resumable to the same weights."""
