"""PyTorch datasets over a store: map-style for random access, iterable for training at the speed of the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from headspan.errors import SettingsError
from headspan.loading.columns import Choice, Columns, chosen_images
from headspan.loading.order import Order, part, skipped_batches
from headspan.loading.read_ahead import ReadAhead
from headspan.loading.tensors import Batch, as_tensors
from headspan.store.reader import Store, open_store


def torch_dataset(
    store: Store | str | Path,
    arrays: Sequence[str] = ("heads", "embedding"),
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    images: Sequence[int] | np.ndarray | None = None,
    style: str = "map",
    dtype: Any = "float32",
    convention: str = "uniform",
    normalised: bool = True,
    batch_size: int | None = 1024,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    block_images: int = 1024,
    buffer_blocks: int = 16,
    rank: int | None = None,
    world_size: int | None = None,
) -> StoreDataset | StoreStream:
    """Return a PyTorch dataset over the images that a store shows. Needs torch.

    Samples are dictionaries of tensors. Images that failed, and units that are not finished, are left out. Several
    DataLoader workers may read one dataset, forked or spawned; the store is never written to.

    `style="map"`: `dataset[7]` is one image, `dataset[[7, 8]]` a batch `[image, …]`. Shuffle in the DataLoader. The
    fastest loader is `DataLoader(dataset, batch_size=None, sampler=BatchSampler(RandomSampler(dataset), 1024, False))`.

    `style="iterable"`: `DataLoader(dataset, batch_size=None)` yields batches of `batch_size` images. Threads read
    ahead into two or three buffers in memory, so workers are seldom needed. Each image is visited once an epoch, by one
    worker of one rank. With `shuffle`, blocks of neighbouring images are visited in random order, and the images of
    several blocks are mixed. Call `set_epoch` before each epoch for a new order.

    Args:
        store: The store, or its path.
        arrays: What a sample holds: stored arrays such as `heads` (`[layer, head, head_dim]`), `embedding`, `norm`,
            `mlps` and `patches`; `contributions` (`[layer, head, joint]`, float32); `image`, the image's index in the
            store; `label`, its class.
        layers: Layers of the model for `heads`, `contributions` and `patches`, in that order; None for all stored ones.
        heads: The same for heads of each layer.
        images: Indices or a mask of the images to visit, such as those of a training set; None for all.
        style: `map` or `iterable`.
        dtype: `float32`, or `float16` for arrays that are stored so, which halves the bytes. Others keep their type.
        convention: `uniform` or `per_term`, for `contributions`.
        normalised: Whether `contributions` are divided by the length of the embedding.
        batch_size: Images in a batch of the iterable style; None for one image at a time, which is slow.
        shuffle: Whether the iterable style shuffles.
        seed: Decides the order, together with the epoch.
        drop_last: Whether to leave out incomplete batches of the iterable style, and images that cannot be divided
            equally among ranks and workers, so that all ranks have the same number of batches.
        block_images: Neighbouring images that are read together.
        buffer_blocks: Blocks whose images are mixed. A buffer that takes more than 512 MB is not copied to memory, and
            its batches are read more slowly.
        rank: This process among `world_size` processes, which share the images; None to ask `torch.distributed`, if it
            is initialised.
        world_size: The number of these processes.

    Raises:
        SettingsError: If an array, layer, head or image is not stored, or a value is out of range.
        StoreError: If there is no store, or it is damaged.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    choice = Choice(
        (arrays,) if isinstance(arrays, str) else tuple(arrays),
        None if layers is None else tuple(layers),
        None if heads is None else tuple(heads),
        _offered(dtype),
        convention,
        normalised,
    )
    columns = Columns(opened, choice, chosen_images(opened, images))
    if style == "map":
        if shuffle:
            raise SettingsError(
                "shuffle is for style='iterable'; with style='map', give shuffle=True to the DataLoader instead"
            )
        return StoreDataset(columns)
    if style != "iterable":
        raise SettingsError(f"style {style!r} is unknown; use 'map' or 'iterable'")
    if batch_size is not None and batch_size < 1:
        raise SettingsError(f"batch_size {batch_size} is too small; give at least 1, or None for single images")
    if (rank is None) != (world_size is None) or (world_size is not None and not 0 <= (rank or 0) < world_size):
        raise SettingsError(f"rank {rank} of world_size {world_size}: give both, with rank from 0 to world_size - 1")
    order = Order(len(columns), shuffle, seed, block_images, buffer_blocks)
    share = None if rank is None or world_size is None else (rank, world_size)
    return StoreStream(columns, order, batch_size, drop_last, share)


