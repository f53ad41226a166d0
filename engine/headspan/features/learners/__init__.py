"""Learners of features: small torch modules that turn a vector into a sparse, non-negative code."""
