"""Decode spans of samples in worker processes, which fill slots of a shared ring."""
