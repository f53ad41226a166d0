"""Which files, members and columns are images, captions, classes and keys."""

from __future__ import annotations

from dataclasses import dataclass

# Where the classes of a folder's images come from.
CLASSES = ("auto", "folders", "none")
# The settings that make up `MemberNames`, in the order of its fields.
MEMBER_SETTINGS = (
    *("image_member", "caption_member", "caption_json"),
    *("image_column", "caption_column", "class_column", "key_column", "captions", "classes"),
)


@dataclass(frozen=True, slots=True)
class MemberNames:
    """Which members of a sample are its image and its caption, if the usual extensions do not tell.

    `image` and `caption` are fields (the part of a name after its first dot) such as `input.jpg`, or patterns of fields
    such as `*.outputs.txt`; several are separated by commas. `caption_json` is the key of the sample's JSON that holds
    the caption. The columns are those of Parquet files and lists; without them, columns are chosen by their usual
    names. `captions` and `classes` are for folders of images: a table of captions, and `folders` or `none`.
    """

    image: str | None = None
    caption: str | None = None
    caption_json: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    class_column: str | None = None
    key_column: str | None = None
    captions: str | None = None
    classes: str | None = None
