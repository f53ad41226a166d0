"""Write the report: collect the results of a store, head by head, and save them as one HTML file.

Needs neither a network nor torch. `page` decides how the report looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from headspan.concepts.ccs import read_scores
from headspan.concepts.consistency import ConceptConsistency
from headspan.concepts.labels import LABELLED_TEXTS
from headspan.config import as_ranges
from headspan.errors import StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.io.files import write_atomically
from headspan.report.examples import find_examples
from headspan.report.page import KIND, Content, DescribedHead, render
from headspan.spans.result import HeadSpans, read_spans
from headspan.store.lineage import refuse_older
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
    """Write the results of a CCS run as one HTML file, and return its path. An earlier report at `path` is replaced.

    `run` is the run's name; None means the only run there is. `shards` says where all the shards are now, if they have
    moved; images that cannot be read are shown by name. Raises StoreError if the store has no such run, if it is of
    an older run, if `path` is another file, or if it cannot be written.
    """
    path = Path(path)
    _refuse_other_files(path)
    found = read_scores(store, run)
    spans = read_spans(store, found.labels.run)
    refuse_older(store, "ccs", found.labels.run)
    heads = list(_describe(spans, found))
    examples, missing = find_examples(store, spans, heads, on_progress, shards)
    if missing:
        why = next(iter(missing.values()))
        todo = "" if shards else "; --shards (in Python shards=) says where the tars are now"
        images = counted(len(missing), "image")
        on_progress(Progress(NOTE, 0, None, f"{images} of the report could not be read (first: {why}){todo}"))
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
    # The attributes of a store may hold halves of surrogate pairs, which UTF-8 cannot encode.
    write_atomically(path, [render(content).encode(errors="backslashreplace")])
    return path


def _refuse_other_files(path: Path) -> None:
    """Raise StoreError if `path` is something other than a report."""
    try:
        if path.is_file():
            page = path.read_bytes()
            if page.startswith(b"<!doctype html>") and KIND.encode() in page:
                return
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); choose another --out") from error
    if path.exists():
        raise StoreError(f"{path}: exists, and is not a report that headspan wrote; choose another --out")


def random_weights_notice(store: Store) -> str | None:
    """The warning shown above the results of a store whose model has random weights; else None."""
    pretrained = str(store.attributes["pretrained"])
    if not pretrained.startswith("random:"):
        return None
    return (
        f"The model has random weights ({pretrained}). The report shows that every step works; "
        "its labels and texts mean nothing."
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
            # A head may have fewer texts than there are votes.
            texts=tuple(zip(spans.texts(layer, head, LABELLED_TEXTS), votes, strict=False)),
            explained_first=float(spans.explained[place][:LABELLED_TEXTS][-1]),
            explained_all=float(spans.explained[place][-1]),
        )


def _facts(store: Store, spans: HeadSpans, found: ConceptConsistency) -> list[tuple[str, str]]:
    """Names and values for the table about the run."""
    known, good, bad = store.attributes, store.moments().count, len(store.bad_images())
    unfinished = store.planned_images - sum(record.rows for record in store.contents.records)
    row_bytes = image_bytes(row_arrays(dimensions(known), tuple(known["emit"])))
    described_over = f", over {counted(spans.images, 'image')} of {spans.stores} stores" if spans.stores > 1 else ""
    described = "" if spans.layers == store.layers else f"; described: {as_ranges(spans.layers)}"
    concepts = len(set(spans.pool.concepts or ()))
    return [
        ("Model", known["model"]),
        ("Weights", f"{known['pretrained'] or 'the model’s own'} (SHA-256 {str(known['weights_sha256'])[:12]})"),
        ("Images", f"{good:,} good, {bad:,} bad" + (f", {unfinished:,} not yet computed" if unfinished else "")),
        ("Layers", f"{as_ranges(store.layers)} of {store.all_layers}" + described),
        ("Heads", f"{store.heads_per_layer} per layer, {counted(store.head_dim, 'dimension')} each"),
        ("Emitted", ", ".join(known["emit"])),
        ("Precision", f"{known['precision']}, {known['backend']}"),
        ("Store", f"{_size(store.stored_bytes)} on disk; {row_bytes:,} bytes per image, the rest once per store"),
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
