"""The space that features are learned in: the embedding, the coordinates of heads, or those of patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from headspan.head_names import Head, head_name

EMBEDDING, HEADS, PATCHES = "embedding", "heads", "patches"
KINDS = (EMBEDDING, HEADS, PATCHES)
_SHOWN_HEADS = 4
_DIGITS = 12


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
    heads: tuple[Head, ...] = ()
    # What coordinates of heads and patches are multiplied by, so that their variance sums to about 1, as that of unit
    # embeddings does. It is measured on the first store of a training, and kept with the dictionary.
    scale: float = field(default=1.0, compare=False)

    def as_json(self) -> dict[str, Any]:
        """The space as JSON values."""
        return {**asdict(self), "heads": [list(head) for head in self.heads]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Space:
        """The space that `as_json` gave. Raises TypeError, ValueError or KeyError for other values."""
        heads = tuple((int(layer), int(head)) for layer, head in values["heads"])
        return cls(**{**values, "heads": heads})

    def __str__(self) -> str:
        """The space in words: "the embedding, 512 numbers"."""
        if self.kind == EMBEDDING:
            return f"the embedding, {self.width} numbers"
        shown = ", ".join(head_name(*head) for head in self.heads[:_SHOWN_HEADS])
        more = f" and {len(self.heads) - _SHOWN_HEADS} more" if len(self.heads) > _SHOWN_HEADS else ""
        what = "patches in " if self.kind == PATCHES else ""
        return f"{what}the coordinates of {shown}{more}, {self.width} numbers"

    def difference(self, other: Space) -> str | None:
        """How `other` differs, as "(this) … against (other) …"; None if it is the same space.

        Checksums that one of them lacks are not compared.
        """
        if (self.kind, self.width, self.heads) != (other.kind, other.width, other.heads):
            return f"{self} against {other}"
        for name, what in (("weights_sha256", "image weights"), ("text_sha256", "text weights")):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and mine != theirs:
                return f"{what} {mine[:_DIGITS]} against {theirs[:_DIGITS]}"
        return None
