"""Read the encoded images of a store again from their shards, by offset.

Stores may come from other people: a command (`pipe:`) that a store names is never run, and a network address is read
only if the caller names it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from headspan.errors import SourceError
from headspan.io.retry import is_remote
from headspan.member_names import MemberNames
from headspan.originals.find_shards import find_shard
from headspan.shards.describe import describe
from headspan.shards.images import ImageReader, Wanted
from headspan.shards.kinds import FOLDER, LIST, kind_of
from headspan.shards.open_images import open_images
from headspan.shards.samples import Shard
from headspan.store.reader import Store
from headspan.store.schema import member_names

_ANY_NAMES = MemberNames()


def encoded_image(store: Store, image: int, shards: Sequence[str] = ()) -> bytes:
    """The encoded image of that index, as its shard holds it.

    `shards` name all shards, in the order of the run, if they have moved. Raises SourceError if the image cannot be
    read, and SettingsError if there is no such image.
    """
    (sample,) = store.samples([image]).to_pylist()
    planned, url = find_shard(store, sample["url"], shards)
    with open_planned(planned, url, member_names(store.attributes), [url] if shards else ()) as images:
        found, no_bytes = encoded_sample(images, sample)
    if no_bytes is not None:
        raise SourceError(f"{url}: {sample['member']}: {no_bytes}")
    return found


def open_planned(planned: Shard, url: str, names: MemberNames = _ANY_NAMES, given: Collection[str] = ()) -> ImageReader:
    """A reader of the images of a planned shard that is at `url` now; `given` are the URLs that the caller named.

    Raises SourceError if the shard cannot be opened, may not be read, or has another size than when it was planned.
    """
    refuse_unnamed(url, given)
    # The size of what a command wrote is not known.
    measured = kind_of(url) not in (FOLDER, LIST) and planned.size_bytes is not None
    if measured and describe(url)[0] != planned.size_bytes:
        raise SourceError(f"{url}: has changed since precompute read it; restore the shard")
    return open_images(url, names, planned.modified_ns)


def by_shard(
    store: Store, samples: Iterable[Mapping[str, Any]], urls: Mapping[str, str], given: Collection[str] = ()
) -> Iterator[tuple[str, list[Mapping[str, Any]], Callable[[], ImageReader]]]:
    """The present URL of each shard of some samples, its samples from front to back, and what opens it.

    `samples` are rows of the store's table; `urls` are the present URLs of shards by their names, which are theirs
    otherwise; `given` and what opening raises are as in `open_planned`.
    """
    names = member_names(store.attributes)
    planned = {shard.url: shard for shard in store.shards()}
    for name, members in groupby(sorted(samples, key=_place), key=lambda sample: str(sample["url"])):
        url = urls.get(name, name)
        yield url, list(members), partial(open_planned, planned[name], url, names, given)


def _place(sample: Mapping[str, Any]) -> tuple[str, int]:
    return str(sample["url"]), int(sample["offset"])


def refuse_unnamed(url: str, given: Collection[str]) -> None:
    """Raise SourceError for a command, and for a remote shard that is not among `given`, which the caller named."""
    if url.startswith("pipe:"):
        raise SourceError(f"{url}: is a command, which is not run to read images; name shards that are files")
    if is_remote(url) and url not in given:
        raise SourceError(f"{url}: is remote, and remote shards are read only if --shards names them")


def encoded_sample(images: ImageReader, sample: Mapping[str, Any]) -> tuple[bytes, str | None]:
    """The encoded image of a row of the store's table, or the reason why there is none.

    Raises SourceError if the shard cannot be read. A file that has changed concerns no other file of its folder.
    """
    try:
        (found,) = images.read(Wanted((sample["offset"],), (sample["size_bytes"] or 0,), (sample["member"],)))
    except SourceError as error:
        if not images.needs_members:
            raise
        return b"", str(error)
    return found
