"""The models of stores in the process of the tests, for tests of parts that ask a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from headspan.events import ignore
from headspan.explore.heads.spectrum import HeadSpectra
from headspan.explore.query.query_image import QueryImage, query_image
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.web.answers.stores import ModelState
from headspan.web.state.known_texts import KnownTexts, Stored
from headspan.web.state.model_worker import Worker
from headspan.web.state.worker_messages import WorkerSettings


class InProcess:
    """A `Model` without a process of its own."""

    def __init__(self, weights: str | Path | None = None, shards: Sequence[str] = ()) -> None:
        self._weights, self._shards = None if weights is None else str(weights), tuple(shards)
        self._workers: dict[Path, Worker] = {}
        self._known = KnownTexts()

    def state(self, store: Store) -> ModelState:
        """Always ready: a model is loaded by the first question that needs it."""
        return ModelState(state="ready")

    def warm(self, store: Store) -> None:
        """Nothing, since a model is loaded by the first question that needs it."""

    def known_texts(self, store: Store) -> Stored:
        """As `Model.known_texts`."""
        return self._known.stored(store)

    def text_vectors(
        self, store: Store, texts: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "text joint"], dict[str, str]]:
        """As `Model.text_vectors`."""
        return self._worker(store).text_vectors(texts)

    def query_image(self, store: Store, image: int | bytes, with_patches: bool = False) -> QueryImage:
        """As `Model.query_image`."""
        if isinstance(image, bytes):
            return self._worker(store).uploaded_image(image)
        return query_image(store, image, with_patches=with_patches, weights=self._weights, shards=self._shards)

    def spectrum(self, store: Store, head: Head, pool: str | None = None) -> HeadSpectra:
        """As `Model.spectrum`."""
        return self._worker(store).spectrum(head, pool)

    def close(self) -> None:
        """Nothing, since there is no process to end."""

    def _worker(self, store: Store) -> Worker:
        if store.path not in self._workers:
            self._workers[store.path] = Worker(WorkerSettings(store.path, self._weights, self._shards), ignore)
        return self._workers[store.path]
