"""Shards to every image's row, and rows to units of work, before anything is computed.

Reads tar headers and the small companions of an image (caption, metadata, class), never an image. A tar that
is cut off or holds garbage is a SourceError with its offset: the members after it are not lost in silence.
Rows are consecutive in the order of the shards and of their members. Which members are one sample is joining.py's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace

from headspan.config import MemberNames
from headspan.errors import SourceError, counted
from headspan.events import Listener, Progress, ignore
from headspan.shards.joining import (
    COMPANIONS,
    DEAD_LINK,
    IMAGE,
    IMAGE_EXTENSIONS,
    OTHER,
    Entry,
    Joined,
    Left,
    Run,
    join,
    runs,
)
from headspan.shards.samples import BadImage, Sample, Shard, Unit
from headspan.shards.sources import describe, describe_each, open_shard
from headspan.shards.tar import Tar

# The row of a note on what is no image.
NO_ROW = -1
# A companion is read whole at plan time; one that is larger than this is none.
COMPANION_BYTES = 16 << 20
# Where many members have no row for one reason, a note names so many.
_NAMED_MEMBERS = 10
_ANY_NAMES = MemberNames()


def list_samples(
    urls: Mapping[str, str],
    *,
    on_note: Callable[[BadImage], None],
    on_progress: Listener = ignore,
    names: MemberNames = _ANY_NAMES,
) -> Iterator[tuple[Shard, list[Sample]]]:
    """Each shard with its images, rows consecutive over all shards; a `Progress` of stage `plan` after each.

    `urls` has them by the names that shards and samples are to have, as `stored_names` gives them. `on_note` and
    `names` are those of `scan`. Raises SourceError for a shard that is no whole tar, and, after the last shard, if
    there was no image in any.
    """
    images = 0
    fields: Counter[str] = Counter()
    for done, (name, described) in enumerate(zip(urls, describe_each(urls.values()), strict=True), start=1):
        shard, samples = scan(urls[name], images, on_note, name, described, names, fields)
        images += shard.images
        on_progress(Progress(stage="plan", done=done, total=len(urls), note=counted(images, "image")))
        yield shard, samples
    if images == 0:
        wanted = f"members named {', '.join(f'*.{extension}' for extension in sorted(IMAGE_EXTENSIONS))}"
        if names.image is not None:
            wanted = f"with --image-member {names.image} the members that have this behind their key"
        found = ", ".join(f"{field or 'nothing'} {counted(count, 'time')}" for field, count in fields.most_common(5))
        raise SourceError(
            f"no image in {counted(len(urls), 'shard')} (first: {next(iter(urls), 'none')}), where headspan "
            f"takes {wanted}; "
            f"names have behind their first dot: {found or 'nothing, as there is no member'}; check the shards"
        )


def scan(
    url: str,
    first_row: int,
    on_note: Callable[[BadImage], None],
    called: str | None = None,
    described: tuple[int | None, int | None] | None = None,
    names: MemberNames = _ANY_NAMES,
    fields: Counter[str] | None = None,
) -> tuple[Shard, list[Sample]]:
    """One shard and its images, in tar order, from `first_row` on; it may hold none. Records name it `called`.

    `described` is what `describe` says of it, if that has been asked. A row's key is the image's path without its
    last extension; two images with one key keep a row each. `names` says which members are images and captions;
    `fields`, if given, counts what the members of a shard without an image have behind their keys.

    `on_note` hears of every companion that cannot be read, or cannot be told from another's, and leaves None; of
    members that are no part of an image's sample; of images that are no rows; and of what is odd about the tar. A link
    is what it leads to within the tar; one that leads to nothing has a row of no bytes if it is an image. Raises
    SourceError for what is not a whole tar.
    """
    source = called or url
    size_bytes, modified_ns = described or describe(url)
    with open_shard(url) as reader:
        tar = Tar(reader)
        found, data, links = _read_members(tar, names)
    left = Left()
    samples: list[Sample] = []
    # Where the data lies that rows and their companions have, by links too.
    used: set[int] = set()
    for joined in join(found, left):
        used.update(entry[2] for entry in (joined.image, *joined.companions.values()))
        samples.append(_sample(joined, data, links, first_row + len(samples), source, names, on_note))
    for text in tar.remarks:
        on_note(BadImage(NO_ROW, "", source, text))
    _note_members(left, used, source, names, on_note)
    for run in found if links else ():
        for kind, name, offset, _ in run.entries:
            if kind.role == DEAD_LINK and offset in links:
                on_note(BadImage(NO_ROW, name, source, links[offset]))
    if fields is not None and not samples:
        fields.update(entry[0].text for run in found for entry in run.entries)
    return Shard(source, first_row, len(samples), size_bytes, modified_ns), samples


def units(images: int, unit_images: int) -> list[Unit]:
    """Rows 0 to `images` in spans of `unit_images`; the last may be shorter."""
    starts = range(0, images, unit_images)
    return [Unit(index, start, min(unit_images, images - start)) for index, start in enumerate(starts)]


def _read_members(tar: Tar, names: MemberNames) -> tuple[list[Run], dict[int, bytes | None], dict[int, str]]:
    """The tar's members in runs, links led to their files; companions' data by their offsets, None for those that are
    too large; and what is to be told of links that lead to nothing, by the offsets behind their headers."""
    data: dict[int, bytes | None] = {}
    told: dict[int, str] = {}
    late: list[tuple[int, int]] = []
    links: list[tuple[Run, int]] = []

    def read(entry: Entry) -> None:
        _, _, offset, size = entry
        if size > COMPANION_BYTES:
            data[offset] = None
        elif tar.has_passed(offset):
            late.append((offset, size))
        else:
            data[offset] = tar.read(offset, size)

    found = runs(tar.members(), names, read, lambda run: links.append((run, len(run.entries) - 1)))
    for run, place in links:
        kind, name, offset, size = run.entries[place]
        if (target := tar.links.target(offset)) is not None:
            run.entries[place] = kind, name, *target
            if kind.role in COMPANIONS:
                late.append(target)
            continue
        if kind.role == IMAGE:
            # A row of no bytes, whose header tells the decoder that it is a link.
            run.entries[place] = kind, name, offset, 0
        elif kind.role == OTHER:
            run.entries[place] = replace(kind, role=DEAD_LINK), name, offset, size
        # An image that leads to nothing is set aside with that as its reason; a folder's files are members themselves.
        expected = kind.role == IMAGE or (kind.role == OTHER and tar.links.leads_to_a_folder(offset))
        if tar.links.leads_to_several(offset) or not expected:
            told[offset] = tar.links.what_is_wrong(offset)
    # In their order, since a stream is opened anew to go back.
    for offset, size in sorted(set(late)):
        if offset not in data:
            data[offset] = tar.read(offset, size) if size <= COMPANION_BYTES else None
    return found, data, told


def _sample(
    joined: Joined,
    data: Mapping[int, bytes | None],
    links: Mapping[int, str],
    row: int,
    source: str,
    names: MemberNames,
    on_note: Callable[[BadImage], None],
) -> Sample:
    """The image's row, with what its companions say."""
    kind, member, offset, size = joined.image
    key = member[: len(member) - kind.extension_length]
    values: dict[str, str | int | None] = {}
    notes: list[str] = []
    for field, entry in joined.companions.items():
        parse, wanted = _COMPANIONS[field]
        content = data.get(entry[2])
        try:
            if content is None:
                raise ValueError
            values[field] = parse(content)
        except (ValueError, RecursionError):
            values[field] = None
            limit = f" of at most {COMPANION_BYTES >> 20} MiB" if content is None else ""
            wrong = links[entry[2]] if entry[3] < 0 else f"not {wanted}{limit}"
            notes.append(f"{field} is {wrong}")
    for field, members in joined.unclear:
        flag = "; name one with --caption-member" if field == "caption" else ""
        notes.append(f"{field} may be any of {', '.join(members)}, so none is kept{flag}")
    for field in joined.withheld:
        notes.append(f"its key comes again in the tar, and no {field} is certain to be this image's, so none is kept")
    if names.caption_json is not None and isinstance(metadata := values.get("metadata"), str):
        values["caption"] = _caption_of(metadata, names.caption_json)
        if values["caption"] is None:
            notes.append(f"metadata have no text under the key {names.caption_json}, so there is no caption")
    if size == 0 and offset in links:
        notes.append(links[offset])
    for reason in notes:
        on_note(BadImage(row, key, source, reason))
    return Sample(row, key, source, member, offset, size, **values)  # type: ignore[arg-type]


