"""Pools of texts and their vectors."""

from headspan.texts.pool import Pool, read_pool
from headspan.texts.stored import EmbeddedPool, keep_vectors
from headspan.texts.vectors import embed_pool, forget_vectors, text_vectors

__all__ = ["EmbeddedPool", "Pool", "embed_pool", "forget_vectors", "keep_vectors", "read_pool", "text_vectors"]
