"""Embeddings without some heads, and the studies built on them."""
