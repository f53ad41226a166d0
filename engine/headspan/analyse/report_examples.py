"""The report's examples: the best heads, the images that speak most for their first texts, and maps of these.

Best heads are those of the highest CCS and, of equal ones, of the largest variance explained by the first
texts. Maps need a store with `patches`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from headspan.analyse import results
from headspan.analyse.report_images import data_uri, grid_shape, overlay, read_images
from headspan.analyse.report_page import DescribedHead, Example, HeadExamples
from headspan.analyse.spans import HeadSpans
from headspan.emit.shares import head_coordinates
from headspan.records import Listener, Progress
from headspan.store.reader import Store

_HEADS = 6
# A map beside each image takes the place of another image.
_IMAGES, _IMAGES_WITH_MAPS = 6, 4
# Single patches can stand out by an order of magnitude; they must not wash out the rest.
_FULL_COLOUR = 0.99


@dataclass(frozen=True, slots=True)
class _Best:
    """A head's best images for its first text: their places in the store, and dot products."""

    head: DescribedHead
    vector: Float32[np.ndarray, " joint"]
    images: list[int]
    scores: list[float]


def find_examples(
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
        for head in ranked[:_HEADS]
    ]
    wanted = sorted({image for best in chosen for image in best.images})
    samples: dict[int, dict[str, Any]] = dict(zip(wanted, store.samples().take(wanted).to_pylist(), strict=True))
    images, missing = read_images(store.path, store.attributes["preprocess"], list(samples.values()))
    shown = []
    for done, best in enumerate(chosen, start=1):
        maps = [_map(store, best, image) for image in best.images] if has_maps else []
        strongest = float(np.quantile(np.abs(np.stack(maps)), _FULL_COLOUR)) if maps else 0.0
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
