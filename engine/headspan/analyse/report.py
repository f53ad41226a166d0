"""One HTML file that shows what a store's analyses found, head by head; no network, no torch.

This file gathers: numbers, texts, and the images that speak most for the best heads. What they look like
is the page's matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from headspan.analyse import results
from headspan.analyse.ccs import ConceptConsistency
from headspan.analyse.labels import LABELLED_TEXTS, read_labels
from headspan.analyse.report_images import data_uri, grid_shape, overlay, read_images
from headspan.analyse.report_page import Content, DescribedHead, Example, HeadExamples, render
from headspan.analyse.spans import HeadSpans, read_spans
from headspan.emit.shares import head_coordinates
from headspan.errors import StoreError
from headspan.records import Listener, Progress, ignore
from headspan.store.files import write_atomically
from headspan.store.reader import Store
from headspan.store.schema import dimensions, image_bytes, row_arrays

# How many heads are shown with images, and with how many; a map beside each image takes the place of two.
_HEADS_WITH_IMAGES = 6
_IMAGES, _IMAGES_WITH_MAPS = 6, 4


def write_report(
    store: Store, path: str | Path, run: str | None = None, heading: str | None = None, listen: Listener = ignore
) -> Path:
    """Write the report of a CCS run, or of the only one there is, to `path`; returns the path.

    `heading` is shown as the first line. Images are read from the shards where those are still in their
    place. Raises StoreError where the store has no such run, its analyses do not fit each other, or
    `path` cannot be written.
    """
    path = Path(path)
    run = results.only_run(store, "ccs", run, "headspan ccs")
    arrays, _ = results.load(store, "ccs", run, "headspan ccs")
    labels, spans = read_labels(store, run), read_spans(store, run)
    if labels.layers != spans.layers or not np.array_equal(arrays["scores"], labels.consistent.sum(axis=2)):
        raise StoreError(
            f"{store.path}: its textspan, labels and ccs runs {run!r} were not made from each other; "
            "run headspan label and headspan ccs again"
        )
    found = ConceptConsistency(labels, arrays["scores"])
    heads = list(_describe(spans, found))
    examples, missing = _examples(store, spans, heads, listen)
    content = Content(
        notices=_notices(store, heading),
        model=str(store.attributes["model"]),
        weights=str(store.attributes["pretrained"] or ""),
        facts=_facts(store, spans, found),
        images=store.moments().count,
        layers=spans.layers,
        heads=heads,
        texts_per_head=spans.indices.shape[2],
        at_k=found.at_k,
        groups=found.groups,
        ccr=found.ccr,
        bad=store.bad_images(),
        examples=examples,
        missing=missing,
        has_maps="patches" in store.attributes["emit"],
    )
    try:
        write_atomically(path, [render(content).encode()])
    except OSError as error:
        raise StoreError(f"{path}: the report cannot be written ({error.strerror}); give another path") from error
    return path


def _notices(store: Store, heading: str | None) -> list[str]:
    pretrained = str(store.attributes["pretrained"])
    random = f"The weights are random ({pretrained}): labels and spans mean nothing."
    return [*([heading] if heading else []), *([random] if pretrained.startswith("random:") else [])]


def _describe(spans: HeadSpans, found: ConceptConsistency) -> Iterator[DescribedHead]:
    for layer, head in spans.heads():
        place = spans.layers.index(layer), head
        votes = found.labels.consistent[place].tolist()
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
    stored_bytes = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    row_bytes = image_bytes(row_arrays(dimensions(known), tuple(known["emit"])))
    concepts = len(set(spans.pool.concepts or ()))
    return [
        ("Model", known["model"]),
        ("Weights", f"{known['pretrained'] or 'the model’s own'} (SHA-256 {known['weights_sha256'][:12]})"),
        ("Images", f"{good:,} good, {bad:,} set aside" + (f", {unfinished:,} not yet done" if unfinished else "")),
        ("Layers kept", f"{span(store.layers)} of 0–{store.all_layers - 1}; described: {span(spans.layers)}"),
        ("Heads", f"{store.heads_per_layer} a layer, of {store.head_dim} dimensions"),
        ("Emission", ", ".join(known["emit"])),
        ("Precision", f"{known['precision']}, {known['backend']}"),
        ("Store", f"{_size(stored_bytes)} on disk, {row_bytes:,} bytes an image"),
        ("Text pool", f"{spans.pool.name}, {len(spans.pool.texts):,} texts" + f", {concepts} concepts" * bool(concepts)),
        ("Texts per head", f"{spans.indices.shape[2]}"),
        ("Labels from", found.labels.source),
        ("Run", spans.run),
        ("headspan", known["version"]),
    ]


def span(layers: Sequence[int]) -> str:
    """Ascending numbers in short: `0, 3, 8–11`."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][-1] == layer - 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in spans)


