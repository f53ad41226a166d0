"""What a request asks about, as objects: a store, an image, heads, a text; and images as hits of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import Depends, Path, Request
from jaxtyping import Float, Float32, Int

from headspan.concepts.labelled_heads import labelled_heads
from headspan.concepts.labels import Labels, read_labels
from headspan.errors import SettingsError, StoreError
from headspan.explore.query.query_image import QueryImage, query_image
from headspan.head_names import head_name, parse_heads
from headspan.report.shown_run import shown_run
from headspan.store import results
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.web.answers.common import HeadName, Hit
from headspan.web.samples import class_name, metadata_of
from headspan.web.state.explorer import Explorer
from headspan.web.state.uploads import PREFIX

# What neighbours are searched through: the whole embedding, or everything that the store holds of the heads.
EMBEDDING, ALL_HEADS = "embedding", "all"


class Missing(SettingsError):
    """The address names a store, head or image that is not here; the answer has the status 404."""


def explorer_of(request: Request) -> Explorer:
    """The state of the running explorer."""
    found: Explorer = request.app.state.explorer
    return found


@dataclass(frozen=True)
class AskedStore:
    """The store that an address names, as it is now, and what else the address names in it."""

    explorer: Explorer
    name: str
    store: Store

    def image(self, name: str, with_patches: bool = False) -> QueryImage:
        """The numbers of an image by its row, or by the id of a dropped-in one. Raises Missing if it is not here."""
        if name.startswith(PREFIX):
            return self.explorer.model.query_image(self.store, self.explorer.uploads.get(name), with_patches)
        index = self.index_of(name)
        if with_patches and "patches" not in self.store.contents.specs:
            return self.explorer.model.query_image(self.store, index, with_patches)
        return query_image(self.store, index, with_patches=with_patches)

    def index_of(self, row: str | int) -> int:
        """The index of an image by its row. Raises Missing if the store does not show it."""
        text = str(row)
        if text.isdecimal() and text.isascii() and len(text) < 19:
            found = int(np.searchsorted(self.store.rows, int(text)))
            if found < self.store.images and self.store.rows[found] == int(text):
                return found
        raise Missing(
            f"{self.name}: shows no image with row {text[:40]!r}; rows go from 0 to {self.store.planned_images - 1}, "
            "without images that could not be used or are not computed yet"
        )

    def vectors(self, texts: Sequence[str]) -> tuple[Float32[np.ndarray, "text joint"], dict[str, str]]:
        """Unit vectors of texts, and what was read of each text that was too long for the model."""
        return self.explorer.model.text_vectors(self.store, texts)

    def heads(self, through: str) -> list[Head] | None:
        """The heads of `L3.H1,L3.H2`, `label:NAME` or `all`; None for `embedding`. Raises Missing for unknown ones."""
        if through == EMBEDDING:
            return None
        if through == ALL_HEADS:
            return [(layer, head) for layer in self.store.layers for head in range(self.store.heads_per_layer)]
        if through.startswith("label:"):
            return self.labelled(through.removeprefix("label:"))
        found = parse_heads(through, "through")
        for layer, head in found:
            if layer not in self.store.layers or not 0 <= head < self.store.heads_per_layer:
                raise Missing(
                    f"{self.name}: {head_name(layer, head)} is not stored; stored are layers "
                    f"{', '.join(map(str, self.store.layers))} with heads 0 to {self.store.heads_per_layer - 1}"
                )
        return found

    def labels(self) -> Labels | None:
        """The labels of the run that answers show by default; None if there are none, or none that can be read."""
        version = self.explorer.stores.version(self.name)
        return self.explorer.kept.get(self.name, version, "labels", lambda: shown_labels(self.store))

    def label(self, layer: int, head: int) -> str | None:
        """The label of a head, if it has one."""
        labels = self.labels()
        return labels.name(layer, head) if labels is not None and layer in labels.layers else None

    def labelled(self, label: str) -> list[Head]:
        """The heads that have a label. Raises Missing if no head has it."""
        labels = self.labels()
        if labels is None:
            raise Missing(
                f"{self.name}: label {label!r}: the store holds no labels; run headspan textspan and headspan label"
            )
        try:
            return labelled_heads(labels, label, self.name)
        except SettingsError as error:
            raise Missing(str(error)) from error

    def hits(self, images: Int[np.ndarray, " hit"], scores: Float[np.ndarray, " hit"] | None = None) -> list[Hit]:
        """Images by their indices, in this order, as hits."""
        chosen = [int(image) for image in images]
        table = self.store.samples(chosen, ["row", "key", "caption", "label"])
        # Names of classes are in the metadata, which are long.
        classes = [None] * len(chosen)
        if table["label"].null_count < len(table):
            metadata = self.store.samples(chosen, ["metadata"])["metadata"].to_pylist()
            classes = [class_name(metadata_of(each)) for each in metadata]
        return [
            Hit(
                row=row["row"],
                key=row["key"],
                caption=row["caption"],
                label=row["label"],
                class_name=classes[place],
                score=None if scores is None else float(scores[place]),
            )
            for place, row in enumerate(table.to_pylist())
        ]


def asked_store(request: Request, store: Annotated[str, Path(max_length=200)]) -> AskedStore:
    """The store that the address names. Raises Missing if the explorer does not show it."""
    found = explorer_of(request)
    if store not in found.stores.names:
        raise Missing(f"there is no store {store!r} here; the stores are: {', '.join(found.stores.names)}")
    return AskedStore(found, store, found.stores.get(store))


def shown_labels(store: Store) -> Labels | None:
    """The labels of the run that answers show by default: that of `shown_run`, or else the only one."""
    found = results.runs(store, "labels")
    try:
        run = shown_run(store)
    except StoreError:
        run = ""
    if run not in found and len(found) != 1:
        return None
    try:
        return read_labels(store, run if run in found else found[0])
    except StoreError:
        return None


def named(heads: Sequence[Head]) -> list[HeadName]:
    """Heads as an answer names them."""
    return [HeadName(layer=layer, head=head, name=head_name(layer, head)) for layer, head in heads]


# The parameter of a route that answers about one store.
Asked = Annotated[AskedStore, Depends(asked_store)]
