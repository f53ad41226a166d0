"""One HTML file that shows what a store's analyses found, head by head; no network, no torch.

This file gathers: numbers, texts, and the images that speak most for the best heads. What they look like
is the page's matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from headspan.concepts.ccs import ConceptConsistency, read_scores
from headspan.concepts.labels import LABELLED_TEXTS
from headspan.config import spans as spans_of
from headspan.errors import StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.io.local import write_atomically
from headspan.report.examples import find_examples
from headspan.report.page import KIND, Content, DescribedHead, render
from headspan.spans.result import HeadSpans, read_spans
from headspan.store.reader import Store
from headspan.store.schema import dimensions, image_bytes, row_arrays
from headspan.world.ground_truth import read_ground_truth


def write_report(
    store: Store,
    path: str | Path,
    run: str | None = None,
    on_progress: Listener = ignore,
    shards: Sequence[str] = (),
) -> Path:
    """Write the report of a CCS run, or of the only one there is, to `path`; returns the path.

    Images are read from the shards where those are still in their place, or from `shards`, which name all of them where
    they lie now. An earlier report is replaced. Raises StoreError where the store has no such run, or `path` is another
    file or cannot be written.
    """
    path = Path(path)
    _refuse_other_files(path)
    found = read_scores(store, run)
    spans = read_spans(store, found.labels.run)
    heads = list(_describe(spans, found))
    examples, missing = find_examples(store, spans, heads, on_progress, shards)
    if missing:
        why = next(iter(missing.values()))
        todo = "" if shards else "; --shards (in Python shards=) names the tars where they lie now"
        on_progress(
            Progress(NOTE, 0, None, f"{len(missing)} of the images to show could not be read (first: {why}){todo}")
        )
    content = Content(
        notices=[notice] if (notice := random_weights_notice(store)) else [],
        model=str(store.attributes["model"]),
        weights=str(store.attributes["pretrained"] or ""),
        facts=_facts(store, spans, found),
        images=spans.images,
        layers=spans.layers,
        heads=heads,
        texts_per_head=spans.indices.shape[2],
        at_k=found.at_k,
        groups=found.groups,
        ccr=found.ccr,
        truth=read_ground_truth(store, found.labels.run),
        bad=store.bad_images(),
        examples=examples,
        missing=missing,
        has_maps="patches" in store.attributes["emit"],
    )
    # A store's attributes may hold halves of surrogate pairs, which are no UTF-8.
    write_atomically(path, [render(content).encode(errors="backslashreplace")])
    return path


def _refuse_other_files(path: Path) -> None:
    """StoreError where something other than a report lies at `path`."""
    try:
        if path.is_file():
            page = path.read_bytes()
            if page.startswith(b"<!doctype html>") and KIND.encode() in page:
                return
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); choose another --out") from error
    if path.exists():
        raise StoreError(f"{path}: is there already, and no report that headspan wrote; choose another --out")


def random_weights_notice(store: Store) -> str | None:
    """What the first line of anything about `store` must say where its model is not trained."""
    pretrained = str(store.attributes["pretrained"])
    if not pretrained.startswith("random:"):
        return None
    return (
        f"The model has random weights ({pretrained}): this shows that the chain runs, and its labels and texts mean "
        "nothing."
    )


def _describe(spans: HeadSpans, found: ConceptConsistency) -> Iterator[DescribedHead]:
    for layer, head in spans.heads():
        place = spans.layers.index(layer), head
        votes = found.consistent[place].tolist()
        yield DescribedHead(
            layer=layer,
            head=head,
            label=found.labels.name(layer, head),
            score=int(found.scores[place]),
            group=found.group(layer, head),
            # A head may have fewer texts than votes are kept for.
            texts=tuple(zip(spans.texts(layer, head, LABELLED_TEXTS), votes, strict=False)),
            explained_first=float(spans.explained[place][:LABELLED_TEXTS][-1]),
            explained_all=float(spans.explained[place][-1]),
        )


def _facts(store: Store, spans: HeadSpans, found: ConceptConsistency) -> list[tuple[str, str]]:
    """What the run was, as lines of a table."""
    known, good, bad = store.attributes, store.moments().count, len(store.bad_images())
    unfinished = store.planned_images - sum(record.rows for record in store.records)
    row_bytes = image_bytes(row_arrays(dimensions(known), tuple(known["emit"])))
    described_over = f", over {counted(spans.images, 'image')} of {spans.stores} stores" if spans.stores > 1 else ""
    described = "" if spans.layers == store.layers else f"; described: {spans_of(spans.layers)}"
    concepts = len(set(spans.pool.concepts or ()))
    return [
        ("Model", known["model"]),
        ("Weights", f"{known['pretrained'] or 'the model’s own'} (SHA-256 {str(known['weights_sha256'])[:12]})"),
        ("Images", f"{good:,} good, {bad:,} set aside" + (f", {unfinished:,} not yet done" if unfinished else "")),
        ("Layers kept", f"{spans_of(store.layers)} of {store.all_layers}" + described),
        ("Heads", f"{store.heads_per_layer} a layer, of {counted(store.head_dim, 'dimension')}"),
        ("Emission", ", ".join(known["emit"])),
        ("Precision", f"{known['precision']}, {known['backend']}"),
        ("Store", f"{_size(store.stored_bytes)} on disk; {row_bytes:,} bytes an image, the rest once"),
        (
            "Text pool",
            f"{spans.pool.name}, {counted(len(spans.pool.texts), 'text')}"
            + f", {counted(concepts, 'concept')}" * bool(concepts),
        ),
        ("Texts per head", f"{spans.indices.shape[2]}"),
        ("Labels from", found.labels.source),
        ("Votes from", found.votes.source),
        ("Run", spans.run + described_over),
        ("headspan", known["version"]),
    ]


def _size(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
