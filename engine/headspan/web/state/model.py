"""What the explorer asks of a store's model: vectors of texts, numbers of images, patches, and spectra of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from headspan.errors import ModelError
from headspan.explore.heads.spectrum import HeadSpectra
from headspan.explore.query.query_image import QueryImage
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.web.answers.stores import ModelState
from headspan.web.state.known_texts import Stored


class ModelLoading(ModelError):
    """The model cannot answer yet, or is busy; the same request may be answered soon."""


class Model(Protocol):
    """The models of the open stores. Calls may come from several threads at once."""

    def state(self, store: Store) -> ModelState:
        """Whether the store's model can answer now."""

    def warm(self, store: Store) -> None:
        """Begin to load the store's model, unless that has begun; returns at once."""

    def known_texts(self, store: Store) -> Stored:
        """The texts that the store keeps, with their unit vectors. The model is not asked."""

    def text_vectors(
        self, store: Store, texts: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "text joint"], dict[str, str]]:
        """Unit vectors of texts, and for each text that was longer than the context, the part that was read.

        Vectors that are stored or cached are found without the model. Raises ModelError if it cannot be loaded, and
        ModelLoading if it is not loaded in time.
        """

    def query_image(self, store: Store, image: int | bytes, with_patches: bool = False) -> QueryImage:
        """The numbers of a stored image, by its index, or of an encoded one.

        Raises as `headspan.explore.query_image` does, and ModelLoading if the model is not loaded in time.
        """

    def spectrum(self, store: Store, head: Head, pool: str | None = None) -> HeadSpectra:
        """The singular directions of one head's value-output matrix, described by texts of a pool.

        By default that is the largest pool whose vectors the store keeps, or else the general one. Raises as
        `headspan.explore.spectra` does, and ModelLoading if the model is not loaded in time.
        """

    def close(self) -> None:
        """End the models' processes."""