class StoreDataset(Dataset[Batch]):
    """Images by their place, from any process."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray | Tensor) -> Batch:
        """One image, or the images at several places as one batch. Raises IndexError if there is no such image."""
        one = isinstance(index, (int, np.integer))
        if isinstance(index, slice):
            places = np.arange(len(self))[index]
        else:
            given = np.atleast_1d(np.asarray(index))
            # A list without an image is no list of indices to NumPy.
            places = np.arange(len(self))[given if given.size else given.astype(np.int64)]
        batch = as_tensors(partial(self._columns.read, places))
        return {name: values[0] for name, values in batch.items()} if one else batch

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """The images at several places, read together: what a DataLoader asks for a batch."""
        batch = self[list(indices)]
        return [{name: values[place] for name, values in batch.items()} for place in range(len(indices))]


class StoreStream(IterableDataset[Batch]):
    """Batches of images in the order of an epoch; of a DataLoader's workers and of ranks, each yields its part."""

    def __init__(
        self,
        columns: Columns,
        order: Order,
        batch_size: int | None,
        drop_last: bool,
        share: tuple[int, int] | None,
    ) -> None:
        self._columns, self._order = columns, order
        self._batch_size, self._drop_last = batch_size, drop_last
        self._share = share
        # Shared with the workers that a DataLoader keeps over epochs: the epoch, and its batches that are skipped.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker does not know the ranks.
        return {**self.__dict__, "_share": self._ranks()}

    @property
    def images(self) -> int:
        """Number of images of an epoch, over all ranks and workers."""
        return len(self._columns)

    def set_epoch(self, epoch: int, batches_done: int = 0) -> None:
        """Choose the order of the next epoch, and skip its first `batches_done` batches of this rank.

        To resume within an epoch, give the number of batches that the DataLoader has yielded. The rest then equals
        that of the interrupted epoch, if the DataLoader has as many workers as before.
        """
        if epoch < 0 or batches_done < 0:
            raise SettingsError(f"epoch {epoch} and batches_done {batches_done}: give 0 or more")
        self._position[0], self._position[1] = epoch, batches_done

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch, done = self._position.tolist()
        rank, ranks = self._ranks()
        # The worker whose turn it was when the epoch was interrupted has the first turn now.
        own = (number + done) % workers
        share = part(range(self.images), rank, ranks, equal=self._drop_last)
        parts = [part(share, place, workers, equal=self._drop_last) for place in range(workers)]
        size = self._batch_size or 1
        counts = [len(each) // size if self._drop_last else -(-len(each) // size) for each in parts]
        skipped = skipped_batches(done, workers, counts)[own]
        batches = ReadAhead(self._columns, self._order, size, self._drop_last).batches(epoch, parts[own], skipped)
        if self._batch_size is None:
            return ({name: values[0] for name, values in batch.items()} for batch in batches)
        return batches

    def _ranks(self) -> tuple[int, int]:
        """This process's rank and the number of ranks."""
        if self._share is not None:
            return self._share
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1


def _offered(dtype: Any) -> np.dtype:
    """`dtype`, a name or a type of NumPy or torch, as one of NumPy. Raises SettingsError for other types."""
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, (str, torch.dtype)) else np.dtype(dtype).name
    if name not in ("float32", "float16"):
        raise SettingsError(f"dtype {name} is not offered; use float32, or float16 as stored")
    return np.dtype(name)
