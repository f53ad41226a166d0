"""Queries that read a store and never write to it: nearest images, maps of texts."""

from headspan.explore.neighbours import (
    Neighbours,
    nearest_to_image,
    nearest_to_text,
    nearest_to_vector,
    similarities,
)
from headspan.explore.segmentation import text_maps

__all__ = [
    "Neighbours",
    "nearest_to_image",
    "nearest_to_text",
    "nearest_to_vector",
    "similarities",
    "text_maps",
]
