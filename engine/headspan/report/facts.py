"""Facts about the run that the report shows: data set, model, weights, sizes, and the command that makes the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from headspan.concepts.consistency import ConceptConsistency
from headspan.concepts.labels import LABELLED_TEXTS
from headspan.config import as_ranges
from headspan.errors import counted
from headspan.escapes import shell_command
from headspan.redact import redact
from headspan.spans.result import HeadSpans
from headspan.store.reader import Store
from headspan.store.schema import dimensions, image_bytes, names_without, row_arrays

# Names of shards that the page shows.
_SHARDS_SHOWN = 4


def data_set(store: Store) -> str:
    """The names of the shards, and their number."""
    urls = [redact(shard.url) for shard in store.shards()]
    names = [url if url.startswith("pipe:") else PurePosixPath(url).name or url for url in urls]
    more = f" and {len(names) - _SHARDS_SHOWN:,} more shards" if len(names) > _SHARDS_SHOWN else ""
    return ", ".join(names[:_SHARDS_SHOWN]) + more


def report_command(store: Store, path: Path, run: str | None, shards: Sequence[str], heads: str | None) -> str:
    """The command that writes this report, in the folder of the store; secrets in URLs are left out."""
    # Names alone: a report is often shown on another machine, and the folders are not its readers' business.
    words = ["headspan", "report", store.path.name, "--out", path.name]
    words += ["--run", run] if run is not None else []
    words += ["--heads", heads] if heads else []
    return shell_command([*words, *(["--shards", *map(redact, shards)] if shards else [])])


def random_weights_notice(store: Store) -> str | None:
    """The warning shown above the results of a store whose model has random weights; else None."""
    pretrained = str(store.attributes["pretrained"])
    if not pretrained.startswith("random:"):
        return None
    return (
        f"The model has random weights ({pretrained}). The report shows that every step works; "
        "its labels and texts mean nothing."
    )


def notices(store: Store, spans: HeadSpans | None) -> list[str]:
    """The remarks shown above everything else; `spans` are the texts of the heads, if there are any."""
    of_heads = () if spans is None else (selection_notice(spans), few_images_notice(spans))
    return [*filter(None, (random_weights_notice(store), *of_heads))]


def few_images_notice(spans: HeadSpans) -> str | None:
    """The warning shown above the results if the images are too few for the heads' texts to mean much; else None."""
    few = spans.too_few_images()
    return None if few is None else f"{few[0].upper()}{few[1:]}."


def selection_notice(spans: HeadSpans) -> str | None:
    """The remark shown above results that describe some images only; else None."""
    if spans.selection is None:
        return None
    return (
        f"Texts, shares, labels and magnitudes are over {spans.over}. The pictures and maps are of images of the whole "
        "store."
    )


def why_no_scores(spans: HeadSpans, older: str | None) -> str:
    """What to do to get labels and scores; `older` is the run that the present ones were made from, if it changed."""
    if older is not None:
        return (
            f"The scores are of an older {older}, which was replaced since, and are left out. To keep them, make new "
            "ones of another run: headspan textspan, headspan label and headspan ccs with --run NAME. To replace them, "
            f"run headspan label and headspan ccs with --run {spans.run} --overwrite."
        )
    if spans.pool.concepts is None:
        return (
            f"The texts of the pool {spans.pool.name} have no concepts, so the heads have no labels and no scores. A "
            "language model can label them: headspan label --llm."
        )
    if spans.indices.shape[2] < LABELLED_TEXTS:
        return f"Labels and scores need {LABELLED_TEXTS} texts per head: run headspan textspan again."
    return "The heads of this run have no labels and no scores: run headspan label and headspan ccs."


def store_facts(store: Store, described: Sequence[int] | None = None) -> list[tuple[str, str]]:
    """Names and values for a table about the store: model, images, layers, sizes; `described` are layers with texts."""
    known, records = store.attributes, store.contents.records
    good, bad = sum(record.images for record in records), sum(len(record.bad) for record in records)
    unfinished = store.planned_images - sum(record.rows for record in records)
    row_bytes = image_bytes(row_arrays(dimensions(known), tuple(known["emit"])))
    only = "" if described is None or tuple(described) == store.layers else f"; described: {as_ranges(described)}"
    return [
        ("Model", known["model"]),
        ("Weights", f"{known['pretrained'] or 'the model’s own'} (SHA-256 {str(known['weights_sha256'])[:12]})"),
        ("Images", f"{good:,} good, {bad:,} bad" + (f", {unfinished:,} not yet computed" if unfinished else "")),
        ("Layers", f"{as_ranges(store.layers)} of {store.all_layers}" + only),
        *((("Without heads", without),) if (without := names_without(known)) else ()),
        ("Heads", f"{store.heads_per_layer} per layer, {counted(store.head_dim, 'dimension')} each"),
        ("Emitted", ", ".join(known["emit"])),
        ("Precision", ", ".join(filter(None, (known.get("precision"), known.get("backend"))))),
        ("Store", f"{_size(store.stored_bytes)} on disk; {row_bytes:,} bytes per image, the rest once per store"),
    ]


def run_facts(store: Store, spans: HeadSpans, found: ConceptConsistency | None) -> list[tuple[str, str]]:
    """Names and values for the table about the run."""
    stores = f" of {spans.stores} stores" if spans.stores > 1 else ""
    described_over = f", over {spans.over}{stores}" if stores or spans.selection is not None else ""
    concepts = len(set(spans.pool.concepts or ()))
    return [
        *store_facts(store, spans.layers),
        (
            "Text pool",
            f"{spans.pool.name}, {counted(len(spans.pool.texts), 'text')}"
            + f", {counted(concepts, 'concept')}" * bool(concepts),
        ),
        ("Texts per head", f"{spans.indices.shape[2]}"),
        *(() if found is None else (("Labels from", found.labels.source), ("Votes from", found.votes.source))),
        ("Run", spans.run + described_over),
        ("headspan", store.attributes["version"]),
    ]


def _size(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
