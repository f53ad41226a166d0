"""Queries that read a store and never write to it: nearest images, maps of texts, one image as a query."""

from headspan.explore.atlas.export import export_atlas
from headspan.explore.beside_store import BesideStore, beside_store
from headspan.explore.heads.pursuit import head_pursuit
from headspan.explore.heads.pursuit_result import HeadPursuit
from headspan.explore.heads.spectra import spectra
from headspan.explore.heads.spectrum import HeadSpectra
from headspan.explore.heads.text_shares import TextShares, text_shares
from headspan.explore.maps.head_maps import HeadMaps, head_maps
from headspan.explore.maps.map_result import TextMaps
from headspan.explore.maps.segmentation import text_maps
from headspan.explore.maps.segments import contrast, segment
from headspan.explore.nearest.neighbours import (
    Neighbours,
    nearest_ablated,
    nearest_through_each,
    nearest_to_image,
    nearest_to_text,
    nearest_to_vector,
)
from headspan.explore.nearest.property_neighbours import (
    PropertyNeighbours,
    property_neighbours,
    property_neighbours_of_vector,
)
from headspan.explore.nearest.similarities import similarities
from headspan.explore.nearest.strips import neighbour_strips
from headspan.explore.query.computed_image import forget_models
from headspan.explore.query.image_parts import ImageParts, image_parts
from headspan.explore.query.query_image import QueryImage, query_image
from headspan.explore.query.whole_pictures import WholePicture, whole_pictures

__all__ = [
    "BesideStore",
    "HeadMaps",
    "HeadPursuit",
    "HeadSpectra",
    "ImageParts",
    "Neighbours",
    "PropertyNeighbours",
    "QueryImage",
    "TextMaps",
    "TextShares",
    "WholePicture",
    "beside_store",
    "contrast",
    "export_atlas",
    "forget_models",
    "head_maps",
    "head_pursuit",
    "image_parts",
    "nearest_ablated",
    "nearest_through_each",
    "nearest_to_image",
    "nearest_to_text",
    "nearest_to_vector",
    "neighbour_strips",
    "property_neighbours",
    "property_neighbours_of_vector",
    "query_image",
    "segment",
    "similarities",
    "spectra",
    "text_maps",
    "text_shares",
    "whole_pictures",
]
