"""What a request asks about, as objects: a store, an image, heads, a text; and images as hits of an answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Path, Request, Response
from jaxtyping import Float, Float32, Int
from starlette.concurrency import run_in_threadpool

from headspan.concepts.labelled_heads import labelled_heads
from headspan.concepts.labels import Labels
from headspan.errors import SettingsError
from headspan.explore.query.query_image import QueryImage, query_image
from headspan.head_names import head_name, parse_head, parse_heads
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.store.results import runs
from headspan.web.answers.common import Answer, HeadName, Hit
from headspan.web.head_results import HeadResults, default_run, read_head_results
from headspan.web.refusals import Missing
from headspan.web.samples.classes import Classes, read_classes
from headspan.web.samples.metadata import class_name, metadata_of
from headspan.web.state.explorer import Explorer
from headspan.web.state.kept import SMALL_BYTES
from headspan.web.state.uploads import PREFIX

# What neighbours are searched through: the whole embedding, or everything that the store holds of the heads.
EMBEDDING, ALL_HEADS = "embedding", "all"
T = TypeVar("T")
# Images that tell whether a store knows the names of classes.
_FIRST = 64


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
            found = int(self.store.images_of_rows(np.array([int(text)]))[0])
            if found >= 0:
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
            return stored_heads(self.store)
        if through.startswith("label:"):
            return self.labelled(through.removeprefix("label:"))
        found = parse_heads(through, "through")
        for head in found:
            self._refuse_unknown(head)
        return found

    def head(self, name: str) -> Head:
        """The head of a name such as `L22.H13`. Raises Missing if it is not stored."""
        found = parse_head(name)
        if found is None:
            raise Missing(f"{self.name}: {name[:40]!r} is no head; write L{self.store.layers[-1]}.H0, for example")
        self._refuse_unknown(found)
        return found

    def head_or_embedding(self, of: str) -> Head | None:
        """The head of a name; None for `embedding`. Raises Missing if it is not stored."""
        return None if of == EMBEDDING else self.head(of)

    def results(self, run: str | None = None) -> HeadResults:
        """The texts, labels and votes of a run, by default of the shown one. Raises Missing for an unknown run."""
        described, shown = self.keep("runs", lambda: (runs(self.store, "textspan"), default_run(self.store)))
        if run is not None and run not in described:
            raise Missing(f"{self.name}: has no run {run[:60]!r}; the runs are: {', '.join(described) or 'none'}")
        name = shown if run is None else run
        return self.keep(("results", name), lambda: read_head_results(self.store, name))

    def labels(self) -> Labels | None:
        """The labels of the run that answers show by default; None if there are none, or none that can be read."""
        return self.results().labels

    def labelled(self, label: str) -> list[Head]:
        """The heads that have a label. Raises Missing if no head has it."""
        labels = self.labels()
        if labels is None:
            raise Missing(
                f"{self.name}: label {label[:60]!r}: the store has no labels; run headspan textspan and headspan label"
            )
        try:
            return labelled_heads(labels, label, self.name)
        except SettingsError as error:
            raise Missing(str(error)) from error

    def classes(self) -> Classes:
        """The classes of the images."""
        return self.keep("classes", lambda: read_classes(self.store, self._has_metadata), lambda found: found.bytes)

    @property
    def class_names(self) -> dict[int, str]:
        """The names of classes by their numbers, which only metadata have; without them, no label is read."""
        return self.classes().names if self._has_metadata else {}

    @property
    def _has_metadata(self) -> bool:
        return "metadata" in self.explorer.stores.filled_columns(self.name)

    def keep(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int] = lambda thing: SMALL_BYTES) -> T:
        """What `make` computes of the store as it is now, or what it has computed before; `size` is its bytes."""
        return self.explorer.kept.get(self.name, self.store, key, make, size)

    def kept(self, key: Hashable) -> Any:
        """What is kept for `key`; None if nothing is."""
        return self.explorer.kept.known(self.name, self.store, key)

    def answer(self, key: Hashable, make: Callable[[], Answer]) -> Response:
        """The answer that `make` gives, or that it gave before to the same request; kept as it is sent."""
        content = self.keep(("answer", key), lambda: make().model_dump_json().encode(), len)
        return Response(content, media_type="application/json")

    def hits(self, images: Int[np.ndarray, " hit"], scores: Float[np.ndarray, " hit"] | None = None) -> list[Hit]:
        """Images by their indices, in this order, as hits."""
        samples = self.store.few_samples(images, ["row", "key", "caption", "label"])
        names = self._class_names(images, [sample["label"] for sample in samples])
        return [
            Hit(**sample, class_name=names[place], score=None if scores is None else float(scores[place]))
            for place, sample in enumerate(samples)
        ]

    def _class_names(self, images: Int[np.ndarray, " hit"], labels: list[int | None]) -> list[str | None]:
        """The names of some images' classes: by their numbers, or where classes have no numbers, from the metadata."""
        names = self.class_names
        if names or not len(images) or not self._has_class_names():
            return [None if label is None else names.get(label) for label in labels]
        return [class_name(metadata_of(each["metadata"])) for each in self.store.few_samples(images, ["metadata"])]

    def _has_class_names(self) -> bool:
        """Whether the metadata of one of the first images name its class; metadata are long, so others are not read."""

        def look() -> bool:
            if not self._has_metadata:
                return False
            first = self.store.few_samples(range(min(_FIRST, self.store.images)), ["metadata"])
            return any(class_name(metadata_of(each["metadata"])) is not None for each in first)

        return self.keep("has class names", look)

    def _refuse_unknown(self, head: Head) -> None:
        if head[0] not in self.store.layers or not 0 <= head[1] < self.store.heads_per_layer:
            raise Missing(
                f"{self.name}: {head_name(*head)} is not stored; stored are layers "
                f"{', '.join(map(str, self.store.layers))} with heads 0 to {self.store.heads_per_layer - 1}"
            )


def asked_store(request: Request, store: str) -> AskedStore:
    """The store of that name. Raises Missing if the explorer does not show it, or no longer."""
    found = explorer_of(request)
    return AskedStore(found, store, found.stores.get(store))


async def store_of_address(request: Request, store: Annotated[str, Path(max_length=200)]) -> AskedStore:
    """The store that the address names, as `asked_store` finds it."""
    if explorer_of(request).stores.looked_at(store):
        return asked_store(request, store)
    # Its files are looked at once a second, and it may be opened again: not in the thread that serves all requests.
    return await run_in_threadpool(asked_store, request, store)


def named(heads: Sequence[Head]) -> list[HeadName]:
    """Heads as an answer names them."""
    return [HeadName(layer=layer, head=head, name=head_name(layer, head)) for layer, head in heads]


# The parameter of a route that answers about one store.
Asked = Annotated[AskedStore, Depends(store_of_address)]
