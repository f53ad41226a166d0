"""Plan the images of a folder or of a list: their rows, keys, captions, classes and metadata.

Keys and order of a folder's images are those of the tars that tools/make_shards.py writes from it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from headspan.errors import SourceError, counted
from headspan.io.retry import LOCAL_ERRORS
from headspan.member_names import MemberNames
from headspan.shards.captions_table import read_captions
from headspan.shards.columns import said, text_of, values_of
from headspan.shards.contents import COMPANION_BYTES, READERS, caption_in
from headspan.shards.image_folder import ImageFolder, class_folder, keys_of, read_folder
from headspan.shards.image_list import ImageList, file_stat, part_stats, read_list
from headspan.shards.images import MISSING
from headspan.shards.keys import as_utf8
from headspan.shards.members import COMPANIONS
from headspan.shards.notes import NO_ROW, listed
from headspan.shards.samples import BadImage, Sample, Shard
from headspan.shards.urls import local_path

Planned = tuple[Shard, Iterator[Sample]]


def measured(url: str, names: MemberNames, is_list: bool) -> tuple[int, int]:
    """The size of a folder's or list's files together in bytes, and the time of the one that was modified last.

    Of a folder, images and their companions count; of a list, the list and its images. Raises SourceError if the folder
    or the list cannot be read.
    """
    if is_list:
        found = [Path(local_path(url)).stat(), *filter(None, part_stats(read_list(url, names)))]
        return _total(found)
    return _total_of(read_folder(Path(local_path(url))))


def image_count(url: str, names: MemberNames, is_list: bool) -> int:
    """How many images a folder or list has."""
    return len(read_list(url, names).rows if is_list else _readable(read_folder(Path(local_path(url))))[0])


def plan_folder(
    url: str,
    first_row: int,
    on_note: Callable[[BadImage], None],
    called: str,
    names: MemberNames,
    on_member: Callable[[], None],
) -> Planned:
    """The folder as a shard, and its samples, for which companions are read as they are requested.

    Raises SourceError if it cannot be read or holds no image, and SettingsError if its classes are not those wanted.
    """
    folder = read_folder(Path(local_path(url)))
    total, newest = _total_of(folder)
    images, unreadable = _readable(folder)
    note = partial(_note, on_note, called)
    classes, sentence = folder.classes(names.classes or "auto")
    captions = None
    if names.captions is not None:
        captions = read_captions(Path(names.captions), folder.images)
        folder.leave_out("txt", "--captions was given")
    note("", sentence)
    reasons: dict[str, list[str]] = defaultdict(list)
    for path, reason in folder.left_out:
        reasons[reason].append(path)
    if unreadable:
        reasons["their names are not UTF-8, so they have no rows"] = unreadable
    for reason, paths in reasons.items():
        note(paths[0], f"not read, because of this: {reason}: {listed(paths)}")
    shard = Shard(called, first_row, len(images), total, newest)
    labels = {name: label for label, name in enumerate(classes)}

    def samples() -> Iterator[Sample]:
        for row, (image, key) in enumerate(zip(images, keys_of(images), strict=True), start=first_row):
            on_member()
            values, notes = _companions(folder, image, names)
            for reason in notes:
                on_note(BadImage(row, key, called, reason))
            if captions is not None:
                values["caption"] = text_of(captions.get(image))
            if labels:
                values["label"] = labels[class_folder(image)]
            yield _sample(row, key, called, image, file_stat(str(folder.root), image), values)

    return shard, samples()


def plan_list(
    url: str,
    first_row: int,
    on_note: Callable[[BadImage], None],
    called: str,
    names: MemberNames,
    on_member: Callable[[], None],
) -> Planned:
    """The list as a shard, and its samples. A file that does not exist has a row.

    Raises SourceError if the list cannot be read, or if none of its files exists.
    """
    images = read_list(url, names)
    stats = list(part_stats(images))
    if not any(stats):
        first = images.paths()[0] if images.rows else "none"
        raise SourceError(
            f"{url}: none of its {counted(len(stats), 'file')} exists (first: {first}); paths are relative to the "
            f"list's folder, {images.root}"
        )
    total, newest = _total([Path(local_path(url)).stat(), *filter(None, stats)])
    note = partial(_note, on_note, called)
    # A .txt file has no columns to choose from.
    if not url.lower().endswith(".txt") and (sentence := said(images.columns, names)):
        note("", sentence)
    if missing := [path for path, stat in zip(images.paths(), stats, strict=True) if stat is None]:
        note(missing[0], f"files that do not exist, whose images are bad: {listed(missing)}")
    return Shard(called, first_row, len(stats), total, newest), _listed_samples(
        images, stats, first_row, called, on_member
    )


def _listed_samples(
    images: ImageList,
    stats: Sequence[os.stat_result | None],
    first_row: int,
    called: str,
    on_member: Callable[[], None],
) -> Iterator[Sample]:
    paths = images.paths()
    keys = keys_of(paths)
    for row, (values, stat) in enumerate(zip(images.rows, stats, strict=True), start=first_row):
        on_member()
        path, key = paths[row - first_row], keys[row - first_row]
        own_key, read = values_of(images.columns, values)
        yield _sample(row, own_key or key, called, path, stat, read)


def _sample(
    row: int, key: str, called: str, member: str, stat: os.stat_result | None, values: Mapping[str, str | int | None]
) -> Sample:
    offset, size = (MISSING, 0) if stat is None else (0, stat.st_size)
    return Sample(row, key, called, member, offset, size, **values)  # type: ignore[arg-type]


def _companions(folder: ImageFolder, image: str, names: MemberNames) -> tuple[dict[str, str | int | None], list[str]]:
    """The values of an image's companions, and what is wrong with them."""
    values: dict[str, str | int | None] = {}
    notes: list[str] = []
    beside = folder.companions.get(image, {})
    for field, extension in COMPANIONS.items():
        if extension not in beside:
            continue
        read, expected = READERS[field]
        try:
            with Path(folder.root, beside[extension]).open("rb") as file:
                data = file.read(COMPANION_BYTES + 1)
            if len(data) > COMPANION_BYTES:
                raise ValueError
            values[field] = read(data)
        except (*LOCAL_ERRORS, RecursionError):
            notes.append(f"{field} is not {expected} of at most {COMPANION_BYTES >> 20} MiB, or cannot be read")
    if "metadata" not in values and "json" not in beside:
        # As tools/make_shards.py writes it.
        values["metadata"] = json.dumps({"file": image}, ensure_ascii=False)
    if names.caption_json is not None:
        metadata = values.get("metadata")
        values["caption"] = caption_in(metadata, names.caption_json) if isinstance(metadata, str) else None
        if values["caption"] is None:
            notes.append(f"metadata has no text under the key {names.caption_json}, so there is no caption")
    return values, notes


def _readable(folder: ImageFolder) -> tuple[list[str], list[str]]:
    """The images whose names a table can store, and the escaped names of the others."""
    try:
        "\0".join(folder.images).encode()
    except UnicodeEncodeError:
        pairs = [(path, as_utf8(path)) for path in folder.images]
        return [path for path, text in pairs if path == text], [text for path, text in pairs if path != text]
    return folder.images, []


def _total_of(folder: ImageFolder) -> tuple[int, int]:
    return _total(stat for path in folder.parts() if (stat := file_stat(str(folder.root), path)) is not None)


def _total(stats: Iterator[os.stat_result] | list[os.stat_result]) -> tuple[int, int]:
    size, newest = 0, 0
    for stat in stats:
        size += stat.st_size
        newest = max(newest, stat.st_mtime_ns)
    return size, newest


def _note(on_note: Callable[[BadImage], None], called: str, member: str, reason: str) -> None:
    on_note(BadImage(NO_ROW, member, called, reason))
