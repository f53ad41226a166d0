"""The images nearest to each of many texts by embedding, found for all texts in one pass over the embeddings.

A text's vector lies across the axes of sketches, so its neighbours by embedding are found in eight bits of all numbers:
at a million images, in some 40 milliseconds. Texts that a store keeps are asked about again and again. The products of
all of them with all images are one product of matrices, of which each text's largest are kept.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int, Int64

from headspan.explore.nearest.scored import ScoredEmbedding

# Rows that are kept of each text, and rows that are multiplied at once.
_KEPT, _AT_ONCE = 128, 1024
# What float32 adds to each term of a score, relative to the lengths of both vectors.
_TERM = 2.0**-23


class NearestLists:
    """For each of several texts, the rows of a store with the largest scores."""

    def __init__(self, scored: ScoredEmbedding, rows: int, vectors: Float32[np.ndarray, "text joint"]) -> None:
        """Read all numbers of `scored` once, in this thread; `vectors` are the texts'."""
        self._vectors = vectors
        self._cut = np.full(len(vectors), -np.inf, np.float32)
        self._rows: Int64[np.ndarray, "text kept"] = np.zeros((len(vectors), 0), np.int64)
        self._scores: Float32[np.ndarray, "text kept"] = np.zeros((len(vectors), 0), np.float32)
        waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        with np.errstate(invalid="ignore", over="ignore"):
            for first in range(0, rows, _AT_ONCE):
                end = min(first + _AT_ONCE, rows)
                scores = vectors @ scored.block(first, end).T
                # The scores of rows that are not shown are NaN, which is larger than no number.
                text, place = np.nonzero(scores > self._cut[:, None])
                waiting.append((text, first + place, scores[text, place]))
                if end == rows or sum(len(each) for each, _, _ in waiting) > _KEPT * len(vectors):
                    self._merge(*(np.concatenate(column) for column in zip(*waiting, strict=True)))
                    waiting = []

    @property
    def bytes(self) -> int:
        """The memory that it takes, without the vectors, which others keep."""
        return self._rows.nbytes + self._scores.nbytes

    @staticmethod
    def most_bytes(texts: int) -> int:
        """The most memory that so many texts take."""
        return texts * _KEPT * 12

    def near(self, place: int, vector: Float32[np.ndarray, " joint"], count: int) -> Int[np.ndarray, " some"] | None:
        """The rows that can be among the `count` of the largest scores of a text; None if others can be, too.

        `vector` is what the caller has for the text at `place` of all vectors.
        """
        if place >= len(self._vectors) or not np.array_equal(self._vectors[place], vector):
            return None
        scores = self._scores[place]
        listed = np.isfinite(scores)
        if count > listed.sum():
            return None if listed.all() else self._rows[place, listed]
        # Embeddings have length 1.
        rounding = 2 * _TERM * len(vector) * float(np.linalg.norm(vector.astype(np.float64)))
        least = float(scores[count - 1]) - rounding
        # Where all rows that are shown are listed, the cut is -inf.
        return None if least <= float(self._cut[place]) else self._rows[place, scores >= least]

    def _merge(
        self,
        text: Int64[np.ndarray, " some"],
        row: Int64[np.ndarray, " some"],
        score: Float32[np.ndarray, " some"],
    ) -> None:
        """Keep the largest of what is kept and of further scores, in descending order."""
        texts, kept = self._scores.shape
        text = np.concatenate([np.repeat(np.arange(texts), kept), text])
        row, score = np.concatenate([self._rows.ravel(), row]), np.concatenate([self._scores.ravel(), score])
        order = np.lexsort((row, -score, text))
        text, row, score = text[order], row[order], score[order]
        place = np.arange(len(text)) - np.searchsorted(text, np.arange(texts))[text]
        self._rows = np.zeros((texts, _KEPT), np.int64)
        self._scores = np.full((texts, _KEPT), -np.inf, np.float32)
        some = place < _KEPT
        self._rows[text[some], place[some]], self._scores[text[some], place[some]] = row[some], score[some]
        # Whatever is not larger than the last one is not kept.
        self._cut = self._scores[:, -1].copy()
