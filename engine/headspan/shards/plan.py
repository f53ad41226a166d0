"""Plan a run before anything is computed: every image's row, and the rows of each unit of work.

Planning reads tar headers and the small companions of images (caption, metadata, class), but no image. A truncated or
damaged tar raises SourceError with the offset, so that no member after it is lost silently. Rows are consecutive in the
order of the shards and of their members. joining.py decides which members are one sample. file_plan.py plans folders
and lists, and parquet_plan.py plans Parquet files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from headspan.errors import SourceError, counted
from headspan.events import Listener, Progress, ignore
from headspan.member_names import MemberNames
from headspan.shards.bundles import JoinedImage
from headspan.shards.contents import COMPANION_BYTES, READERS, caption_in
from headspan.shards.describe import describe, describe_each
from headspan.shards.file_plan import plan_folder, plan_list
from headspan.shards.joining import Unused, join
from headspan.shards.kinds import FOLDER, PARQUET, TAR, kind_of, refuse_unused
from headspan.shards.members import (
    COMPANIONS,
    DEAD_LINK,
    IMAGE,
    IMAGE_EXTENSIONS,
    OTHER,
    Entry,
    Group,
    group_members,
)
from headspan.shards.notes import NO_ROW, note_unused
from headspan.shards.parquet_plan import plan_parquet
from headspan.shards.samples import BadImage, Sample, Shard, Unit
from headspan.shards.sources import open_shard
from headspan.shards.tar import Member, Tar

_ANY_NAMES = MemberNames()


def list_samples(
    urls: Mapping[str, str],
    *,
    on_note: Callable[[BadImage], None],
    on_progress: Listener = ignore,
    names: MemberNames = _ANY_NAMES,
    on_member: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Shard, Iterable[Sample]]]:
    """Yield each shard with its samples; rows continue from shard to shard.

    Samples of folders, lists and Parquet files are read as they are requested, and before the next shard is.

    `on_progress` receives a `Progress` of stage `plan` after each shard. `urls` maps the stored names of the shards to
    their urls, as `stored_names` does. `on_note`, `names` and `on_member` are those of `scan`.

    Raises SourceError if a shard cannot be read or is not complete, and, after the last shard, if none held an image.
    """
    images = 0
    fields: Counter[str] = Counter()
    kinds = [kind_of(url) for url in urls.values()]
    refuse_unused(names, kinds)
    single_files = (url for url, kind in zip(urls.values(), kinds, strict=True) if kind in (TAR, PARQUET))
    described = iter(describe_each(single_files))
    for done, ((name, url), kind) in enumerate(zip(urls.items(), kinds, strict=True), start=1):
        samples: Iterable[Sample]
        if kind == TAR:
            shard, samples = scan(url, images, on_note, name, next(described), names, fields, on_member)
        elif kind == PARQUET:
            shard, samples = plan_parquet(url, images, on_note, name, next(described), names, on_member)
        else:
            plan_files = plan_folder if kind == FOLDER else plan_list
            shard, samples = plan_files(url, images, on_note, name, names, on_member)
        images += shard.images
        on_progress(Progress(stage="plan", done=done, total=len(urls), note=counted(images, "image")))
        yield shard, samples
    if images == 0:
        raise no_images(urls, names, fields)


def no_images(urls: Mapping[str, str], names: MemberNames, fields: Counter[str]) -> SourceError:
    """The error about shards without an image; `fields` counts what follows the key in the names of their members."""
    expected = f"members named {', '.join(f'*.{extension}' for extension in sorted(IMAGE_EXTENSIONS))}"
    if names.image is not None:
        expected = f"the members that --image-member {names.image} selects"
    found = ", ".join(f"{field or 'nothing'} {counted(count, 'time')}" for field, count in fields.most_common(5))
    return SourceError(
        f"no image in {counted(len(urls), 'shard')} (first: {next(iter(urls), 'none')}); headspan expects "
        f"{expected}, but the members' names have after their first dot: "
        f"{found or 'nothing, since there are no members'}; check the shards"
    )


def scan(
    url: str,
    first_row: int,
    on_note: Callable[[BadImage], None],
    called: str | None = None,
    described: tuple[int | None, int | None] | None = None,
    names: MemberNames = _ANY_NAMES,
    fields: Counter[str] | None = None,
    on_member: Callable[[], None] = lambda: None,
) -> tuple[Shard, list[Sample]]:
    """Read the members of one shard. Returns the shard and its samples, in the order of the tar.

    A sample's key is the image's path without its last extension; two images with the same key each get a row. A link
    stands for the file in the tar that it leads to. An image that is a link to no file has a row of zero bytes.

    Args:
        url: The shard.
        first_row: The row of its first image.
        on_note: Called for companions that cannot be read or may belong to another image (the sample then lacks their
            values), for members that belong to no image, for images without a row, and for oddities of the tar.
        called: The name of the shard in samples and notes; None for `url`.
        described: The result of `describe`, if it is known already.
        names: Which members are images and captions.
        fields: If the shard has no image, counts what follows the key in the names of its members.
        on_member: Called for each member of the tar; it may raise an error to end the reading.

    Raises SourceError if the shard is not a complete tar.
    """
    source = called or url
    size_bytes, modified_ns = described or describe(url)
    with open_shard(url) as reader:
        tar = Tar(reader)
        groups, data, dead_links = _read_members(tar, names, on_member)
    unused = Unused()
    samples: list[Sample] = []
    # The offsets of the data of rows and their companions, through links too.
    used: set[int] = set()
    for joined in join(groups, unused):
        used.update(entry.offset for entry in (joined.image, *joined.companions.values()))
        samples.append(_sample(joined, data, dead_links, first_row + len(samples), source, names, on_note))
    for remark in tar.remarks:
        on_note(BadImage(NO_ROW, "", source, remark))
    note_unused(unused, used, source, names, on_note)
    for group in groups if dead_links else ():
        for entry in group.entries:
            if entry.field.role == DEAD_LINK and entry.offset in dead_links:
                on_note(BadImage(NO_ROW, entry.path, source, dead_links[entry.offset]))
    if fields is not None and not samples:
        fields.update(entry.field.text for group in groups for entry in group.entries)
    return Shard(source, first_row, len(samples), size_bytes, modified_ns), samples


def units(images: int, unit_images: int) -> list[Unit]:
    """Rows 0 to `images` in units of `unit_images`; the last may have fewer."""
    starts = range(0, images, unit_images)
    return [Unit(index, start, min(unit_images, images - start)) for index, start in enumerate(starts)]


def _read_members(
    tar: Tar, names: MemberNames, on_member: Callable[[], None]
) -> tuple[list[Group], dict[int, bytes | None], dict[int, str]]:
    """The tar's members in groups, the data of companions by offset, and the reasons why links lead to no file.

    Links are replaced by the files that they lead to. Data that is too large is None. Each reason is at the offset
    after its link's header.
    """
    data: dict[int, bytes | None] = {}
    dead_links: dict[int, str] = {}
    postponed: list[tuple[int, int]] = []
    links: list[tuple[Group, int]] = []

    def read(entry: Entry) -> None:
        if entry.size > COMPANION_BYTES:
            data[entry.offset] = None
        elif tar.has_passed(entry.offset):
            postponed.append((entry.offset, entry.size))
        else:
            data[entry.offset] = tar.read(entry.offset, entry.size)

    def members() -> Iterator[Member]:
        for member in tar.members():
            on_member()
            yield member

    groups = group_members(members(), names, read, lambda group: links.append((group, len(group.entries) - 1)))
    for group, place in links:
        link = group.entries[place]
        role, offset = link.field.role, link.offset
        if (target := tar.links.target(offset)) is not None:
            group.entries[place] = Entry(link.field, link.path, *target)
            if role in COMPANIONS:
                postponed.append(target)
            continue
        if role == IMAGE:
            # A row of no bytes. The decoder sees from the header that it is a link.
            group.entries[place] = link._replace(size=0)
        elif role == OTHER:
            group.entries[place] = link._replace(field=replace(link.field, role=DEAD_LINK))
        # The decoder reports an image that leads to no file. The files of a folder are members themselves.
        is_expected = role == IMAGE or (role == OTHER and tar.links.leads_to_a_folder(offset))
        if tar.links.leads_to_several(offset) or not is_expected:
            dead_links[offset] = tar.links.what_is_wrong(offset)
    # In the order of the tar, since a stream must be opened again to read an earlier offset.
    for offset, size in sorted(set(postponed)):
        if offset not in data:
            data[offset] = tar.read(offset, size) if size <= COMPANION_BYTES else None
    return groups, data, dead_links


def _sample(
    joined: JoinedImage,
    data: Mapping[int, bytes | None],
    dead_links: Mapping[int, str],
    row: int,
    source: str,
    names: MemberNames,
    on_note: Callable[[BadImage], None],
) -> Sample:
    """The image's row with the values of its companions."""
    image = joined.image
    key = image.path[: len(image.path) - image.field.extension_length]
    values: dict[str, str | int | None] = {}
    notes: list[str] = []
    for field, entry in joined.companions.items():
        read, expected = READERS[field]
        content = data.get(entry.offset)
        try:
            if content is None:
                raise ValueError
            values[field] = read(content)
        except (ValueError, RecursionError):
            values[field] = None
            limit = f" of at most {COMPANION_BYTES >> 20} MiB" if content is None else ""
            wrong = dead_links[entry.offset] if entry.size < 0 else f"not {expected}{limit}"
            notes.append(f"{field} is {wrong}")
    for field, paths in joined.ambiguous:
        flag = "; select one with --caption-member" if field == "caption" else ""
        notes.append(f"no {field}, because it may be any of {', '.join(paths)}{flag}")
    for field in joined.withheld:
        notes.append(f"no {field}, because the key repeats in the tar and no {field} certainly belongs to this image")
    if names.caption_json is not None and isinstance(metadata := values.get("metadata"), str):
        values["caption"] = caption_in(metadata, names.caption_json)
        if values["caption"] is None:
            notes.append(f"metadata has no text under the key {names.caption_json}, so there is no caption")
    if image.size == 0 and image.offset in dead_links:
        notes.append(dead_links[image.offset])
    for reason in notes:
        on_note(BadImage(row, key, source, reason))
    return Sample(row, key, source, image.path, image.offset, image.size, **values)  # type: ignore[arg-type]
