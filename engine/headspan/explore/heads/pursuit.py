"""Head pursuit: rank heads by how much of their variance a few words of a list explain.

Source: Basile, Maiorca, Doimo, Locatello, Cazzaniga, "Head Pursuit", NeurIPS 2025: simultaneous orthogonal matching
pursuit (SOMP) of a head's outputs on a dictionary of words. Each round chooses the word whose unit vector matches the
residuals of all images best, and projects the residuals off all words chosen so far. Here the match is the sum of
squares over the images, which follows from the head's covariance; Tropp et al. (2006) sum absolute values, which do
not. So the cost does not depend on the number of images. As in TEXTSPAN, contributions are centred, follow the
convention `uniform`, and are divided by `‖embedding‖`.

TEXTSPAN runs the same rounds on other vectors: it first projects every text to the head's principal directions, and
removes these projections. Its shares say what the best-fitting directions inside the head explain, and reach 1 with any
pool that has as many texts as the head has directions. Here words keep their own directions: a share says how much of
the head's variance lies in the span of the words' vectors themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64
from threadpoolctl import threadpool_limits

from headspan.errors import SettingsError, StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.explore.heads.pursuit_result import HeadPursuit
from headspan.spans.algorithm import VARIANCE_TOLERANCE, Principal
from headspan.spans.draws import in_threads, random_rotation
from headspan.spans.greedy import greedy
from headspan.spans.nulls import DRAWS, SEED, check_draws
from headspan.store.head_space import stored_heads
from headspan.store.moments_file import MergedMoments
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.texts.pool import Pool, read_pool
from headspan.texts.vectors import text_vectors

# The number of words that a head is explained by, as TEXTSPAN's labels use five texts.
COUNT = 5
# The covariances of heads that are solved together: a share of a core's cache.
_BATCH_BYTES = 4 << 20
# A share of a number that is lost in the rounding of float32 directions.
_ROUNDING = 1e-12


def head_pursuit(
    store: Store,
    words: str | Path | Sequence[str] | Pool,
    count: int = COUNT,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    against: str | Path | Sequence[str] | Pool | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
    images: Images | None = None,
) -> HeadPursuit:
    """Explain every stored head by `count` words of a list; `HeadPursuit.ranking` orders the heads.

    Method: Head Pursuit, NeurIPS 2025, from the store's moments alone. Chance is the list's vectors times a random
    orthogonal matrix of the joint space, `draws` times (0 for none), one matrix for all heads of a draw.

    Args:
        store: The store to read; nothing is written.
        words: A list of words or texts, embedded as they are, or a file or pool that `read_pool` accepts.
        count: How many words explain a head, at most all of the list; `on_progress` is told if it has fewer.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        weights: As in `text_vectors`.
        against: Texts of which as many as the list has are drawn at random, `draws` times, and explain the heads too,
            which says whether these words explain more than others do. None draws none.
        draws: How many rotated lists, and lists of other texts, are drawn.
        seed: The seed of the draws.
        images: A selection, indices or a mask of images, over which variances are taken; None for all.

    Raises SettingsError if `count`, `draws` or `seed` is out of range, if `against` has fewer texts than the list or is
    given without draws, or if there are no such images; StoreError if there are fewer than two
    images; and the errors of `text_vectors`.
    """
    pool = read_pool(words)
    names = tuple(dict.fromkeys(pool.texts))
    check_draws(draws, seed)
    if count < 1:
        raise SettingsError(f"{counted(count, 'word')} per head; ask for at least 1")
    moments = store.moments(images)
    if moments.count < 2:
        raise StoreError(
            f"{store.path}: {counted(moments.count, 'image')}, but a variance needs at least 2; give more images"
        )
    if count > len(names):
        few = f"the list has {counted(len(names), 'word')}, fewer than {count}"
        on_progress(Progress(NOTE, 1, 1, f"{few}: each head gets at most {len(names):,}"))
        count = len(names)
    others = None if against is None else read_pool(against)
    if others is not None and (not draws or len(set(others.texts)) < len(names)):
        have = f"{counted(len(names), 'text')} are drawn from the pool {others.name}"
        few = "no lists, since draws is 0" if not draws else f"but it has {len(set(others.texts))}"
        raise SettingsError(f"{have}, {few}; " + ("ask for draws" if not draws else "give a larger pool"))
    vectors = text_vectors(store, names, on_progress, weights=weights)
    shape = (len(store.layers), store.heads_per_layer, count)
    # Matrices are small: threads within a product cost more than they give.
    with threadpool_limits(1, "blas"):
        heads = _Outputs.of_store(store, moments)
        basis, coordinates = _span_of(vectors)
        chosen, explained = _pursue_along(heads, basis, coordinates, count)
        best = heads.best(count)
    null = _pursue_rotated(heads, basis.shape, coordinates, count, draws, seed) if draws else None
    drawn = None
    if others is not None:
        of_others = text_vectors(store, tuple(dict.fromkeys(others.texts)), on_progress, weights=weights)
        drawn = _pursue_drawn(heads, of_others, len(names), count, draws, seed)
    return HeadPursuit(
        names,
        tuple(store.layers),
        chosen.reshape(shape),
        explained.reshape(shape),
        best.reshape(shape),
        None if null is None else null.reshape(draws, *shape),
        moments.count,
        None if others is None else others.name,
        None if drawn is None else drawn.reshape(draws, *shape),
    )


def pursue(
    heads: Sequence[Principal], vectors: Float[np.ndarray, "word joint"], count: int
) -> tuple[Int64[np.ndarray, "head round"], Float64[np.ndarray, "head round"]]:
    """SOMP of each head's covariance on unit vectors: places in the order of choice, and cumulative shares."""
    return _pursue_along(_Outputs.of_principals(heads), *_span_of(vectors), count)


