"""Any open_clip Vision Transformer as one uniform tower, and its text tower."""
