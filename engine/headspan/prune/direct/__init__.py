"""The direct effect of heads: arithmetic on a store."""
