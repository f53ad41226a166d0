"""The models of stores in this very process, for tests of other parts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image

from headspan.explore.heads.spectra import spectra
from headspan.explore.heads.spectrum import HeadSpectra
from headspan.explore.query.query_image import QueryImage, query_image
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.texts.pool import Pool
from headspan.texts.vectors import text_vectors
from headspan.web.answers.stores import ModelState


class InProcess:
    """A `Model` without a process of its own."""

    def __init__(self, weights: str | Path | None = None, shards: Sequence[str] = ()) -> None:
        self._weights, self._shards = weights, shards

    def state(self, store: Store) -> ModelState:
        """Always ready: a model is loaded by the first question that needs it."""
        return ModelState(state="ready")

    def text_vectors(
        self, store: Store, texts: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "text joint"], dict[str, str]]:
        """As `Model.text_vectors`."""
        return text_vectors(store, list(texts), weights=self._weights), {}

    def query_image(self, store: Store, image: int | bytes, with_patches: bool = False) -> QueryImage:
        """As `Model.query_image`."""
        asked = image if isinstance(image, int) else Image.open(io.BytesIO(image))
        return query_image(store, asked, with_patches=with_patches, weights=self._weights, shards=self._shards)

    def spectra(self, store: Store, head: Head, pool: Pool) -> HeadSpectra:
        """As `Model.spectra`."""
        return spectra(store, [head], pool, weights=self._weights)
