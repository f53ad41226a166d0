"""Queries that read a store and never write to it: nearest images, maps of texts."""

from headspan.explore.atlas import export_atlas
from headspan.explore.beside_store import BesideStore, beside_store
from headspan.explore.head_maps import HeadMaps, head_maps
from headspan.explore.neighbours import (
    Neighbours,
    nearest_to_image,
    nearest_to_text,
    nearest_to_vector,
    similarities,
)
from headspan.explore.segmentation import text_maps

__all__ = [
    "BesideStore",
    "HeadMaps",
    "Neighbours",
    "beside_store",
    "export_atlas",
    "head_maps",
    "nearest_to_image",
    "nearest_to_text",
    "nearest_to_vector",
    "similarities",
    "text_maps",
]
