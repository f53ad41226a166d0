"""The columns of an atlas beside positions: pictures, neighbours, and what heads say about each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from headspan.concepts.labels import Labels, read_labels
from headspan.errors import counted
from headspan.events import NOTE, Listener, Progress
from headspan.explore.atlas.nearest_graph import nearest_graph
from headspan.explore.atlas.space import Space
from headspan.explore.atlas.strongest_heads import StrongestHeads
from headspan.head_names import head_name
from headspan.originals.find_shards import find_shards, missing_note
from headspan.originals.pictures import read_images
from headspan.spans.saved import read_spans
from headspan.spans.stability import FIRST_TEXTS
from headspan.store.reader import Store
from headspan.store.results import runs
from headspan.store.selection import Selection
from headspan.texts.vectors import text_vectors

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NEIGHBOURS = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
# Names of runs that a message lists.
_SHOWN = 3
Arrays = Generator[pa.Array, None, None]
Rows = Int64[np.ndarray, " row"]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Reads pictures of samples from the shards, and counts those that cannot be read, by the reason."""

    store: Store
    urls: Mapping[str, str]
    given: tuple[str, ...]
    failed: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, store: Store, shards: Sequence[str], on_progress: Listener) -> Pictures:
        """Pictures of `store`, whose shards are where they were, beside the store, or where `shards` says."""
        urls, missing = find_shards(store, shards)
        if missing:
            on_progress(Progress(NOTE, 1, 1, missing_note(missing, len(store.shards()))))
        return cls(store, urls, tuple(urls.values()) if shards else ())

    def read(self, samples: pa.Table) -> pa.Array:
        """A struct of bytes and path for each sample, as `datasets` writes images; null without a picture."""
        listed = samples.to_pylist()
        found, missing = read_images(self.store, listed, self.urls, self.given)
        self.failed.update(missing.values())
        images = [
            {"bytes": found[sample["row"]], "path": sample["member"]} if sample["row"] in found else None
            for sample in listed
        ]
        return pa.array(images, IMAGE)

    def tell_failed(self, on_progress: Listener) -> None:
        """Say how many images have no picture, and the most common reason."""
        if self.failed:
            why, _ = self.failed.most_common(1)[0]
            images = counted(self.failed.total(), "image")
            todo = "" if self.given else "; --shards (in Python shards=) says where the shards are now"
            on_progress(Progress(NOTE, 1, 1, f"{images} could not be read and have no picture (first: {why}){todo}"))


def neighbours(space: Space, rows: Rows, count: int, block: int, on_progress: Listener) -> Arrays:
    """The nearest images of each image, as places among `rows` and distances, in blocks of that many images."""
    graph = nearest_graph(lambda places: space.vectors(rows[places]), len(rows), space.dimensions, count, on_progress)
    for places, distances in graph:
        for first in range(0, len(places), block):
            some, far = places[first : first + block], distances[first : first + block]
            ends = pa.array(np.arange(0, some.size + 1, count), pa.int32())
            yield pa.StructArray.from_arrays(
                [
                    pa.ListArray.from_arrays(ends, pa.array(some.reshape(-1), pa.int64())),
                    pa.ListArray.from_arrays(ends, pa.array(far.reshape(-1), pa.float32())),
                ],
                fields=list(NEIGHBOURS),
            )


class TextOfHead:
    """Which of a head's first texts an image is furthest along, beside the mean of the images."""

    fields = (pa.field("text", pa.string()),)

    def __init__(self, space: Space, run: str) -> None:
        """Raises StoreError if the run is missing or damaged, and SettingsError if it does not describe the head."""
        assert space.head is not None
        spans = read_spans(space.store, run)
        self._space, self._texts = space, np.array(spans.texts(*space.head, FIRST_TEXTS), object)
        self._vectors = text_vectors(space.store, spans.pool)[spans.places(*space.head, FIRST_TEXTS)]

    def columns(self, rows: Rows) -> list[pa.Array]:
        """The text of each image; null if the head has none."""
        if not len(self._texts):
            return [pa.nulls(len(rows), pa.string())]
        return [pa.array(self._texts[self._space.along(rows, self._vectors).argmax(axis=1)], pa.string())]


class HeadOfImage:
    """Which head accounts for most of an image's distance from the mean embedding, its part, and its label."""

    def __init__(self, store: Store, selection: Selection | None, run: str | None) -> None:
        """Raises StoreError if the run is missing or damaged."""
        self._strongest = StrongestHeads(store, selection)
        self._names = np.array([head_name(layer, head) for layer, head in self._strongest.heads], object)
        labels: Labels | None = None if run is None else read_labels(store, run)
        self.fields: tuple[pa.Field, ...] = (pa.field("head", pa.string()), pa.field("head_share", pa.float32()))
        self._labels = None
        if labels is not None:
            self.fields += (pa.field("label", pa.string()),)
            named = (labels.name(*each) if each[0] in labels.layers else None for each in self._strongest.heads)
            self._labels = np.array(list(named), object)

    def columns(self, rows: Rows) -> list[pa.Array]:
        """The name of the head, its share and its label, of each image."""
        places, shares = self._strongest.of(rows)
        names = [] if self._labels is None else [pa.array(self._labels[places], pa.string())]
        return [pa.array(self._names[places], pa.string()), pa.array(shares, pa.float32()), *names]


def run_for(store: Store, kind: str, run: str | None, on_progress: Listener) -> str | None:
    """`run`, or the only run of that kind; None if there is none, or several, of which `on_progress` is told."""
    if run is not None:
        return run
    found = runs(store, kind)
    if len(found) > 1:
        first = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        what = "texts" if kind == "textspan" else "labels"
        on_progress(Progress(NOTE, 1, 1, f"no {what} are written: name one of the {kind} runs ({first}) with --run"))
    return found[0] if len(found) == 1 else None
