"""Queries that read a store and never write to it: nearest images, maps of texts."""

from headspan.explore.head_maps import HeadMaps, head_maps
from headspan.explore.neighbours import (
    Neighbours,
    nearest_through_each,
    nearest_to_image,
    nearest_to_text,
    nearest_to_vector,
)
from headspan.explore.query_image import QueryImage, query_image
from headspan.explore.segmentation import text_maps
from headspan.explore.similarities import similarities

__all__ = [
    "HeadMaps",
    "Neighbours",
    "QueryImage",
    "head_maps",
    "nearest_through_each",
    "nearest_to_image",
    "nearest_to_text",
    "nearest_to_vector",
    "query_image",
    "similarities",
    "text_maps",
]
