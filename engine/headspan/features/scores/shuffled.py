"""Pair each image with another pair's text, in a stream: the null in which captions are shuffled.

The permutation is a cyclic shift: the image of pair i goes with the text of pair i − 4,096, and the images of the
first 4,096 pairs go with the texts of the last. Every image and every text is used once, so each side's codes stay as
they are. The codes of 4,096 texts are held. A stream that is not longer is shifted by half of its length. The shift
depends on the order of the pairs and not on the blocks that they come in; streams in which far pairs resemble each
other, such as sorted ones, should be shuffled first.
"""

from __future__ import annotations

from collections.abc import Iterator

from scipy.sparse import vstack

from headspan.features.scores.codes import Codes

SHIFT = 4096


class ShuffledPairs:
    """Turns blocks of paired codes into blocks of shuffled ones."""

    def __init__(self, shift: int = SHIFT) -> None:
        self._shift, self._pairs = shift, 0
        # The codes of the first images, and of the last texts, `shift` of each.
        self._first: Codes | None = None
        self._last: Codes | None = None

    def add(self, images: Codes, texts: Codes) -> Iterator[tuple[Codes, Codes]]:
        """The shuffled pairs that a block makes complete, if any."""
        lacking = self._shift - (0 if self._first is None else self._first.shape[0])
        if lacking > 0:
            head = images[:lacking]
            self._first = head if self._first is None else vstack([self._first, head], format="csr")
        held = 0 if self._last is None else self._last.shape[0]
        joined = texts if self._last is None else vstack([self._last, texts], format="csr")
        # Images of the block from this one on are at least `shift` pairs behind the first text.
        begin = max(0, self._shift - self._pairs)
        count = images.shape[0] - begin
        if count > 0:
            at = begin + held - self._shift
            yield images[begin:], joined[at : at + count]
        self._pairs += images.shape[0]
        self._last = joined[max(0, joined.shape[0] - self._shift) :]

    def rest(self) -> Iterator[tuple[Codes, Codes]]:
        """The shuffled pairs of the first images; none if there are fewer than two pairs."""
        if self._first is None or self._last is None or self._pairs < 2:
            return
        if self._pairs > self._shift:
            yield self._first, self._last
            return
        half = self._pairs // 2
        yield self._first[half:], self._last[: self._pairs - half]
        yield self._first[:half], self._last[self._pairs - half :]