def pursue_rotated(
    heads: Sequence[Principal], vectors: Float[np.ndarray, "word joint"], count: int, draws: int, seed: int
) -> Float64[np.ndarray, "draw head round"]:
    """The shares that the vectors explain after a random rotation of the joint space, one rotation for each draw."""
    basis, coordinates = _span_of(vectors)
    return _pursue_rotated(_Outputs.of_principals(heads), basis.shape, coordinates, count, draws, seed)


class _Outputs(NamedTuple):
    """Heads' contributions: coordinates times directions, and the coordinates' covariance over the whole variance."""

    # Side by side, so that all heads are one matrix product.
    directions: Float[np.ndarray, "joint head coordinate"]
    # Zero for a head whose contributions do not vary.
    covariances: Float64[np.ndarray, "head coordinate coordinate"]

    @classmethod
    def of_store(cls, store: Store, moments: MergedMoments) -> _Outputs:
        """All stored heads."""
        heads = stored_heads(store)
        directions = np.stack([store.head_directions(*head) for head in heads], axis=1).T
        directions = np.ascontiguousarray(directions, np.float64)
        flat = (len(heads), directions.shape[2])
        mean = moments.total.reshape(flat) / moments.count
        second = moments.gram.reshape(*flat, flat[1]) / moments.count
        covariances = second - mean[:, :, None] * mean[:, None]
        metric = cls(directions, covariances).metric()
        variances, squares = ((each * metric).sum(axis=(1, 2)) for each in (covariances, second))
        varies = variances > VARIANCE_TOLERANCE * squares
        return cls(directions, covariances / np.where(varies, variances, np.inf)[:, None, None])

    @classmethod
    def of_principals(cls, heads: Sequence[Principal]) -> _Outputs:
        """Heads by their principal directions, padded with zeros to one rank."""
        rank = max(1, max(head.rank for head in heads))
        directions = np.zeros((len(heads[0].basis), len(heads), rank))
        covariances = np.zeros((len(heads), rank, rank))
        for number, head in enumerate(heads):
            if head.rank:
                directions[:, number, : head.rank] = head.basis
                covariances[number, : head.rank, : head.rank] = head.covariance / head.variance
        return cls(directions, covariances)

    def best(self, count: int) -> Float64[np.ndarray, "head round"]:
        """The cumulative shares of each head's own principal directions."""
        # With inner products `D Dᵀ = R Rᵀ` of the directions, covariances `C` of the coordinates have the eigenvalues
        # of `Rᵀ C R` in joint space. Directions may depend on each other, so a rounding error is added to the diagonal.
        metric = self.metric()
        trace = np.trace(metric, axis1=1, axis2=2)[:, None, None]
        root = np.linalg.cholesky(metric + (_ROUNDING * trace + np.finfo(np.float64).tiny) * np.eye(metric.shape[1]))
        inner = root.swapaxes(1, 2) @ self.covariances @ root
        largest = np.linalg.eigvalsh(inner)[:, ::-1][:, :count].clip(0).cumsum(axis=1)
        # A head with fewer directions has no more variance to explain.
        more: Float64[np.ndarray, "head round"] = np.pad(largest, ((0, 0), (0, count - largest.shape[1])), "edge")
        return more

    def metric(self) -> Float64[np.ndarray, "head coordinate coordinate"]:
        """The inner products of each head's directions."""
        return np.einsum("jhc,jhd->hcd", self.directions, self.directions, optimize=True)


