"""Decode JPEGs on a GPU, and everything else on threads, into pixels that never leave the GPU."""
