"""Texts of a request: how many and how long they may be, and their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import Query
from jaxtyping import Float32, Float64
from pydantic import StringConstraints

from headspan.errors import shortened
from headspan.web.asked import AskedStore

# A model reads some 77 tokens, so a longer text is no question.
_LONGEST, _MOST = 2000, 100
# A sentence shows so many letters of a text.
_SHOWN = 200

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_LONGEST)]
# The parameter `text` of a route, as often as there are texts.
_ONCE_EACH = Query(max_length=_MOST, description="A text; give the parameter once for each.")
Texts = Annotated[list[Text], _ONCE_EACH]
SomeTexts = Annotated[list[Text] | None, _ONCE_EACH]


@dataclass(frozen=True)
class AskedTexts:
    """Texts, each once, in the order of the request; their unit vectors; and what was read of those that were cut."""

    texts: tuple[str, ...]
    vectors: Float32[np.ndarray, "text joint"]
    cut: dict[str, str]

    @property
    def units(self) -> Float64[np.ndarray, "text joint"]:
        """The vectors, of length 1 in float64."""
        vectors = self.vectors.astype(np.float64)
        found: Float64[np.ndarray, "text joint"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return found

    @property
    def notices(self) -> list[str]:
        """A sentence for each text that was cut."""
        return [
            f"“{shortened(text, _SHOWN)}” is longer than the model's context, so it reads “{shortened(cut, _SHOWN)}”"
            for text, cut in self.cut.items()
        ]


def asked_texts(asked: AskedStore, texts: Sequence[str]) -> AskedTexts:
    """The vectors of texts. Raises as `Model.text_vectors` does."""
    once = tuple(dict.fromkeys(texts))
    if not once:
        return AskedTexts((), np.zeros((0, asked.store.joint), np.float32), {})
    # Sorted, since a text's last bits may depend on the texts that pass the model with it.
    ordered = sorted(once)
    vectors, cut = asked.vectors(ordered)
    return AskedTexts(once, vectors[[ordered.index(text) for text in once]], cut)
