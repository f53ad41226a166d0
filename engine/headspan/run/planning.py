"""Plan a store from settings: every image gets a row, every array its shape.

An existing store is resumed if it was made with the same settings from the same shards. Otherwise it is refused, with
the first difference in the message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from headspan.config import ResolvedSettings
from headspan.decompose.fold import fold
from headspan.errors import StoreError, counted
from headspan.escapes import shell_command
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.io.locations import Location, location_of
from headspan.io.storage import total_bytes
from headspan.run.attributes import store_attributes
from headspan.run.encoder import Encoder
from headspan.run.memory_estimate import estimated_bytes
from headspan.run.plan_ahead import PlanInProgress, samples_of
from headspan.run.planned_sources import as_planned, change
from headspan.run.unit_size import chosen_unit_images, fitting
from headspan.shards.describe import describe_each
from headspan.shards.kinds import FOLDER, LIST, kind_of
from headspan.shards.notes import NO_ROW
from headspan.shards.samples import BadImage, Shard
from headspan.store.consolidated import ROOT, consolidate
from headspan.store.schema import ROOT_COPY, image_bytes, member_names, moment_arrays
from headspan.store.tables import NOTES_FILE, read_shards
from headspan.store.worker_states import other_workers
from headspan.store.write.create import NewStore
from headspan.store.write.unit import StoreWriter

# How many notes on whole shards a run prints; `headspan info --notes` lists all.
_REMARKS = 3


def open_planned(
    settings: ResolvedSettings,
    urls: Mapping[str, str],
    encoder: Encoder,
    plan: PlanInProgress | None,
    on_progress: Listener,
    computing: int = 1,
) -> StoreWriter:
    """Return the store at `settings.out`: a new one with `plan`, or the one that exists.

    A new store of few images gets smaller units if there are several `computing` processes.

    Raises StoreError if the store was made with other settings or over other shards than `urls` (by name).
    """
    path = location_of(settings.out)
    if plan is None:
        return _resume(path, urls, settings, encoder)
    # Computed first, because the plan may still be read meanwhile.
    folded = fold(encoder.exact, encoder.layers)
    planned = plan.result(on_progress)
    if planned is None:
        return _resume(path, urls, settings, encoder)
    images, notes = planned.images, planned.notes
    unit_images = chosen_unit_images(settings, encoder, planned.unit_images, images, computing)
    if unit_images < min(planned.unit_images, images):
        plan.staged.divide_units(images, planned.unit_images, unit_images)
    attributes = store_attributes(settings, encoder, images, unit_images)
    if not plan.staged.publish(attributes, planned.shards, folded):
        # Another process planned the same store in the meantime.
        return _resume(path, urls, settings, encoder)
    store = StoreWriter(path)
    for sentence in _remarks(notes):
        on_progress(Progress(NOTE, 0, None, sentence))
    memory = estimated_bytes(settings, encoder, store.specs)
    on_progress(Progress("planned", images, images, "; ".join(_size_in_words(store, encoder, memory, len(notes)))))
    return store


def _remarks(notes: Sequence[BadImage]) -> Iterator[str]:
    """Sentences for the first notes on whole shards, such as which columns were chosen; equal notes make one."""
    shards: dict[str, list[str]] = {}
    for note in notes:
        if note.row == NO_ROW and not note.key:
            shards.setdefault(note.reason, []).append(note.url)
    for reason, names in islice(shards.items(), _REMARKS):
        more = f" and {counted(len(names) - 1, 'more shard')}" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {reason}"


def _size_in_words(store: StoreWriter, encoder: Encoder, memory: int, notes: int) -> Iterator[str]:
    images, per_image, once = store.size.images, image_bytes(store.specs), _bytes_once(store)
    yield (
        f"{(images * per_image + once) / 1e6:,.1f} MB on disk ({per_image:,} bytes per image, {once / 1e6:,.1f} MB of "
        f"tables, matrices and moments); memory at most {memory / 1e6:,.0f} MB"
    )
    if notes:
        lists = shell_command(["headspan", "info", str(store.path), "--notes"])
        yield f"{counted(notes, 'note')} on captions and other members; `{lists}` lists them"
    pooling = encoder.exact.direct_layers.start
    if pooling > 0 and not encoder.through_pool:
        yield f"heads of layers before {pooling}, the pooling, are not stored without --emit heads,through_pool"


def _bytes_once(store: StoreWriter) -> int:
    """Bytes that do not depend on the number of images: the files of the plan, and the merged moments."""
    moments = moment_arrays(store.size).values()
    return total_bytes(store.storage) + sum(spec.shape[0] * spec.row_bytes for spec in moments)


def _resume(path: Location, urls: Mapping[str, str], settings: ResolvedSettings, encoder: Encoder) -> StoreWriter:
    store = StoreWriter(path)
    wanted = settings.unit_images and fitting(settings.unit_images, store.size.images)
    if wanted not in (None, store.size.unit_images):
        raise StoreError(
            f"{path}: was planned in units of {counted(store.size.unit_images, 'image')}, but this run asks for "
            f"{settings.unit_images}; leave --unit-images out to continue, or choose another --out"
        )
    refuse_other_run(store, settings, as_planned(read_shards(path), store.attributes, urls), encoder)
    store.refuse_full_disk()
    store.remove_abandoned([worker.token for worker in other_workers(store.storage, states=False) if worker.alive])
    return store


def refuse_other_run(store: StoreWriter, settings: ResolvedSettings, urls: Mapping[str, str], encoder: Encoder) -> None:
    """Raise StoreError if `settings` or the shards `urls`, by name, are not those that the store was made with."""
    # The plan is not computed again: sizes and times show whether the shards are the planned ones.
    attributes = store_attributes(settings, encoder, store.size.images, store.size.unit_images)
    names = settings.member_names
    found = dict(zip(urls, describe_each(urls.values(), names), strict=True))
    for shard in read_shards(store.path):
        # The number of images says more than the size of all of them.
        if shard.url not in found or found[shard.url] == (shard.size_bytes, shard.modified_ns):
            continue
        url = urls[shard.url]
        if kind_of(url) in (FOLDER, LIST) and (what := change(shard, url, names)) is not None:
            raise StoreError(f"{store.path}: {shard.url} {what}; restore it to continue, or choose another --out")
    store.refuse_other(attributes, [(name, *described) for name, described in found.items()])


def restored_plan_files(
    store: StoreWriter, damaged: Sequence[str], urls: Mapping[str, str], encoder: Encoder
) -> list[str]:
    """Write the `damaged` files of the plan again; returns those that could be restored.

    A file is restored if its new content has the recorded checksum. Notes are restored in any case, with a new
    checksum: they are sentences, whose wording differs between versions, and nothing else depends on them.
    """
    recorded = {name: found for name, found in store.commits.other_files().items() if name in damaged}
    restored: list[str] = []
    if not recorded:
        return restored
    shards: list[Shard] = []
    notes: list[BadImage] = []
    with NewStore(store.path) as staged:
        names = member_names(store.attributes)
        staged.plan(samples_of(urls, shards, notes, ignore, names), store.size.unit_images, notes)
        folded = fold(encoder.exact, encoder.layers)
        staged.write(store.stored_attributes, shards, folded)
        for name, found in recorded.items():
            # The root's metadata without a copy of other metadata.
            place = ROOT_COPY if name == ROOT else name
            if staged.storage.size(place) is None:
                continue
            written = staged.storage.checksum(place)
            if written == found or name == NOTES_FILE:
                store.storage.put(name, [staged.storage.get(place)])
                restored.append(name)
            if written != found and name == NOTES_FILE:
                store.commits.note_plan({**store.commits.planned_files(), name: written})
    consolidate(store.storage)
    return restored
