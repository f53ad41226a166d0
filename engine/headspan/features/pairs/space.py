"""The space that features are learned in: the embedding, the coordinates of heads, or those of patches."""

from __future__ import annotations

from dataclasses import dataclass

EMBEDDING, HEADS, PATCHES = "embedding", "heads", "patches"


@dataclass(frozen=True, slots=True)
class Space:
    """What a vector is: which numbers of which model. Two stores of one space can be learned from together."""

    # One of EMBEDDING, HEADS, PATCHES.
    kind: str
    width: int
    # The checksums of the model's image and text weights, as stores record them; None where a store has none.
    weights_sha256: str | None = None
    text_sha256: str | None = None
    # The heads whose coordinates stand one after the other, as (layer, head); empty for the embedding.
    heads: tuple[tuple[int, int], ...] = ()
