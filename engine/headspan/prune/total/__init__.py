"""The total effect of heads: the live model without them."""
