"""Open the images of a shard by its url, or where another process has opened them."""

from __future__ import annotations

from headspan.shards.images import ImagePlace, ImageReader
from headspan.shards.sources import open_place, open_shard, read_spool
from headspan.shards.tar_images import TarImages


def open_images(url: str) -> ImageReader:
    """A reader of the images of the shard at `url`. Raises SourceError if the shard cannot be opened."""
    return TarImages(open_shard(url))


def open_images_at(place: ImagePlace) -> ImageReader:
    """A reader of the images that another process has opened.

    Raises SourceError if they cannot be opened, or if the file is not the one that the other process opened.
    """
    return TarImages(open_place(place.place), place.place.size_bytes)


def open_spool(descriptor: int) -> ImageReader:
    """A reader of the images in a spool, an open file that holds them one after another. Closing it closes the file."""
    return TarImages(read_spool(descriptor), header_bytes=0)
