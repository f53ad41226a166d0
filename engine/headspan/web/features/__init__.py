"""Runs that scored sparse features: their histograms, lists of features, and one feature with what it lies in."""
