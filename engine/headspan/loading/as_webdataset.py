"""A store as a WebDataset pipeline: the samples of the tars, joined with the store's numbers.

A member of a tar belongs to a row of the store if its path and its place in the tar are the row's. Keys and paths may
repeat.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from webdataset.compat import FluidWrapper
from webdataset.tariterators import base_plus_ext, meta_prefix, meta_suffix

from headspan.errors import SourceError, counted
from headspan.loading.columns import Choice, Columns, chosen_images
from headspan.member_names import MemberNames
from headspan.run.planned_sources import change, places
from headspan.shards.kinds import TAR, kind_of
from headspan.shards.samples import Shard
from headspan.shards.sources import open_shard
from headspan.shards.tar import LINK, Tar
from headspan.store.reader import Store, open_store
from headspan.store.tables import read_rows

# Images whose numbers are read at once. They follow one another in the tar.
_IMAGES_AT_ONCE = 256


def as_webdataset(
    store: Store | str | Path,
    arrays: Sequence[str] = ("heads", "embedding"),
    shards: str | Sequence[str] = (),
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    convention: str = "uniform",
    normalised: bool = True,
    shuffle: bool = False,
    seed: int | None = None,
    keep_failed: bool = False,
    allow_pipe: bool = False,
) -> Any:
    """Return a WebDataset pipeline of the store's samples: members of the tars, and arrays as `heads.npy` and so on.

    The pipeline has the package's methods: `as_webdataset(store).shuffle(1000).decode("torchrgb").to_tuple("jpg",
    "heads.npy")`. Ranks and DataLoader workers share the shards, by the package's `split_by_node` and
    `split_by_worker`. Arrays are encoded as `.npy`, as all members are bytes, and `decode()` makes them arrays. If a
    sample has several images, the arrays of `KEY.left.jpg` are `left.heads.npy`.

    Args:
        store: The store, or its path.
        arrays: As in `torch_dataset`. Stored types are kept.
        shards: Where all the shards are now, if they have moved; relative names are searched as `verify` does.
        layers: As in `torch_dataset`.
        heads: As in `torch_dataset`.
        convention: As in `torch_dataset`.
        normalised: As in `torch_dataset`.
        shuffle: Whether shards are visited in random order. Shuffle samples with the pipeline's own method.
        seed: Of the order of shards; None for another one in each epoch.
        keep_failed: Whether to yield samples without numbers too, without arrays: images that failed, units that are
            not finished, samples without an image.
        allow_pipe: Run shards that are `pipe:` commands.

    Raises:
        SettingsError: If an array, layer or head is not stored.
        SourceError: If a shard is no tar, or, when it is read, has changed.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    choice = Choice(
        (arrays,) if isinstance(arrays, str) else tuple(arrays),
        None if layers is None else tuple(layers),
        None if heads is None else tuple(heads),
        np.dtype(np.float16),
        convention,
        normalised,
    )
    planned = opened.shards()
    given = (shards,) if isinstance(shards, str) else tuple(shards)
    urls = places(planned, opened.attributes, given, allow_pipe)
    for url in urls.values():
        _refuse_unless_tar(url, allow_pipe)
    pipeline = FluidWrapper(webdataset.SimpleShardList([shard.url for shard in planned]))
    stages = [webdataset.split_by_node, webdataset.split_by_worker]
    if shuffle:
        most = len(planned)
        stages.append(
            webdataset.shuffle(most, initial=most) if seed is None else webdataset.detshuffle(most, most, seed)
        )
    return pipeline.compose(*stages, _Joining(opened, choice, planned, urls, keep_failed))


class _Joining:
    """The stage of the pipeline that reads shards, and joins their samples with the store's numbers."""

    def __init__(
        self, store: Store, choice: Choice, planned: Sequence[Shard], urls: dict[str, str], keep_failed: bool
    ) -> None:
        self._columns = Columns(store, choice, chosen_images(store, None))
        self._path, self._unit_images, self._rows = store.path, store.contents.size.unit_images, store.rows
        self._shards, self._urls = {shard.url: shard for shard in planned}, urls
        self._keep_failed = keep_failed

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples of the shards that `source` names."""
        for each in source:
            yield from self._samples(self._shards[each["url"]])

    def _samples(self, shard: Shard) -> Iterator[dict[str, Any]]:
        url = self._urls[shard.url]
        if changed := change(shard, url, MemberNames()):
            raise SourceError(f"{url}: {changed}; restore it, or name the right shards with shards=")
        rows = np.arange(shard.first_row, shard.first_row + shard.images)
        table = read_rows(self._path, rows, self._unit_images)
        names, offsets, sizes = (table.column(name).to_pylist() for name in ("member", "offset", "size_bytes"))
        row_of = dict(zip(zip(names, offsets, strict=True), rows.tolist(), strict=True))
        images = dict(zip(names, zip(offsets, sizes, strict=True), strict=True))
        numbers = _Numbers(self._columns, self._rows, rows)
        unmatched = set(row_of)
        for sample, fields in _grouped(url, images):
            found = False
            for field, place in fields.items():
                if (row := row_of.get(place)) is None:
                    continue
                unmatched.discard(place)
                for name, data in numbers.of(row).items():
                    stem = field.rpartition(".")[0]
                    sample[f"{stem}.{name}.npy" if stem else f"{name}.npy"] = data
                    found = True
            if found or self._keep_failed:
                yield {**sample, "__url__": shard.url}
        if unmatched:
            raise SourceError(
                f"{url}: {counted(len(unmatched), 'image')} of the store, such as {min(unmatched)[0]}, are not in this "
                "tar; name the right shards with shards="
            )


class _Numbers:
    """The arrays of a shard's rows as `.npy` files, read for many images at once."""

    def __init__(self, columns: Columns, shown: np.ndarray, rows: np.ndarray) -> None:
        self._columns, self._shown = columns, shown
        first, last = np.searchsorted(shown, [rows[0], rows[-1] + 1]) if len(rows) else (0, 0)
        self._end = int(last)
        self._first = int(first)
        self._read: dict[str, np.ndarray] = {}
        self._count = 0

    def of(self, row: int) -> dict[str, bytes]:
        """The arrays of one row, by name; none if the row has no numbers."""
        image = int(np.searchsorted(self._shown, row))
        if image >= self._end or self._shown[image] != row:
            return {}
        if not self._first <= image < self._first + self._count:
            places = np.arange(image, min(image + _IMAGES_AT_ONCE, self._end))
            self._read, self._first, self._count = self._columns.read(places, np.empty), image, len(places)
        return {name: _npy(values[image - self._first, ...]) for name, values in self._read.items()}


def _grouped(
    url: str, images: dict[str, tuple[int, int]]
) -> Iterator[tuple[dict[str, Any], dict[str, tuple[str, int]]]]:
    """The samples of a tar as the package groups them, each with the path and place of its members, by field.

    `images` are offset and size of the store's images, by path.
    """
    sample: dict[str, Any] = {}
    fields: dict[str, tuple[str, int]] = {}
    last: tuple[str, int] | None = None
    with open_shard(url) as reader:
        tar = Tar(reader)
        for path, offset, size, archive in tar.members():
            key, field = base_plus_ext(path)
            if key is None or _is_meta(path):
                continue
            if size == LINK:
                # A link to a later member, or a symbolic one. Only the store knows where an image's data is.
                if path not in images:
                    continue
                offset, size = images[path]
            field = field.lower()
            if (key, archive) != last or field in sample:
                if sample:
                    yield sample, fields
                sample, fields, last = {"__key__": key}, {}, (key, archive)
            sample[field], fields[field] = tar.read(offset, size), (path, offset)
        if sample:
            yield sample, fields


def _is_meta(path: str) -> bool:
    """Whether webdataset leaves the member out: its first folder or its name begins and ends with underscores."""
    first = path.partition("/")[0]
    return (
        first.startswith(meta_prefix) and first.endswith(meta_suffix) and len(first) >= len(meta_prefix + meta_suffix)
    )


def _npy(values: np.ndarray) -> bytes:
    """The values as the contents of a `.npy` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values)
    return buffer.getvalue()


def _refuse_unless_tar(url: str, allow_pipe: bool) -> None:
    if url.startswith("pipe:"):
        if not allow_pipe:
            raise SourceError(
                f"{url}: is a command, which runs with your permissions; if you trust it give allow_pipe=True"
            )
        return
    if kind_of(url) != TAR:
        raise SourceError(
            f"{url}: is no tar, so it has no WebDataset samples to join; read the store with torch_dataset, or "
            "write the images as tars with write_shards and precompute again"
        )
