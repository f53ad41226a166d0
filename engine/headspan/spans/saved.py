"""TEXTSPAN runs as a store holds them: their arrays, and reading them back."""

from __future__ import annotations

from dataclasses import replace

from headspan.errors import StoreError
from headspan.spans.nulls import SpanNull
from headspan.spans.result import HeadSpans
from headspan.store import results
from headspan.store.lineage import lineage_of
from headspan.store.reader import Store
from headspan.store.selection import Selection
from headspan.texts.stored import stored_pool

_DIMS = ("layer", "head", "text")


def arrays_of(spans: HeadSpans) -> dict[str, results.Named]:
    """The arrays of a run, as `read_spans` reads them."""
    found: dict[str, results.Named] = {"indices": (spans.indices, _DIMS), "explained": (spans.explained, _DIMS)}
    if spans.null is not None:
        found["null_explained"] = (spans.null.explained, ("draw", *_DIMS))
        found["ceiling"] = (spans.null.ceiling, _DIMS)
        if spans.null.picks is not None:
            found["null_picks"] = (spans.null.picks, ("draw", "layer", "head", "first"))
    for name in ("ranks", "effective_rank", "stability"):
        values = getattr(spans, name)
        if values is not None:
            found[name] = (values, _DIMS[:2])
    if spans.selection is not None:
        found["rows"] = (spans.selection.rows, ("selected",))
    return found


def read_spans(store: Store, run: str | None = None) -> HeadSpans:
    """Read the result of a TEXTSPAN run from a store; without `run`, of the only one.

    Raises StoreError if the run is missing or damaged, or if there are several and none is named.
    """
    run = results.only_run(store, "textspan", run)
    arrays, settings = results.load(store, "textspan", run)
    with results.as_written(store, "textspan", run):
        pool_name, checksum = str(settings["pool"]), str(settings["pool_sha256"])
        layers, images = tuple(map(int, settings["layers"])), int(settings["images"])
        # Early runs are over one store and do not record others.
        stores = 1 + len(settings.get("also", ()))
        indices, explained = arrays["indices"], arrays["explained"]
        null = None
        # Runs of earlier versions have none, nor have runs without draws.
        if "null_explained" in arrays:
            drawn = arrays["null_explained"], arrays["ceiling"], arrays.get("null_picks")
            null = SpanNull(int(settings["seed"]), *drawn)
        selection = Selection(arrays["rows"], str(settings["selection"])) if "selection" in settings else None
    pool = stored_pool(store, pool_name)
    if pool.sha256 != checksum:
        raise StoreError(
            f"{store.path}: the pool {pool.name} has changed since textspan run {run!r}; run headspan textspan again"
        )
    of_heads = (arrays.get(name) for name in ("ranks", "effective_rank", "stability"))
    lineage = lineage_of(store, "textspan", run)
    found = HeadSpans(run, pool, layers, indices, explained, images, stores, null, *of_heads, lineage=lineage)
    return replace(found, selection=selection)
