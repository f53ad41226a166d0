"""The total effect of heads: a store's images by its model without some heads, for many sets of heads at once.

The heads' slices of the output projections are zero in the live model, so every row and every later layer lacks what
they wrote (soft pruning, arXiv 2503.11103). The images are read from their shards and pass through the model once; each
set repeats only what follows its first pruned layer. Nothing is written to the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, closing
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64

from headspan.errors import SettingsError, StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.head_names import Head, head_name
from headspan.prune.total.kept_embeddings import KeptEmbeddings
from headspan.store.identity import MODEL_KEYS, identity
from headspan.store.reader import Store
from headspan.store.schema import decoding
from headspan.store.selection import Images, chosen_images, usable_images
from headspan.user_paths import expand_user

if TYPE_CHECKING:
    from headspan.run.live_pass import UnitRows


def total_effect(
    store: Store,
    sets: Sequence[Sequence[Head]],
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    keep: str | Path | None = None,
    images: Images | None = None,
) -> Float32[np.ndarray, "set images joint"]:
    """Embeddings, not normalised, of a store's images by its model with each set of heads pruned, in one pass.

    Needs torch and the images. On a CPU the model runs in float32, on a GPU in the store's precision. The result takes
    `sets · images · joint · 4` bytes; with `keep` it is a read-only memory map. Where numbers exceed the range of the
    precision, embeddings are not finite, and a note says how many.

    Args:
        store: The store. If it was made without some heads, its model lacks them in each set.
        sets: Sets of (layer, head) of any layers of the model, stored or not; an empty set is the whole model.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        weights: Where the model's weights are now, as in `text_vectors`.
        shards: Where all the shards are now, in the order of the run, if they have moved.
        device: `auto`, `cpu` or `cuda:0`; of several devices, the first is used.
        batch_size: Images in a pass; None for the store's on such a device, which gives the same bytes again.
        keep: A folder, outside the store, where the embeddings of finished units are kept: after an interruption the
            same call continues, to the same bytes.
        images: Some images only: a selection, indices, or a mask. The result has them in the store's order.

    Raises:
        SettingsError: If the model has no such head, the images do not exist, or a device or its memory lacks.
        SourceError: If a shard is missing, or holds other images than those that the store was made from.
        ModelError: If the model cannot be loaded or is not the store's.
        StoreError: If no image is finished, or `keep` cannot be written or holds the embeddings of another call.
    """
    wanted = [sorted({(index(layer), index(head)) for layer, head in heads}) for heads in sets]
    chosen = chosen_images(store, images)
    shown, usable = store.rows[chosen], usable_images(store, chosen)
    if not usable.any():
        raise StoreError(f"{store.path}: none of {counted(len(shown), 'image')} could be used or is finished")
    if not wanted:
        return np.empty((0, len(shown), store.joint), np.float32)
    units = _by_unit(store, shown[usable])
    found = _computed(store, wanted, units, on_progress, weights, shards, device, batch_size, keep)
    if usable.all():
        return found
    # Images that could not be used are NaN, as in a store that shows them.
    every = np.full((len(sets), len(shown), store.joint), np.nan, np.float32)
    every[:, usable] = found
    return every


def _computed(
    store: Store,
    sets: Sequence[Sequence[Head]],
    units: Sequence[UnitRows],
    on_progress: Listener,
    weights: str | Path | None,
    shards: Sequence[str],
    device: str,
    batch_size: int | None,
    keep: str | Path | None,
) -> Float32[np.ndarray, "set image joint"]:
    # Imported here, since only this needs the model and torch.
    from headspan.originals.unchanged import UnchangedShards
    from headspan.run.live_pass import LivePass

    live = LivePass(store, sets, on_progress, weights, device, batch_size)
    ends = np.cumsum([len(rows) for _, rows in units]).tolist()
    places = {unit: slice(end - len(rows), end) for (unit, rows), end in zip(units, ends, strict=True)}
    shape = (len(sets), ends[-1], store.joint)
    infinite = 0
    with ExitStack() as stack:
        kept = None
        if keep is not None:
            asked = _asked(store, sets, units, live.facts)
            kept = stack.enter_context(KeptEmbeddings(_outside(store, keep), shape, asked, on_progress))
        found = np.empty(shape if kept is None else (0, 0, 0), np.float32)
        finished = set() if kept is None else kept.finished(places)
        # Shards of which everything is finished are not needed any more.
        if left := [each for each in units if each.unit not in finished]:
            shards_left = UnchangedShards(store, np.concatenate([rows for _, rows in left]), shards)
            computed = live.embeddings(units, finished, shards_left.open, shards_left.check)
            for unit, images, embeddings, last in stack.enter_context(closing(computed)):
                infinite += int((~np.isfinite(embeddings).all(axis=(0, 2))).sum())
                if kept is None:
                    found[:, images] = embeddings
                else:
                    kept.put(images.start, embeddings)
                    if last:
                        kept.finish(unit, places[unit])
        if infinite:
            what = f"the numbers of {counted(infinite, 'image')} exceed the range of the precision without some heads"
            on_progress(Progress(NOTE, 0, None, what))
        return found if kept is None else kept.array()


def _by_unit(store: Store, rows: Int64[np.ndarray, " image"]) -> list[UnitRows]:
    from headspan.run.live_pass import UnitRows

    own, firsts = np.unique(rows // store.attributes["dimensions"]["unit_images"], return_index=True)
    return [UnitRows(int(unit), part) for unit, part in zip(own, np.split(rows, firsts[1:]), strict=True)]


def _asked(
    store: Store, sets: Sequence[Sequence[Head]], units: Sequence[UnitRows], facts: dict[str, Any]
) -> dict[str, Any]:
    """What decides the embeddings, by what it is called in an error."""
    read = {record.unit: record.source_crc32c for record in store.contents.records}
    rows = hashlib.sha256(np.concatenate([rows for _, rows in units]).astype("<i8").tobytes()).hexdigest()
    known = identity(store.attributes)
    return {
        "sets of heads": [[head_name(*head) for head in heads] for heads in sets],
        "images": [rows, *(read[unit] for unit, _ in units)],
        "models": {name: known.get(name) for name in MODEL_KEYS},
        "decoding": decoding(store.attributes),
        **facts,
    }


def _outside(store: Store, keep: str | Path) -> Path:
    folder = expand_user(keep, StoreError)
    if folder.resolve().is_relative_to(store.path.resolve()):
        raise SettingsError(f"{folder}: is in the store, which is not written to; give keep a folder of its own")
    return folder
