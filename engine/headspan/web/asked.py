"""What a request asks about, as objects: a store, an image, heads, a text; and images as hits of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import Depends, Path, Request
from jaxtyping import Float, Float32, Int

from headspan.concepts.labelled_heads import heads_of
from headspan.errors import SettingsError
from headspan.explore.query.query_image import QueryImage, query_image
from headspan.head_names import head_name, parse_heads
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.web.answers.common import HeadName, Hit
from headspan.web.refusals import Missing
from headspan.web.state.explorer import Explorer
from headspan.web.state.uploads import PREFIX

# What neighbours are searched through: the whole embedding, or everything that the store holds of the heads.
EMBEDDING, ALL_HEADS = "embedding", "all"


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
            try:
                return heads_of(self.store, through.removeprefix("label:"))
            except SettingsError as error:
                raise Missing(str(error)) from error
        found = parse_heads(through, "through")
        for layer, head in found:
            if layer not in self.store.layers or not 0 <= head < self.store.heads_per_layer:
                raise Missing(
                    f"{self.name}: {head_name(layer, head)} is not stored; stored are layers "
                    f"{', '.join(map(str, self.store.layers))} with heads 0 to {self.store.heads_per_layer - 1}"
                )
        return found

    def hits(self, images: Int[np.ndarray, " hit"], scores: Float[np.ndarray, " hit"] | None = None) -> list[Hit]:
        """Images by their indices, in this order, as hits."""
        table = self.store.samples([int(image) for image in images], ["row", "key", "caption", "label"])
        rows = table.to_pylist()
        return [
            Hit(
                row=row["row"],
                key=row["key"],
                caption=row["caption"],
                label=row["label"],
                class_name=None,
                score=None if scores is None else float(scores[place]),
            )
            for place, row in enumerate(rows)
        ]


def asked_store(request: Request, store: Annotated[str, Path(max_length=200)]) -> AskedStore:
    """The store that the address names. Raises Missing if the explorer does not show it, or no longer."""
    found = explorer_of(request)
    return AskedStore(found, store, found.stores.get(store))


def named(heads: Sequence[Head]) -> list[HeadName]:
    """Heads as an answer names them."""
    return [HeadName(layer=layer, head=head, name=head_name(layer, head)) for layer, head in heads]


# The parameter of a route that answers about one store.
Asked = Annotated[AskedStore, Depends(asked_store)]
