"""Which images pass a filter: words of captions, classes, keys, a value of the metadata, a polygon of a plane."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from headspan.errors import SettingsError
from headspan.store.reader import Store
from headspan.store.select import listed
from headspan.web.samples.database import SAMPLES, samples_of

_MOST_CORNERS = 400
_KEYS = f"SELECT row FROM {SAMPLES} WHERE list_contains($keys, key)"
_ORDER = f"SELECT row FROM {SAMPLES} ORDER BY key, row"
Corner = tuple[float, float]


@dataclass(frozen=True)
class Filter:
    """What images must have; nothing is asked for by default. Filters of the same content are equal."""

    words: tuple[str, ...] = ()
    # One of the words rather than all.
    any_word: bool = False
    classes: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    column: str | None = None
    value: str | None = None
    # The name of a head, or `embedding`.
    plane: str | None = None
    polygon: tuple[Corner, ...] = ()

    def __post_init__(self) -> None:
        if (self.column is None) != (self.value is None):
            raise SettingsError("column and value go together; give both, or neither")
        if bool(self.polygon) != (self.plane is not None):
            raise SettingsError("plane and polygon go together; give both, or neither")

    @property
    def empty(self) -> bool:
        """Whether all images pass."""
        return self == Filter(any_word=self.any_word)

    def in_words(self, class_names: dict[int, str]) -> str:
        """The filter as a phrase that follows a number of images."""
        parts = []
        if self.words:
            parts.append(f"whose caption has {listed(self.words, 'word', 'or' if self.any_word else 'and')}")
        if self.classes:
            names = [class_names.get(number, f"{number}") for number in self.classes]
            parts.append(f"of {listed(names, 'class', 'or', 'es', '')}")
        if self.keys:
            parts.append("chosen by key")
        if self.column is not None:
            parts.append(f"with {self.column} {self.value}")
        if self.plane is not None:
            parts.append(f"in a region of the plane of {'the embedding' if self.plane == 'embedding' else self.plane}")
        return ", ".join(parts) or "of the store"


def unique_words(words: Sequence[str]) -> tuple[str, ...]:
    """The words, each once, with single spaces. Raises SettingsError if there are none."""
    found = tuple(dict.fromkeys(word for part in words if (word := " ".join(part.split()))))
    if not found:
        raise SettingsError("the list of words is empty; give words such as dog,cat")
    return found


def parse_polygon(text: str) -> tuple[Corner, ...]:
    """The corners of `x,y;x,y;x,y`. Raises SettingsError for another form."""
    try:
        numbers = [float(part) for part in re.split(r"[;,\s]+", text.strip(" ;,")) if part]
    except ValueError:
        numbers = []
    if len(numbers) < 6 or len(numbers) % 2 or len(numbers) > 2 * _MOST_CORNERS or not np.isfinite(numbers).all():
        raise SettingsError(
            f"polygon {text[:40]!r}: is no polygon; give 3 to {_MOST_CORNERS} corners as x,y;x,y;x,y in finite numbers"
        )
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def inside(points: Float[np.ndarray, "point 2"], polygon: tuple[Corner, ...]) -> Bool[np.ndarray, " point"]:
    """Whether points are inside a polygon, which may cross itself: an odd number of edges is to the right of them."""
    corners = np.array(polygon, points.dtype)
    found = np.zeros(len(points), bool)
    # Most points are often outside the box around the polygon.
    x, y = points.T
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    near = np.flatnonzero((x >= left) & (x <= right) & (y >= bottom) & (y <= top))
    x, y = x[near], y[near]
    odd = np.zeros(len(near), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * ((x1 - x0) / (y1 - y0)))
    found[near] = odd
    return found


def rows_with_keys(store: Store, keys: tuple[str, ...]) -> Bool[np.ndarray, " row"]:
    """Whether each planned row has one of these keys."""
    mask = np.zeros(store.planned_images, bool)
    mask[samples_of(store).rows(_KEYS, {"keys": list(keys)})["row"]] = True
    return mask


def places_by_key(store: Store) -> np.ndarray:
    """The place of each planned row in the order of keys. Raises SettingsError if they are too many to sort."""
    order = samples_of(store).rows(_ORDER)["row"]
    places = np.empty(store.planned_images, np.uint32)
    places[order] = np.arange(len(order), dtype=np.uint32)
    return places