def _span_of(
    vectors: Float[np.ndarray, "word joint"],
) -> tuple[Float64[np.ndarray, "joint span"], Float64[np.ndarray, "word span"]]:
    """An orthonormal basis of a space that contains the vectors, and the unit vectors' coordinates along it."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    basis, triangle = np.linalg.qr(unit.T)
    return basis, triangle.T


def _pursue_rotated(
    heads: _Outputs,
    shape: tuple[int, ...],
    coordinates: Float64[np.ndarray, "word span"],
    count: int,
    draws: int,
    seed: int,
) -> Float64[np.ndarray, "draw head round"]:
    # As in TEXTSPAN's draws, products with the rotated vectors are float32.
    single = heads._replace(directions=heads.directions.astype(np.float32))

    def draw(number: int) -> Float64[np.ndarray, "head round"]:
        # A rotation takes the orthonormal basis of the vectors' span, of that shape, to a uniformly random one.
        rotated = random_rotation(shape[0], np.random.default_rng([seed, number]), shape[1])
        return _pursue_along(single, rotated, coordinates, count)[1]

    return np.stack(in_threads(draw, draws))


def _pursue_drawn(
    heads: _Outputs, pool: Float[np.ndarray, "pool joint"], size: int, count: int, draws: int, seed: int
) -> Float64[np.ndarray, "draw head round"]:
    """The shares that `size` different texts of a pool explain, drawn anew for each draw."""

    def draw(number: int) -> Float64[np.ndarray, "head round"]:
        places = np.random.default_rng([seed, number, 2]).choice(len(pool), size, replace=False)
        return _pursue_along(heads, *_span_of(pool[places]), count)[1]

    return np.stack(in_threads(draw, draws))


def _pursue_along(
    heads: _Outputs,
    basis: Float64[np.ndarray, "joint span"],
    coordinates: Float64[np.ndarray, "word span"],
    count: int,
) -> tuple[Int64[np.ndarray, "head round"], Float64[np.ndarray, "head round"]]:
    """The rounds, a few heads at a time. Residuals stay in the words' span, so only the covariance in it matters."""
    together = max(1, _BATCH_BYTES // (8 * max(len(coordinates), heads.directions.shape[2]) * basis.shape[1]))
    found = []
    for first in range(0, len(heads.covariances), together):
        part = slice(first, first + together)
        same = basis.astype(heads.directions.dtype, copy=False)
        inside = np.tensordot(same, heads.directions[:, part], axes=(0, 0)).swapaxes(0, 1).astype(np.float64)
        found.append(greedy(coordinates[None], inside @ heads.covariances[part] @ inside.swapaxes(1, 2), count))
    chosen, explained = zip(*found, strict=True)
    return np.concatenate(chosen), np.concatenate(explained)
