"""Open the planned shards by the names in the store, after checking that they are unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headspan.errors import SourceError, counted
from headspan.io.retry import is_remote
from headspan.member_names import MemberNames
from headspan.redact import redact
from headspan.shards.describe import describe
from headspan.shards.file_plan import image_count
from headspan.shards.images import ImageReader
from headspan.shards.kinds import FOLDER, LIST, kind_of
from headspan.shards.open_images import open_images
from headspan.shards.samples import Shard
from headspan.shards.urls import expand, is_relative, local_path
from headspan.store.schema import member_names

_ANY_NAMES = MemberNames()


class PlannedSources:
    """Opens planned shards by name, and nothing else: a store may name anything, including commands."""

    def __init__(self, shards: Sequence[Shard], urls: Mapping[str, str], names: MemberNames = _ANY_NAMES) -> None:
        """`urls` maps each name to its url, as `stored_names` does; `names` are those of the plan."""
        self._shards = {shard.url: shard for shard in shards}
        self._urls, self._names = urls, names

    def open(self, name: str) -> ImageReader:
        """A reader of the shard. Raises SourceError if it was not planned, has changed since, or cannot be read."""
        if name not in self._urls or name not in self._shards:
            raise SourceError(
                f"{name}: belongs to the store's plan, but is not among the shards of this run; name it to continue"
            )
        url = self._urls[name]
        shard = self._shards[name]
        changed = change(shard, url, self._names)
        if changed:
            raise SourceError(f"{name}: {changed}; restore it to continue, or choose another --out")
        return open_images(url, self._names, shard.modified_ns)


def places(
    planned: Sequence[Shard], attributes: Mapping[str, Any], shards: Sequence[str] = (), allow_pipe: bool = False
) -> dict[str, str]:
    """Where each planned shard is now, by the name that the store has for it.

    `shards` name all of them, in the order of the run. Without them, relative names are searched in the folder that the
    run was started in, which the store's `attributes` record, and then in the current folder. Raises SourceError if
    the number of `shards` differs from the plan's.
    """
    if not shards:
        return {shard.url: _place(shard.url, attributes) for shard in planned}
    urls = expand(shards, allow_pipe)
    if len(urls) != len(planned):
        raise SourceError(
            f"{counted(len(urls), 'shard')} {'is' if len(urls) == 1 else 'are'} named, but the store was planned over "
            f"{len(planned)}; name all of them, in the order of the run"
        )
    return {shard.url: url for shard, url in zip(planned, urls, strict=True)}


def as_planned(planned: Sequence[Shard], attributes: Mapping[str, Any], urls: Mapping[str, str]) -> dict[str, str]:
    """`urls` by the names that the store has for them, where the shards are named differently or have moved.

    A local shard counts as the planned one at its position if it is the same file, or if name, size and time of
    modification are the same in another folder. A remote shard counts as the planned one if its name without secrets is
    the same. Any other shard keeps its own name and is refused later.
    """
    if len(planned) != len(urls):
        return dict(urls)
    pairs = zip(planned, urls.items(), strict=True)
    return {
        shard.url if name != shard.url and _is_planned(shard, attributes, name, url) else name: url
        for shard, (name, url) in pairs
    }


def _is_planned(shard: Shard, attributes: Mapping[str, Any], name: str, url: str) -> bool:
    if is_remote(url) or is_remote(shard.url):
        # An old store may hold a name with a secret that was not recognised as one when the store was written.
        return redact(shard.url) == name
    before, now = Path(local_path(_place(shard.url, attributes))), Path(local_path(url))
    if before.absolute() == now.absolute():
        return True
    return before.name == now.name and change(shard, url, member_names(dict(attributes))) is None


def _place(name: str, attributes: Mapping[str, Any]) -> str:
    folder = (attributes.get("made_with") or {}).get("folder")
    if folder is None or not is_relative(name):
        return name
    recorded = Path(folder) / local_path(name)
    return str(recorded) if recorded.exists() else name


def change(shard: Shard, url: str, names: MemberNames) -> str | None:
    """How the shard at `url` differs from the planned one in size or time of modification; None if it does not.

    Of a folder or a list, files that were added or removed are named by their number. Raises SourceError if there is no
    such file.
    """
    size_bytes, modified_ns = describe(url, names)
    if (size_bytes, modified_ns) == (shard.size_bytes, shard.modified_ns):
        return None
    if (kind := kind_of(url)) in (FOLDER, LIST) and (images := image_count(url, names, kind == LIST)) != shard.images:
        return f"has changed since precompute read it ({counted(images, 'image')} now, {shard.images:,} then)"
    if size_bytes != shard.size_bytes:
        return f"has changed since precompute read it ({size_bytes} bytes now, {shard.size_bytes} bytes then)"
    if modified_ns != shard.modified_ns:
        return "has changed since precompute read it (its time of modification differs)"
    return None
