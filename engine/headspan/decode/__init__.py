"""Decode images to the pixels that the model expects."""