def _note_members(
    left: Left, used: Set[int], source: str, names: MemberNames, on_note: Callable[[BadImage], None]
) -> None:
    """Tell of members that are neither rows nor companions of one; not of those whose data are `used` by a link."""
    for _, name, offset, _ in left.alone:
        # What lies beside an image is a part of its sample; what lies alone may be an image under another name.
        if offset not in used:
            on_note(BadImage(NO_ROW, name, source, "is neither an image nor a companion of one"))
    for _, name, offset, _ in left.astray:
        if offset not in used:
            reason = "its key comes again in the tar and no image lies beside it; not used"
            on_note(BadImage(NO_ROW, name, source, reason))
    if untaken := [entry for entry in left.untaken if entry[2] not in used]:
        paths = [path for _, path, _, _ in untaken]
        reason = f"companions of a key that has an image, but of no image by their names, so not used: {_listed(paths)}"
        flag = "; --caption-member names the one to take" if any(each[0].role == "caption" for each in untaken) else ""
        on_note(BadImage(NO_ROW, paths[0], source, reason + flag))
    if left.masks:
        reason = f"taken for masks of the images beside them, so no rows: {_listed(left.masks)}"
        on_note(BadImage(NO_ROW, left.masks[0], source, f"{reason}; --image-member names what is to have a row"))
    if left.unnamed:
        reason = f"images of another member than --image-member {names.image}, so no rows: {_listed(left.unnamed)}"
        on_note(BadImage(NO_ROW, left.unnamed[0], source, reason))


def _listed(members: Sequence[str]) -> str:
    more = f" and {len(members) - _NAMED_MEMBERS:,} more" if len(members) > _NAMED_MEMBERS else ""
    return f"{len(members):,} ({', '.join(members[:_NAMED_MEMBERS])}{more})"


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


def _caption_of(metadata: str, key: str) -> str | None:
    """The text that the metadata have under `key`, if they have one."""
    values = json.loads(metadata)
    text = values.get(key) if isinstance(values, dict) else None
    # JSON can hold half of a surrogate pair, as where a text was cut within an emoji; no UTF-8 table can.
    return text.strip().encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else None


# The Sample's field: how a companion is read, and what it should have been.
_COMPANIONS: dict[str, tuple[Callable[[bytes], str | int], str]] = {
    "caption": (_caption, "UTF-8"),
    "metadata": (_metadata, "JSON"),
    "label": (_label, "an integer"),
}
