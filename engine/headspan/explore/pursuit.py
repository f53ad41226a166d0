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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from headspan.config import as_ranges
from headspan.errors import SettingsError, StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.frames import Tabular
from headspan.spans.algorithm import Principal
from headspan.spans.description import head_principals
from headspan.spans.draws import in_threads, random_rotation
from headspan.spans.greedy import greedy
from headspan.spans.nulls import DRAWS, SEED, Chance, HeadsAbove, chance_columns, chance_of, check_draws, heads_above
from headspan.spans.result import place_of
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.texts.pool import Pool, read_pool
from headspan.texts.vectors import text_vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The number of words that a head is explained by, as TEXTSPAN's labels use five texts.
COUNT = 5
# The covariances of heads that are solved together: a share of a core's cache.
_BATCH_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HeadPursuit(Tabular):
    """The words of a list that explain most of each head's variance, over `images` images, beside chance.

    The arrays' first axis follows `layers`, which are the model's layer numbers; methods take these numbers.
    """

    # The list, each word once.
    words: tuple[str, ...]
    layers: tuple[int, ...]
    # Places in `words`, in the order in which they were chosen; -1 if no variance was left to explain.
    chosen: Int[np.ndarray, "layer head round"]
    # Cumulative share of the variance of the head's contributions, from 0 to 1.
    explained: Float[np.ndarray, "layer head round"]
    # The same share for as many of the head's own principal directions: no vectors explain more.
    best: Float[np.ndarray, "layer head round"]
    # What the list explains after its vectors are rotated at random in the joint space; None without draws.
    null: Float[np.ndarray, "draw layer head round"] | None
    images: int

    def __repr__(self) -> str:
        layers, heads, count = self.explained.shape
        return (
            f"HeadPursuit({counted(layers * heads, 'head')} of layers {as_ranges(self.layers)} by {count} of "
            f"{counted(len(self.words), 'word')}, over {counted(self.images, 'image')})"
        )

    def heads(self) -> Iterator[Head]:
        """Layer and head of every stored head, in order."""
        for layer in self.layers:
            for head in range(self.explained.shape[1]):
                yield layer, head

    def ranking(self, count: int | None = None) -> list[Head]:
        """All heads, first the one of whose variance its first `count` words, or all, explain most."""
        shares = {head: self.explained_by(*head, count) for head in self.heads()}
        return sorted(shares, key=lambda head: -shares[head])

    def texts(self, layer: int, head: int, count: int | None = None) -> list[str]:
        """The first `count` words of one head, or all, in the order of choice. Raises SettingsError as `place_of`."""
        return [self.words[index] for index in self.chosen[self._at(layer, head)][:count].tolist() if index >= 0]

    def explained_by(self, layer: int, head: int, count: int | None = None) -> float:
        """Share of the variance of one head's contributions in the span of its first `count` words, or of all."""
        return float(self.explained[self._at(layer, head)][:count][-1])

    def chance(self, layer: int, head: int, count: int | None = None) -> Chance:
        """One head's explained share at its first `count` words, or all, beside the rotated list's.

        `Chance.ceiling` is the share that as many principal directions of the head explain. Raises SettingsError if the
        head is not stored, or if there are no draws.
        """
        place, null = self._at(layer, head), self._null()
        best = self.best[place][:count].astype(np.float32)
        return chance_of(self.explained[place][:count], null[(slice(None), *place)][:, :count], best)

    def excess(self, count: int | None = None) -> Float[np.ndarray, "layer head"]:
        """Each head's explained share minus the mean of the draws'. Raises SettingsError if there are no draws."""
        drawn = self._null()[..., :count][..., -1].mean(axis=0)
        above: Float[np.ndarray, "layer head"] = self.explained[..., :count][..., -1] - drawn
        return above

    def above_chance(self, count: int | None = None, level: float = 0.05) -> HeadsAbove:
        """How many heads explain more than chance at `level`, beside the count that a rotated list gives.

        Raises SettingsError if there are no draws, or if `level` is not between 0 and 1.
        """
        null = self._null()[..., :count]
        own = self.explained[..., : null.shape[-1]]
        return heads_above(own[..., -1].ravel(), null[..., -1].reshape(len(null), -1), null.shape[-1], level)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw every head's excess over chance as a grid; without draws, its explained share. Needs matplotlib."""
        from headspan.spans.drawing import draw_grid

        known = self.null is not None
        chances = [self.chance(*head) for head in self.heads()] if known else None
        above = self.above_chance() if known else None
        return draw_grid(self.layers, self.explained[..., -1], chances, above, self.explained.shape[-1], ax)

    def _null(self) -> Float[np.ndarray, "draw layer head round"]:
        if self.null is None:
            raise SettingsError("this head pursuit has no draws of chance; call head_pursuit with draws of 20 or more")
        return self.null

    def _at(self, layer: int, head: int) -> tuple[int, int]:
        return place_of(self.layers, self.explained.shape[1], layer, head)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        heads = self.ranking()
        columns: dict[str, Sequence[Any]] = {
            "layer": [layer for layer, _ in heads],
            "head": [head for _, head in heads],
            "explained": [self.explained_by(*head) for head in heads],
        }
        if self.null is not None:
            columns |= chance_columns([self.chance(*head) for head in heads])
        else:
            columns["ceiling"] = [float(self.best[self._at(*head)][-1]) for head in heads]
        most = self.explained.shape[-1]
        for number in range(most):
            texts = [self.texts(*head) for head in heads]
            columns[f"word_{number + 1}"] = [each[number] if number < len(each) else None for each in texts]
            columns[f"explained_{number + 1}"] = [self.explained_by(*head, number + 1) for head in heads]
        return columns


