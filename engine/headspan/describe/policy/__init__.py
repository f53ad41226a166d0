"""Causal language models that write descriptions, with or without a trained adapter."""
