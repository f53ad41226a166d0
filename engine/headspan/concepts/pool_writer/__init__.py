"""Let a language model write a pool of texts."""
