"""Where the shards of a store's images are now, from whatever folder they are asked for.

A relative name is resolved against the folder of the run, then against the folder of the store. A local shard that is
not where it was is also looked for beside the store, under the last parts of its path. A file or folder counts only
if it has the size that the plan records. Network addresses and commands are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from headspan.errors import SourceError
from headspan.io.retry import is_remote
from headspan.member_names import MemberNames
from headspan.run.planned_sources import places
from headspan.shards.describe import describe
from headspan.shards.kinds import FOLDER, LIST, kind_of
from headspan.shards.samples import Shard
from headspan.shards.urls import is_relative, local_path
from headspan.store.reader import Store
from headspan.store.schema import member_names


def find_shards(store: Store, shards: Sequence[str] = ()) -> tuple[dict[str, str], list[str]]:
    """The present address of each planned shard by its name in the store, and the names that no file was found for.

    `shards` name all of them, in the order of the run, if they have moved. Raises SourceError if their number differs
    from the plan's.
    """
    planned = store.shards()
    # Commands are named, and never run to read images.
    urls = places(planned, store.attributes, shards, allow_pipe=True)
    if shards:
        return urls, []
    missing = []
    for shard in planned:
        url = urls[shard.url] = _found(store, shard, urls[shard.url])
        if not (url.startswith("pipe:") or is_remote(url) or Path(local_path(url)).exists()):
            missing.append(shard.url)
    return urls, missing


def find_shard(store: Store, name: str, shards: Sequence[str] = ()) -> tuple[Shard, str]:
    """The planned shard of that name in the store, and its present address as `find_shards` finds it.

    The other shards are not looked at. Raises SourceError as `find_shards` does.
    """
    planned = store.shards()
    shard = next(each for each in planned if each.url == name)
    url = places(planned, store.attributes, shards, allow_pipe=True)[name]
    # To measure a folder or a list takes as long as to list it. Its files are checked one by one when they are read.
    local = not (url.startswith("pipe:") or is_remote(url))
    measured = local and Path(local_path(url)).exists() and kind_of(url) in (FOLDER, LIST)
    return shard, url if shards or measured else _found(store, shard, url)


def _found(store: Store, shard: Shard, url: str) -> str:
    """`url`, or where the shard lies beside the store if it is not there."""
    names = member_names(store.attributes)
    if url.startswith("pipe:") or is_remote(url) or _is(shard, Path(local_path(url)), names):
        return url
    if not isinstance(store.path, Path):
        # Nothing lies beside a store in a bucket.
        return url
    folder = store.path.resolve().parent
    return next((str(path) for path in _elsewhere(folder, shard.url) if _is(shard, path, names)), url)


def missing_note(missing: Sequence[str], planned: int) -> str:
    """One sentence that names missing shards."""
    shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
    return f"{len(missing):,} of {planned:,} shards {'was' if len(missing) == 1 else 'were'} not found: {shown}"


_SHOWN = 3


def _is(shard: Shard, path: Path, names: MemberNames) -> bool:
    try:
        return path.exists() and describe(str(path), names)[0] == shard.size_bytes
    except (OSError, ValueError, SourceError):
        return False


def _elsewhere(folder: Path, name: str) -> Iterator[Path]:
    """Where a shard may be if store and shards have moved together."""
    try:
        path = Path(local_path(name))
    except SourceError:
        return
    if is_relative(name):
        yield folder / path
    parts = [part for part in path.parts if part not in ("/", "..", ".")]
    for first in range(len(parts)):
        yield folder.joinpath(*parts[first:])
        yield folder.parent.joinpath(*parts[first:])
