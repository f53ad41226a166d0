"""Shards to every image's row, and rows to units of work, before anything is computed.

Reads tar headers and the small companions of an image (caption, metadata, class), never an image. A tar that
is cut off or holds garbage is a SourceError with its offset: the members after it are not lost in silence.
Rows are consecutive in the order of the shards and of their members.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping

from headspan.errors import SourceError
from headspan.records import BadImage, Listener, Progress, Sample, Shard, Unit, ignore
from headspan.sources import describe, describe_each, open_shard
from headspan.tar import Member, Tar

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
# The row of a note on what is no image.
NO_ROW = -1
# A companion is read whole at plan time; one that is larger than this is none.
COMPANION_BYTES = 16 << 20


def list_samples(
    urls: Mapping[str, str], *, on_note: Callable[[BadImage], None], listen: Listener = ignore
) -> Iterator[tuple[Shard, list[Sample]]]:
    """Each shard with its images, rows consecutive over all shards; a `Progress` of stage `plan` after each.

    `urls` has them by the names that shards and samples are to have, as `stored_names` gives them. `on_note` hears of
    companions that cannot be read (see `scan`). Raises SourceError for a shard that is no whole tar, and, after the
    last shard, if there was no image in any.
    """
    images = 0
    for done, (name, described) in enumerate(zip(urls, describe_each(urls.values()), strict=True), start=1):
        shard, samples = scan(urls[name], images, on_note, name, described)
        images += shard.images
        listen(Progress(stage="plan", done=done, total=len(urls), note=f"{images} images"))
        yield shard, samples
    if images == 0:
        raise SourceError(
            f"no image in {len(urls)} shards (first: {next(iter(urls), 'none')}); check them, headspan takes "
            f"members named {', '.join(f'*.{extension}' for extension in sorted(IMAGE_EXTENSIONS))}"
        )


def scan(
    url: str,
    first_row: int,
    on_note: Callable[[BadImage], None],
    called: str | None = None,
    described: tuple[int | None, int | None] | None = None,
) -> tuple[Shard, list[Sample]]:
    """One shard and its images, in tar order, from `first_row` on; it may hold none. Records name it `called`.

    `described` is what `describe` says of it, if that has been asked.

    A member is an image by its last extension, whatever the case; its key is its path without it. `key.txt`,
    `key.json` and `key.cls` are found anywhere in the tar; one that cannot be read leaves None and is told to
    `on_note`, and so is a member that is no image and lies beside none. `k.mask.png` is a companion where
    there is an image `k`, and an image of its own where not; `k.1.png` always is one.
    Two images with one key keep a row each. Raises SourceError for what is not a whole tar.
    """
    source = called or url
    size_bytes, modified_ns = described or describe(url)
    images: list[tuple[str, Member]] = []
    companions: dict[str, dict[str, list[tuple[int, bytes | None]]]] = {kind: {} for kind in _COMPANIONS}
    others: list[tuple[str, str]] = []
    with open_shard(url) as reader:
        tar = Tar(reader)
        for member in tar.members():
            name, offset, size, archive = member
            base = name[name.rfind("/") + 1 :]
            stem, _, extension = base.rpartition(".")
            # macOS packs `._name` and `__MACOSX/` beside the files proper.
            if base.startswith("._") or name.startswith("__MACOSX/") or "/__MACOSX/" in name:
                continue
            key = name[: -len(extension) - 1] if stem else name
            kind = extension.lower() if stem else ""
            if kind in IMAGE_EXTENSIONS:
                images.append((key, member))
            elif kind in companions:
                data = tar.read(offset, size) if size <= COMPANION_BYTES else None
                companions[kind].setdefault(key, []).append((archive, data))
                others.append((key, name))
            else:
                others.append((key, name))

    keys = {key for key, _ in images}
    for key, name in others:
        # What lies beside an image is a part of its sample; what lies alone may be an image under another name.
        if key not in keys and not _belongs_to_another(key, keys):
            on_note(BadImage(NO_ROW, name, source, "no image, and beside none"))
    samples: list[Sample] = []
    for key, (name, offset, size, archive) in images:
        if _belongs_to_another(key, keys):
            continue
        row = first_row + len(samples)
        values: dict[str, str | int | None] = {}
        for kind, (field, parse, wanted) in _COMPANIONS.items():
            if key not in companions[kind]:
                continue
            data = _nearest(companions[kind][key], archive)
            try:
                if data is None:
                    raise ValueError("too large")
                values[field] = parse(data)
            except (ValueError, RecursionError):
                values[field] = None
                limit = f" of at most {COMPANION_BYTES >> 20} MiB" if data is None else ""
                on_note(BadImage(row, key, source, f"{field} is not {wanted}{limit}"))
        samples.append(Sample(row, key, source, name, offset, size, **values))  # type: ignore[arg-type]
    return Shard(source, first_row, len(samples), size_bytes, modified_ns), samples


def units(images: int, unit_images: int) -> list[Unit]:
    """Rows 0 to `images` in spans of `unit_images`; the last may be shorter."""
    starts = range(0, images, unit_images)
    return [Unit(index, start, min(unit_images, images - start)) for index, start in enumerate(starts)]


def _belongs_to_another(key: str, keys: set[str]) -> bool:
    """Whether `key` is another image's key with a word after a dot, as a mask's is; numbers count images."""
    dot = key.find(".", key.rfind("/") + 2)
    while dot >= 0:
        if key[:dot] in keys and not key[dot + 1 :].isdigit():
            return True
        dot = key.find(".", dot + 1)
    return False


def _nearest(found: list[tuple[int, bytes | None]], archive: int) -> bytes | None:
    """The last companion in the image's own archive, else the last: `cat a.tar b.tar` may repeat its keys."""
    if len(found) == 1:
        return found[0][1]
    own = [data for where, data in found if where == archive]
    return own[-1] if own else found[-1][1]


def _caption(data: bytes) -> str:
    # Some write a byte order mark; the codec that takes it away is slow.
    return data.decode().removeprefix("\ufeff").strip()


def _metadata(data: bytes) -> str:
    text = _caption(data)
    json.loads(text)
    return text


def _label(data: bytes) -> int:
    if not re.fullmatch(rb"\s*[+-]?[0-9]{1,18}\s*", data):
        raise ValueError("not an integer of 64 bits")
    return int(data)


# The companion's extension: the Sample's field, how it is read, and what it should have been.
_COMPANIONS: dict[str, tuple[str, Callable[[bytes], str | int], str]] = {
    "txt": ("caption", _caption, "UTF-8"),
    "json": ("metadata", _metadata, "JSON"),
    "cls": ("label", _label, "an integer"),
}
