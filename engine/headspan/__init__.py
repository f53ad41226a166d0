"""headspan: every attention head of CLIP image encoders, taken apart."""
