"""A pool of texts written by a language model."""
