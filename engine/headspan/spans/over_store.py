"""TEXTSPAN over a store: every kept head described by texts of a pool, and kept as `textspan/<run>`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from headspan.errors import SettingsError, StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.spans.algorithm import Spread, TextSpan, check_counts, span_heads
from headspan.store import results
from headspan.store.identity import MODEL_KEYS, differences
from headspan.store.moments_file import MergedMoments
from headspan.store.reader import Store
from headspan.store.write import analyses
from headspan.texts.pool import Pool, read_pool, stored_name, stored_pool, text_vectors


@dataclass(frozen=True, slots=True)
class HeadSpans:
    """Texts of every head, in the order chosen; -1 in `indices` where nothing was left to explain."""

    run: str
    pool: Pool
    layers: tuple[int, ...]
    indices: Int[np.ndarray, "layer head text"]
    # Cumulative share of the variance of the head's contributions.
    explained: Float[np.ndarray, "layer head text"]
    # How many images they were chosen over, and of how many stores.
    images: int
    stores: int = 1

    def texts(self, layer: int, head: int, count: int | None = None) -> list[str]:
        """The first `count` texts of a head, all by default."""
        chosen = self.indices[self.layers.index(layer), head, :count]
        return [self.pool.texts[index] for index in chosen.tolist() if index >= 0]

    def heads(self) -> Iterator[tuple[int, int]]:
        """Layer and head of every described head, in order."""
        for layer in self.layers:
            for head in range(self.indices.shape[1]):
                yield layer, head


def textspan(
    store: Store,
    texts: str | Path | Sequence[str] | Pool = "general",
    texts_per_head: int = 60,
    layers: Sequence[int] | None = None,
    rank: int = 80,
    run: str | None = None,
    on_progress: Listener = ignore,
    also: Sequence[Store] = (),
    overwrite: bool = False,
    *,
    weights: str | Path | None = None,
) -> HeadSpans:
    """Describe every head of `layers` (all kept ones by default), from the store's moments alone.

    In the published convention (`even`), contributions over `‖embedding‖`. The result is kept in the
    store as `textspan/<run>`; `run` is the pool's name by default. `also` are further stores of the same weights and
    layers, however they were decoded and at whatever precision: their moments are added, and heads described over the
    images of all. `weights` says where the model's weights lie now, as for `text_vectors`.

    A run that was made from the same texts, settings and images is returned as it is kept. One that was made otherwise
    is refused unless `overwrite`, which replaces it and deletes the labels and scores that were made from it.

    Raises SettingsError where sizes do not fit or a store is named twice, StoreError where fewer than two images are
    there, a store is of other weights or layers, or another run of that name is there, and what `text_vectors` raises.
    """
    pool = read_pool(texts)
    run = pool.name if run is None else run
    chosen_layers = tuple(store.layers if layers is None else layers)
    # What can be refused is refused before the texts are embedded, which takes longest.
    results.check_run(run)
    check_counts(len(pool.texts), texts_per_head, rank)
    if not chosen_layers:
        raise SettingsError(f"{store.path}: no layers to describe; name some, or leave layers out for all")
    for layer in chosen_layers:
        store.contents.layer_index(layer)
    moments = _added_moments(store, also)
    _refuse_too_few(store, moments)
    settings = {
        "pool": stored_name(store, pool),
        "pool_sha256": pool.sha256,
        "layers": list(chosen_layers),
        "texts_per_head": texts_per_head,
        "rank": rank,
        "convention": "uniform",
        "images": moments.count,
        # Of this store, and of the others in an order that does not depend on how they were named.
        "moments_sha256": [store.moments().sha256, *sorted(other.moments().sha256 for other in also)],
        "also": [str(other.path.resolve()) for other in also],
    }
    if not overwrite and results.sound(store, "textspan", run):
        _refuse_otherwise_made(store, run, settings)
        if not results.sound(store, "texts", str(settings["pool"])):
            text_vectors(store, pool, on_progress, weights=weights)
        on_progress(Progress(NOTE, 1, 1, f"textspan/{run} was made with the same settings before; it is unchanged"))
        return read_spans(store, run)
    vectors = text_vectors(store, pool, on_progress, weights=weights)
    spans = span_store(store, vectors, texts_per_head, chosen_layers, rank, moments)
    shape = (len(chosen_layers), store.heads_per_layer, texts_per_head)
    result = HeadSpans(
        run=run,
        pool=pool,
        layers=chosen_layers,
        indices=np.stack([span.indices for span in spans]).reshape(shape),
        explained=np.stack([span.explained for span in spans]).reshape(shape),
        images=moments.count,
        stores=1 + len(also),
    )
    dims = ("layer", "head", "text")
    analyses.save(
        store,
        "textspan",
        run,
        {"indices": (result.indices, dims), "explained": (result.explained, dims)},
        settings,
        overwrite,
        on_progress,
    )
    return result


# How settings that decide a run's result are called in a sentence.
_DECIDING = {
    "pool_sha256": "texts",
    "layers": "layers",
    "texts_per_head": "texts per head",
    "rank": "rank",
    "convention": "convention",
    "images": "number of images",
    "moments_sha256": "images",
}


def _refuse_otherwise_made(store: Store, run: str, settings: Mapping[str, Any]) -> None:
    """StoreError where the run that is there was made with other settings or from other images."""
    kept = results.load_settings(store, "textspan", run)
    deciding = {**_DECIDING}
    if "moments_sha256" not in kept:
        # Runs of earlier versions tell other images by these alone.
        deciding["also"] = "further stores"
    different = [name for name in deciding if name in kept and kept[name] != settings[name]]
    if different:
        now = ", ".join(
            f"{deciding[name]} {kept[name]}, now {settings[name]}"
            if isinstance(settings[name], int)
            else f"other {deciding[name]}"
            for name in different
        )
        raise results.refusal(store, "textspan", run, f"textspan run {run!r} was made otherwise ({now})")


def _added_moments(store: Store, also: Sequence[Store]) -> MergedMoments:
    """The moments of several stores, which must be of one model, as of one."""
    moments, paths = store.moments(), {store.path.resolve()}
    for other in also:
        if other.path.resolve() in paths:
            raise SettingsError(f"{other.path}: named twice, and its images would count twice; name each store once")
        paths.add(other.path.resolve())
        for what, own, wanted in differences(other.attributes, store.attributes, (*MODEL_KEYS, "layers")):
            raise StoreError(
                f"{other.path}: was made with {what} {own}, but {store.path} with {wanted}; add stores of the same "
                "model, preprocessing and layers"
            )
        moments += other.moments()
    return moments


def _refuse_too_few(store: Store, moments: MergedMoments) -> None:
    if moments.count < 2:
        raise StoreError(f"{store.path}: {counted(moments.count, 'image')}; TEXTSPAN needs a variance, so at least 2")


def span_store(
    store: Store,
    vectors: Float[np.ndarray, "text joint"],
    texts_per_head: int,
    layers: Sequence[int],
    rank: int,
    moments: MergedMoments,
) -> list[TextSpan]:
    """TEXTSPAN of all heads of `layers`, layer by layer, with what reconstruction needs."""
    _refuse_too_few(store, moments)
    return span_heads(
        (
            Spread(
                moments.count,
                moments.total[store.contents.layer_index(layer), head],
                moments.gram[store.contents.layer_index(layer), head],
                store.head_directions(layer, head),
            )
            for layer in layers
            for head in range(store.heads_per_layer)
        ),
        vectors,
        texts_per_head,
        rank,
    )


def read_spans(store: Store, run: str | None = None) -> HeadSpans:
    """The stored texts of a run, or of the only one there is."""
    run = results.only_run(store, "textspan", run)
    arrays, settings = results.load(store, "textspan", run)
    with results.as_written(store, "textspan", run):
        pool_name, checksum = str(settings["pool"]), str(settings["pool_sha256"])
        layers, images = tuple(map(int, settings["layers"])), int(settings["images"])
        # Runs before there was `also` are over one store.
        stores = 1 + len(settings.get("also", ()))
        indices, explained = arrays["indices"], arrays["explained"]
    pool = stored_pool(store, pool_name)
    if pool.sha256 != checksum:
        raise StoreError(
            f"{store.path}: the pool {pool.name} has changed since textspan run {run!r}; run headspan textspan again"
        )
    return HeadSpans(run, pool, layers, indices, explained, images, stores)
