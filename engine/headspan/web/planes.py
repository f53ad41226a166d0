"""The points of planes, in parts: each part is an even sample of the images, so that a page shows all of them soon.

A part has every so many-th block of neighbouring images, so that it is read in whole pages of a file. Points are
computed part by part when they are asked for, and kept. All planes of a store have the same parts, so that one
colouring serves all of them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64

from headspan.errors import SettingsError
from headspan.explore.atlas.space import Space, principal_space
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.web.asked import AskedStore
from headspan.web.refusals import Missing

# A part reads so much of the embeddings, which are the largest numbers that a plane needs, and has at most so many
# points: both take well under 0.1 seconds.
_PART_BYTES, _PART_POINTS = 48 << 20, 32_768
# A head's 64 numbers of so many images fill a page.
_BLOCK = 32
# The extent reaches beyond the points of the first part by this share on each side.
_MARGIN = 0.05


def parts_of(store: Store) -> int:
    """The number of parts of the store's planes."""
    points = max(1, min(_PART_POINTS, _PART_BYTES // (4 * store.joint)))
    return max(1, -(-store.images // points))


def rows_of(store: Store, part: int) -> Int64[np.ndarray, " row"]:
    """The rows of the images of one part. Raises Missing if there is no such part."""
    parts = parts_of(store)
    if not 0 <= part < parts:
        raise Missing(f"{store.path}: planes have parts 0 to {parts - 1}, but not {part}")
    return store.rows[images_of(store, part)]


def images_of(store: Store, part: int) -> Int64[np.ndarray, " image"]:
    """The indices of the images of one part, ascending."""
    blocks = np.arange(part, -(-store.images // _BLOCK), parts_of(store))
    found = (blocks[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
    return found[: np.searchsorted(found, store.images)]


def space_of(asked: AskedStore, head: Head | None) -> Space:
    """The principal space of a head, or with None of the embeddings. Raises as `principal_space` does."""
    if asked.store.images < 2:
        raise SettingsError(f"{asked.name}: shows fewer than two images, so there is no plane of them; compute more")
    return asked.keep(("space", head), lambda: principal_space(asked.store, head))


def points_of(asked: AskedStore, head: Head | None, part: int) -> Float32[np.ndarray, "point 2"]:
    """The points of one part of a plane."""
    rows, space = rows_of(asked.store, part), space_of(asked, head)
    if (every := asked.kept(("plane", head))) is not None:
        return every[images_of(asked.store, part)]
    return asked.keep(
        ("plane", head, part), lambda: space.plane(rows).astype(np.float32), lambda points: int(points.nbytes)
    )


def all_points(asked: AskedStore, head: Head | None) -> Float32[np.ndarray, "image 2"]:
    """The points of all images in their order."""
    store = asked.store
    if head is not None:
        space = space_of(asked, head)
        return asked.keep(
            ("plane", head),
            # All x, then all y, which polygons are compared with one after the other.
            lambda: space.plane(store.rows).astype(np.float32, order="F"),
            lambda points: int(points.nbytes),
        )
    found = np.empty((store.images, 2), np.float32, order="F")
    for part in range(parts_of(store)):
        found[images_of(store, part)] = points_of(asked, head, part)
    return found


def extent_of(asked: AskedStore, head: Head | None) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the points: those of the first part, with a margin."""
    points = points_of(asked, head, 0)
    low, high = points.min(axis=0).astype(float), points.max(axis=0).astype(float)
    margin = np.maximum(_MARGIN * (high - low), np.finfo(np.float32).tiny)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    return left, right, bottom, top
