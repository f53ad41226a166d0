"""The report's examples: the best heads, the images that respond most to them, and maps over them.

The best heads have the highest CCS; among equal scores, the first texts explain more variance. Maps need a store with
`patches`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from headspan.events import Listener, Progress
from headspan.explore.neighbours import Head, nearest_to_vector
from headspan.explore.segmentation import text_maps
from headspan.report.images import data_uri, overlay, read_images
from headspan.report.page import DescribedHead, Example, HeadExamples
from headspan.run.planned_sources import places
from headspan.spans.result import HeadSpans
from headspan.store import results
from headspan.store.reader import Store

_HEADS = 6
# A map beside each image takes the space of another image.
_IMAGES, _IMAGES_WITH_MAPS = 6, 4
# A quantile, since single patches can be ten times larger than all others, which would then look empty.
_FULL_COLOUR = 0.99


@dataclass(frozen=True, slots=True)
class _Best:
    """A head, the vector of its first text, and the images that respond most to it."""

    head: DescribedHead
    vector: Float32[np.ndarray, " joint"]
    images: list[int]
    scores: list[float]

    @property
    def place(self) -> Head:
        """Layer and head."""
        return self.head.layer, self.head.head


def find_examples(
    store: Store, spans: HeadSpans, heads: Sequence[DescribedHead], on_progress: Listener, shards: Sequence[str] = ()
) -> tuple[list[HeadExamples], dict[int, str]]:
    """The best heads with their images, and for each image that could not be read, by row, the reason.

    `shards` says where all the tars are now, if they have moved.
    """
    has_maps = "patches" in store.attributes["emit"]
    vectors = results.load(store, "texts", spans.pool.name)[0]["vectors"]
    ranked = sorted(
        (head for head in heads if head.texts),
        key=lambda head: (-head.score, -head.explained_first, head.layer, head.head),
    )
    chosen = [
        _best_images(store, head, vectors[_first_text(spans, head)], _IMAGES_WITH_MAPS if has_maps else _IMAGES)
        for head in ranked[:_HEADS]
    ]
    wanted = sorted({image for best in chosen for image in best.images})
    samples: dict[int, dict[str, Any]] = dict(zip(wanted, store.samples(wanted).to_pylist(), strict=True))
    urls = places(store.shards(), store.attributes, shards)
    given = urls.values() if shards else ()
    images, missing = read_images(store.path, store.attributes["preprocess"], list(samples.values()), urls, given)
    shown = []
    for done, best in enumerate(chosen, start=1):
        maps = [text_maps(store, image, best.vector[None], [best.place])[0] for image in best.images if has_maps]
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
        on_progress(Progress("report", done, len(chosen)))
    return shown, missing


def _first_text(spans: HeadSpans, head: DescribedHead) -> int:
    return int(spans.indices[spans.layers.index(head.layer), head.head, 0])


def _best_images(store: Store, head: DescribedHead, vector: Float32[np.ndarray, " joint"], count: int) -> _Best:
    found = nearest_to_vector(store, vector, [(head.layer, head.head)], count)
    return _Best(head, vector, found.images.tolist(), found.scores.tolist())
