"""Categories of a store's images that colour the points of a plane: by class, words, a column or a text's score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from headspan.errors import SettingsError
from headspan.web.samples.classes import Classes
from headspan.web.samples.columns import NONE, SHOWN, Column

OTHER = "other"
# The codes of a continuous colouring are from 0 to this.
_LAST = 254


@dataclass(frozen=True, eq=False)
class Coloured:
    """Names of categories with their numbers of images, and each image's code: a place among the names, or NONE."""

    names: list[str]
    counts: list[int]
    codes: UInt8[np.ndarray, " image"]


def by_class(classes: Classes) -> Coloured:
    """The most frequent classes by their names, and the others as one. Raises SettingsError if no image has one."""
    if not len(classes.numbers):
        raise SettingsError(
            "no image of this store has a class, so classes give no colours; colour by words or columns"
        )
    order = np.argsort(-classes.counts, kind="stable")
    shown = order[:SHOWN] if len(order) > SHOWN + 1 else order
    codes = np.full(len(order) + 1, len(shown), np.uint8)
    codes[shown] = np.arange(len(shown))
    # The last place serves images without a class.
    codes[-1] = NONE
    names = [classes.shown(int(place)) for place in shown] + [OTHER] * (len(shown) < len(order))
    return _counted(names, codes[classes.places])


def by_words(words: tuple[str, ...], packed: UInt8[np.ndarray, "word byte"], images: int) -> Coloured:
    """Each word as a category; an image with several has the first of them."""
    codes = np.full(images, NONE, np.uint8)
    for code in range(len(words) - 1, -1, -1):
        np.copyto(codes, code, where=np.unpackbits(packed[code], count=images).view(bool))
    return _counted(list(words), codes)


def by_column(column: Column) -> Coloured:
    """The frequent values of a column, and the others as one."""
    return _counted(column.values + [OTHER] * column.more, column.codes)


def score_range(scores: Float64[np.ndarray, " image"]) -> tuple[float, float]:
    """Where a continuous colouring begins and ends: 98 % of a sample's scores are between."""
    low, high = np.quantile(scores, (0.01, 0.99)) if len(scores) else (0.0, 0.0)
    return float(low), float(high)


def score_codes(scores: Float64[np.ndarray, " image"], low: float, high: float) -> UInt8[np.ndarray, " image"]:
    """Codes from 0 at `low` to 254 at `high`; scores beyond them have the code of the end."""
    part = (scores - low) / (high - low) if high > low else np.full(len(scores), 0.5)
    return np.rint(part.clip(0, 1) * _LAST).astype(np.uint8)


def _counted(names: list[str], codes: UInt8[np.ndarray, " image"]) -> Coloured:
    # Of few names, quicker than `bincount`, which converts all codes to eight bytes each.
    return Coloured(names, [int(np.count_nonzero(codes == code)) for code in range(len(names))], codes)
