"""TEXTSPAN over a store: describe heads by texts of a pool, and save the result as `textspan/<run>` on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headspan.errors import NotSavedError, SettingsError, StoreError
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.spans.algorithm import check_counts
from headspan.spans.description import at_most_all, describe, refuse_too_few
from headspan.spans.nulls import DRAWS, SEED, check_draws
from headspan.spans.result import HeadSpans
from headspan.spans.saved import arrays_of, read_spans
from headspan.spans.twin import refuse_other_than_twin
from headspan.store import results
from headspan.store.identity import MODEL_KEYS, differences
from headspan.store.moments_file import MergedMoments
from headspan.store.reader import Store
from headspan.store.selection import Images, Selection, selection_of
from headspan.store.taken_runs import refuse_differences
from headspan.store.write.save_result import save_result
from headspan.texts.pool import Pool, read_pool
from headspan.texts.stored import keep_vectors, stored_name
from headspan.texts.vectors import embed_pool


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
    draws: int = DRAWS,
    seed: int = SEED,
    save: bool = False,
    twin: Store | None = None,
    images: Images | None = None,
) -> HeadSpans:
    """Describe every head of `layers` (default: all stored ones) by `texts_per_head` texts of a pool.

    Only the store's moments are read, or with `images` the numbers of these images, and for the stability of the texts
    some images' head outputs. Contributions follow the published convention (`uniform`) and are divided by
    `‖embedding‖`. If a run is named, or with `save`, the result is saved as `textspan/<run>`, together with the pool's
    vectors; otherwise nothing is written. A saved run of the same texts, settings and images is returned unchanged.

    Method: Gandelsman, Efros, Steinhardt, ICLR 2024, Algorithm 1.

    Args:
        store: The store to describe.
        texts: The name of an included pool, a file of texts, a list of texts, or a pool.
        texts_per_head: How many texts are chosen for each head, at most all of the pool, and fewer where a head has no
            variance left to explain. `on_progress` says if the pool has fewer.
        layers: The layers to describe, numbered as in the model; None for all stored ones.
        rank: The number of principal directions of a head's contributions in which texts are compared, at most.
        run: The name under which the result is saved. None saves it only with `save`, under the pool's name.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        also: Further stores of the same weights and layers, at any precision and decoding. Their moments are added, so
            the texts describe the images of all stores.
        overwrite: Replace a different run of the same name. Labels and scores made from it stay, marked as of an older
            run.
        weights: As in `text_vectors`.
        draws: How many meaningless pools are drawn for the null (see `spans.nulls`). With 0 there is no null and no
            `stability`, and no head outputs are read.
        seed: The seed of the draws and of resampled images.
        save: Save the result even if no run is named.
        twin: A store of the same images and layers, made by the same architecture with random weights. It is described
            in the same way, and saved in itself under the same name if the result is. `HeadSpans.twin` and
            `HeadSpans.beside_twin` have what it gives.
        images: Describe the heads over these images only: a selection (`store.select`), indices, or a mask over the
            images shown. Their stored numbers are read. A saved run records the selection.

    Raises SettingsError if sizes do not fit, a store is named twice, or `images` are none or named with `also`;
    StoreError if there are fewer than two images, if a store has other weights or layers, if `twin` has other layers or
    images, another architecture or weights that are not random, or if a different run of that name exists and
    `overwrite` is false; NotSavedError, which holds the result, if the store cannot be written; and the errors of
    `text_vectors`.
    """
    pool = read_pool(texts)
    saved, run = save or run is not None, pool.name if run is None else run
    chosen_layers = tuple(store.layers if layers is None else layers)
    # Every check comes before the texts are embedded, which takes longest.
    results.check_run(run)
    check_draws(draws, seed)
    texts_per_head = at_most_all(len(pool.texts), texts_per_head, pool.name, on_progress)
    check_counts(len(pool.texts), texts_per_head, rank)
    if not chosen_layers:
        raise SettingsError(f"{store.path}: the list of layers is empty; name some, or leave layers out for all")
    for layer in chosen_layers:
        store.contents.layer_index(layer)
    selection = _selection(store, images, also)
    moments = _added_moments(store, also) if selection is None else store.moments(selection)
    refuse_too_few(store, moments)
    beside = None
    if twin is not None:
        if also or not draws:
            raise SettingsError(
                f"{twin.path}: a twin is compared with one store by the excess over chance, so leave out "
                f"{'further stores' if also else 'draws of 0'}, or the twin"
            )
        refuse_other_than_twin(store, twin)
        beside = _described_twin(
            lambda: textspan(
                *(twin, pool, texts_per_head, chosen_layers, rank, run if saved else None, on_progress),
                overwrite=overwrite,
                draws=draws,
                seed=seed,
                save=saved,
                images=selection,
            ),
            on_progress,
        )
    settings = {
        "pool": stored_name(store, pool),
        "pool_sha256": pool.sha256,
        "layers": list(chosen_layers),
        "texts_per_head": texts_per_head,
        "rank": rank,
        "draws": draws,
        "seed": seed,
        "convention": "uniform",
        "images": moments.count,
        # This store's first; the others are sorted, since the order in which they are named does not matter.
        "moments_sha256": [store.moments().sha256, *sorted(other.moments().sha256 for other in also)],
        "also": [str(other.path.resolve()) for other in also],
        **({} if selection is None else {"selection": selection.words, "selection_sha256": selection.sha256}),
    }
    if saved and not overwrite and results.sound(store, "textspan", run):
        _refuse_otherwise_made(store, run, settings)
        if not results.sound(store, "texts", str(settings["pool"])):
            keep_vectors(store, embed_pool(store, pool, on_progress, weights=weights))
        on_progress(Progress(NOTE, 1, 1, f"textspan/{run} was already made with the same settings; it is unchanged"))
        return replace(read_spans(store, run), twin=beside)
    embedded = embed_pool(store, pool, on_progress, weights=weights)
    result = describe(
        *(store, embedded, run, texts_per_head, chosen_layers, rank, moments, draws, seed, also), selection=selection
    )
    return save_result(
        store,
        "textspan",
        run,
        replace(result, twin=beside),
        arrays_of(result),
        settings,
        saved=saved,
        overwrite=overwrite,
        on_progress=on_progress,
        before=lambda: keep_vectors(store, embedded),
    )


def _described_twin(describe_twin: Callable[[], HeadSpans], on_progress: Listener) -> HeadSpans:
    """The text spans of a twin, which may be a store that can only be read."""
    try:
        return describe_twin()
    except NotSavedError as error:
        if not error.read_only:
            raise
        on_progress(Progress(NOTE, 1, 1, f"the twin's result was not saved: {error}"))
        found: HeadSpans = error.result
        return found


# The settings that decide a run's result, and their names in a message.
_DECIDING = {
    "pool_sha256": "texts",
    "layers": "layers",
    "texts_per_head": "texts per head",
    "rank": "rank",
    "draws": "draws",
    "seed": "seed",
    "convention": "convention",
    "images": "number of images",
    "moments_sha256": "images",
    "selection_sha256": "selection of images",
}


def _refuse_otherwise_made(store: Store, run: str, settings: Mapping[str, Any]) -> None:
    """Raise StoreError if the existing run was made with other settings or from other images."""
    kept = results.load_settings(store, "textspan", run)
    deciding = {**_DECIDING}
    if "moments_sha256" not in kept:
        # Runs of earlier versions record no checksum of the moments.
        deciding["also"] = "further stores"
    # A run over all images records no selection.
    kept.setdefault("selection_sha256", None)
    settings = {"selection_sha256": None, **settings}
    refuse_differences(store, "textspan", run, kept, {name: settings[name] for name in deciding}, deciding)


def _selection(store: Store, images: Images | None, also: Sequence[Store]) -> Selection | None:
    """The selection to describe; None for all images. Raises SettingsError if there are further stores."""
    if images is not None and also:
        raise SettingsError(f"{also[0].path}: images are selected in one store, so leave out further stores, or images")
    return None if images is None else selection_of(store, images)


def _added_moments(store: Store, also: Sequence[Store]) -> MergedMoments:
    """The moments of all stores together. Raises StoreError if their models or layers differ."""
    moments, paths = store.moments(), {store.path.resolve()}
    for other in also:
        if other.path.resolve() in paths:
            raise SettingsError(f"{other.path}: is named twice, so its images would count twice; name each store once")
        paths.add(other.path.resolve())
        for what, own, wanted in differences(other.attributes, store.attributes, (*MODEL_KEYS, "layers")):
            raise StoreError(
                f"{other.path}: was made with {what} {own}, but {store.path} with {wanted}; add stores of the same "
                "model, preprocessing and layers"
            )
        moments += other.moments()
    return moments