def _size(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


@dataclass(frozen=True, slots=True)
class _Best:
    """A head's best images for its first text: their places in the store, and dot products."""

    head: DescribedHead
    vector: Float32[np.ndarray, " joint"]
    images: list[int]
    scores: list[float]


def _examples(
    store: Store, spans: HeadSpans, heads: Sequence[DescribedHead], listen: Listener
) -> tuple[list[HeadExamples], dict[int, str]]:
    """The best heads with their best images, and the reasons why images are missing, by row."""
    has_maps = "patches" in store.attributes["emit"]
    vectors = results.load(store, "texts", spans.pool.name, "headspan textspan")[0]["vectors"]
    ranked = sorted(
        (head for head in heads if head.texts),
        key=lambda head: (-head.score, -head.explained_first, head.layer, head.head),
    )
    chosen = [
        _best_images(store, head, vectors[_first_text(spans, head)], _IMAGES_WITH_MAPS if has_maps else _IMAGES)
        for head in ranked[:_HEADS_WITH_IMAGES]
    ]
    wanted = sorted({image for best in chosen for image in best.images})
    samples: dict[int, dict[str, Any]] = dict(zip(wanted, store.samples().take(wanted).to_pylist(), strict=True))
    images, missing = read_images(store.path, store.attributes["preprocess"], list(samples.values()))
    shown = []
    for done, best in enumerate(chosen, start=1):
        maps = [_map(store, best, image) for image in best.images] if has_maps else []
        strongest = max((float(np.abs(one).max()) for one in maps), default=0.0)
        examples = []
        for place, (image, score) in enumerate(zip(best.images, best.scores, strict=True)):
            sample = samples[image]
            example = Example(key=sample["key"], caption=sample["caption"], score=score)
            if thumbnail := images.get(sample["row"]):
                example = replace(example, picture=data_uri(thumbnail))
                if has_maps:
                    example = replace(example, map=data_uri(overlay(thumbnail, maps[place], strongest)))
            examples.append(example)
        shown.append(HeadExamples(best.head, examples, strongest))
        listen(Progress("report", done, len(chosen)))
    return shown, missing


def _first_text(spans: HeadSpans, head: DescribedHead) -> int:
    return int(spans.indices[spans.layers.index(head.layer), head.head, 0])


def _best_images(store: Store, head: DescribedHead, vector: Float32[np.ndarray, " joint"], count: int) -> _Best:
    """The images whose contributions, over `‖embedding‖`, have the largest dot products with the text."""
    # The text is carried to the head, not every image to the joint space.
    coordinates = head_coordinates(store.head_coordinates(head.layer, head.head), store.norm, normalised=True)
    scores = coordinates @ (store.head_directions(head.layer, head.head) @ vector)
    # NaN, of images that failed, is sorted last.
    best = [image for image in np.argsort(-scores, kind="stable")[:count].tolist() if np.isfinite(scores[image])]
    return _Best(head, vector, best, [float(scores[image]) for image in best])


def _map(store: Store, best: _Best, image: int) -> Float32[np.ndarray, "rows columns"]:
    """What each patch adds to the dot product, without the class token."""
    contributions = store.patches(image, best.head.layer)[1:, best.head.head] @ best.vector
    return contributions.reshape(grid_shape(len(contributions), *store.attributes["preprocess"]["size"]))
