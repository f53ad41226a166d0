"""Group a tar's members by key, and find images and their companions by name.

The names follow WebDataset. A member's path up to the first dot of its base name is its key. The rest, in lower case,
is its field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from headspan.member_names import MemberNames
from headspan.shards.tar import Member

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "avifs"}
)
# OTHER_IMAGE is an image that `--image-member` does not select.
IMAGE, OTHER_IMAGE, OTHER = "image", "other image", "other"
# A link whose file is not in the tar, and whose own name is neither an image's nor a companion's.
DEAD_LINK = "dead link"
# The fields of a Sample that companions fill, each with the extension that it has by default.
COMPANIONS = {"caption": "txt", "metadata": "json", "label": "cls"}
_ROLES = {extension: role for role, extension in COMPANIONS.items()}


@dataclass(frozen=True, slots=True)
class Field:
    """The part of a member's name after its key, in lower case, and the member's role that follows from it."""

    text: str
    # IMAGE, OTHER_IMAGE, DEAD_LINK, OTHER, or one of COMPANIONS.
    role: str
    # The text without its last extension.
    stem: str
    # The length of the last extension, its dot included.
    extension_length: int
    # Whether the user named this caption in full, such as `3.txt`. Its words may then be numbers too.
    is_chosen: bool = False


class Entry(NamedTuple):
    """A member of a tar: its field, its path, and where its data is."""

    field: Field
    path: str
    offset: int
    # Negative for a link whose file is not known.
    size: int


@dataclass(slots=True)
class Group:
    """Consecutive members with one key, in one of the tar's archives."""

    key: str
    archive: int
    entries: list[Entry]


def group_members(
    members: Iterable[Member],
    names: MemberNames,
    on_companion: Callable[[Entry], None],
    on_link: Callable[[Group], None],
) -> list[Group]:
    """The members in groups, in their order, without the files that macOS adds to archives.

    `on_companion` is called with each companion before the next member is read, so that its data can be read on the
    way. `on_link` is called with the group whose last member is a link to a file that is not known yet.
    """
    fields: dict[str, Field] = {}
    groups: list[Group] = []
    last_key, last_archive = "", -1
    entries: list[Entry] = []
    for path, offset, size, archive in members:
        base = path.rfind("/") + 1
        if path.startswith("._", base) or path.startswith("__MACOSX/") or "/__MACOSX/" in path:
            continue
        # A leading dot hides a file; it does not begin a field.
        dot = path.find(".", base + 1)
        key, text = (path[:dot], path[dot + 1 :]) if dot >= 0 else (path, "")
        if (field := fields.get(text)) is None:
            field = fields[text] = _field(text, names)
        if key != last_key or archive != last_archive:
            entries = []
            group = Group(key, archive, entries)
            groups.append(group)
            last_key, last_archive = key, archive
        entry = Entry(field, path, offset, size)
        entries.append(entry)
        if size < 0:
            on_link(group)
        elif field.role in COMPANIONS:
            on_companion(entry)
    return groups


def prefixes(stem: str) -> Iterator[str]:
    """`stem`, then `stem` with one word fewer at its end each time, down to the empty string."""
    while stem:
        yield stem
        stem = stem.rpartition(".")[0]
    yield ""


def _field(text: str, names: MemberNames) -> Field:
    lower = text.lower()
    stem, _, extension = lower.rpartition(".")
    if _matches(lower, names.image) or (names.image is None and extension in IMAGE_EXTENSIONS):
        role = IMAGE
    elif _matches(lower, names.caption):
        role = "caption"
    elif extension in IMAGE_EXTENSIONS:
        role = OTHER_IMAGE
    else:
        role = _ROLES.get(extension, OTHER)
        if role == "caption" and (names.caption is not None or names.caption_json is not None):
            role = OTHER
    is_chosen = role == "caption" and lower in _patterns(names.caption)
    return Field(lower, role, stem, len(extension) + 1 if text else 0, is_chosen)


def _matches(text: str, patterns: str | None) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in _patterns(patterns))


def _patterns(text: str | None) -> list[str]:
    """Patterns as users write them, separated by commas."""
    return [] if text is None else [pattern.strip().lower() for pattern in text.split(",")]
