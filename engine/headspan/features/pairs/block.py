"""A block of pairs: vectors of images, of their captions, and where they are from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some pairs. Vectors of the embedding space have unit length; those of heads and patches are as stored.

    Coordinates of heads and patches are normalised as the moments use them, and multiplied by the space's `scale`.
    """

    images: Float32[np.ndarray, "pair width"]
    # None in spaces that texts are not in.
    texts: Float32[np.ndarray, "pair width"] | None
    # The store, by its place in the list of stores, and the image index in it, of each pair.
    store: Int64[np.ndarray, " pair"]
    image: Int64[np.ndarray, " pair"]
    # The number of the caption among the distinct captions of its store; -1 where there is none.
    caption: Int64[np.ndarray, " pair"]
    # The source token of each patch; None in other spaces.
    token: Int64[np.ndarray, " pair"] | None = None

    def __len__(self) -> int:
        return len(self.images)
