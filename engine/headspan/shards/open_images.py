"""Open the images of a shard by its url, or where another process has opened them."""

from __future__ import annotations

from headspan.member_names import MemberNames
from headspan.shards.file_images import FileImages
from headspan.shards.image_list import root_of
from headspan.shards.images import FILES, PARQUET, ImagePlace, ImageReader
from headspan.shards.kinds import FOLDER, LIST, kind_of
from headspan.shards.kinds import PARQUET as PARQUET_FILE
from headspan.shards.sources import open_place, open_shard, read_spool
from headspan.shards.tar_images import TarImages

_ANY_NAMES = MemberNames()


def open_images(url: str, names: MemberNames = _ANY_NAMES, newest_ns: int | None = None) -> ImageReader:
    """A reader of the images of the shard at `url`. Raises SourceError if the shard cannot be opened.

    `names` tell which column of a Parquet file holds the images. Files of a folder or a list that were modified after
    `newest_ns` are refused.
    """
    kind = kind_of(url)
    if kind == PARQUET_FILE:
        # Imported here and below, because a process that decodes tars needs no pyarrow.
        from headspan.shards.parquet_images import ParquetImages

        return ParquetImages.choosing(open_shard(url), names)
    if kind in (FOLDER, LIST):
        return FileImages(url, root_of(url), newest_ns)
    return TarImages(open_shard(url))


def open_images_at(place: ImagePlace) -> ImageReader:
    """A reader of the images that another process has opened.

    Raises SourceError if they cannot be opened, or if the file is not the one that the other process opened.
    """
    if place.kind == FILES:
        return FileImages(place.place.url, str(place.place.path), place.newest_ns)
    reader = open_place(place.place)
    if place.kind == PARQUET:
        from headspan.shards.parquet_images import ParquetImages

        return ParquetImages(reader, place.column)
    return TarImages(reader, place.place.size_bytes)


def open_spool(descriptor: int) -> ImageReader:
    """A reader of the images in a spool, an open file that holds them one after another. Closing it closes the file."""
    return TarImages(read_spool(descriptor), header_bytes=0)