def head_pursuit(
    store: Store,
    words: str | Path | Sequence[str] | Pool,
    count: int = COUNT,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    draws: int = DRAWS,
    seed: int = SEED,
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
        draws: How many rotated lists are drawn.
        seed: The seed of the draws.

    Raises SettingsError if `count`, `draws` or `seed` is out of range; StoreError if the store has fewer than two
    images; and the errors of `text_vectors`.
    """
    pool = read_pool(words)
    names = tuple(dict.fromkeys(pool.texts))
    check_draws(draws, seed)
    if count < 1:
        raise SettingsError(f"{counted(count, 'word')} per head; ask for at least 1")
    moments = store.moments()
    if moments.count < 2:
        raise StoreError(f"{store.path}: {counted(moments.count, 'image')}, but a variance needs at least 2")
    if count > len(names):
        few = f"the list has {counted(len(names), 'word')}, fewer than {count}"
        on_progress(Progress(NOTE, 1, 1, f"{few}: each head gets at most {len(names):,}"))
        count = len(names)
    vectors = text_vectors(store, names, on_progress, weights=weights)
    heads = head_principals(store, store.layers, store.joint, moments)
    shape = (len(store.layers), store.heads_per_layer, count)
    chosen, explained = pursue(heads, vectors, count)
    null = pursue_rotated(heads, vectors, count, draws, seed) if draws else None
    return HeadPursuit(
        names,
        tuple(store.layers),
        chosen.reshape(shape),
        explained.reshape(shape),
        np.stack([_best(head, count) for head in heads]).reshape(shape),
        None if null is None else null.reshape(draws, *shape),
        moments.count,
    )


def pursue(
    heads: Sequence[Principal], vectors: Float[np.ndarray, "word joint"], count: int
) -> tuple[Int64[np.ndarray, "head round"], Float64[np.ndarray, "head round"]]:
    """SOMP of each head's covariance on unit vectors: places in the order of choice, and cumulative shares."""
    basis, coordinates = _span_of(vectors)
    return _pursue_along(_factors(heads), basis, coordinates, count)


def pursue_rotated(
    heads: Sequence[Principal], vectors: Float[np.ndarray, "word joint"], count: int, draws: int, seed: int
) -> Float64[np.ndarray, "draw head round"]:
    """The shares that the vectors explain after a random rotation of the joint space, one rotation for each draw."""
    basis, coordinates = _span_of(vectors)
    factors = _factors(heads)

    def draw(number: int) -> Float64[np.ndarray, "head round"]:
        # A rotation takes the orthonormal basis of the vectors' span to a uniformly random one.
        rotated = random_rotation(len(basis), np.random.default_rng([seed, number]), basis.shape[1])
        return _pursue_along(factors, rotated, coordinates, count)[1]

    return np.stack(in_threads(draw, draws))


def _span_of(
    vectors: Float[np.ndarray, "word joint"],
) -> tuple[Float64[np.ndarray, "joint span"], Float64[np.ndarray, "word span"]]:
    """An orthonormal basis of a space that contains the vectors, and the unit vectors' coordinates along it."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    basis, triangle = np.linalg.qr(unit.T)
    return basis, triangle.T


def _factors(heads: Sequence[Principal]) -> Float64[np.ndarray, "head joint rank"]:
    """Matrices `F` whose `F Fᵀ` is the head's covariance, divided by its whole variance; padded with zeros."""
    rank = max(1, max(head.rank for head in heads))
    found = np.zeros((len(heads), len(heads[0].basis), rank))
    for number, head in enumerate(heads):
        if head.rank:
            squares, vectors = np.linalg.eigh(head.covariance)
            scaled = vectors * np.sqrt(np.clip(squares, 0, None) / head.variance)
            found[number, :, : head.rank] = head.basis @ scaled
    return found


def _pursue_along(
    factors: Float64[np.ndarray, "head joint rank"],
    basis: Float64[np.ndarray, "joint span"],
    coordinates: Float64[np.ndarray, "word span"],
    count: int,
) -> tuple[Int64[np.ndarray, "head round"], Float64[np.ndarray, "head round"]]:
    """The rounds, a few heads at a time. Residuals stay in the words' span, so only the covariance in it matters."""
    together = max(1, _BATCH_BYTES // (8 * max(len(coordinates), 1) * basis.shape[1]))
    found = []
    for first in range(0, len(factors), together):
        inside = basis.T @ factors[first : first + together]
        found.append(greedy(coordinates[None], inside @ inside.swapaxes(1, 2), count))
    chosen, explained = zip(*found, strict=True)
    return np.concatenate(chosen), np.concatenate(explained)


def _best(head: Principal, count: int) -> Float64[np.ndarray, " round"]:
    """The cumulative shares of the head's own principal directions."""
    squares = np.zeros(count)
    if head.rank:
        largest = np.linalg.eigvalsh(head.covariance)[::-1][:count]
        squares[: len(largest)] = np.clip(largest, 0, None) / head.variance
    shares: Float64[np.ndarray, " round"] = np.cumsum(squares)
    return shares
