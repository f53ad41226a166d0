"""The singular directions of heads with their texts and shares: what `spectra` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from headspan.errors import SettingsError, counted
from headspan.frames import Tabular
from headspan.head_names import head_name
from headspan.store.head_space import Head
from headspan.texts.pool import Pool

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HeadSpectra(Tabular):
    """The singular directions of heads, largest singular value first, described by texts of a pool.

    Directions are unit vectors of the joint space and orthogonal within a head. A direction has two sides: along it
    (side 0, the better described one) and against it (side 1).
    """

    heads: tuple[Head, ...]
    pool: Pool
    images: int
    # Of the value-output matrix, from rows after the norm, without its weight, to the joint space.
    singular_values: Float64[np.ndarray, "head direction"]
    directions: Float32[np.ndarray, "head direction joint"]
    # Share of the variance of the head's contributions along each direction; NaN if they do not vary.
    share: Float64[np.ndarray, "head direction"]
    # Places in the pool, in the order of choice, and weights; -1 if no further text matches.
    indices: Int[np.ndarray, "head direction side text"]
    weights: Float64[np.ndarray, "head direction side text"]
    # The cosine of a side with the weighted sum of its texts, without the gap between the modalities.
    fidelity: Float64[np.ndarray, "head direction side"]
    # The same, of the better side, for random directions of the joint space.
    random: Float64[np.ndarray, " draw"]

    def __repr__(self) -> str:
        heads, directions = self.share.shape
        return (
            f"HeadSpectra({counted(directions, 'direction')} of each of {counted(heads, 'head')}, described by "
            f"{self.indices.shape[-1]} of {counted(len(self.pool.texts), 'text')}, over "
            f"{counted(self.images, 'image')})"
        )

    @property
    def covered(self) -> Float64[np.ndarray, " head"]:
        """Share of each head's variance along all its directions.

        The rest is what `uniform` adds to a head: its part of the biases and of the image's mean.
        """
        total: Float64[np.ndarray, " head"] = self.share.sum(axis=1)
        return total

    def texts(self, layer: int, head: int, direction: int, against: bool = False) -> list[str]:
        """The texts of one direction, in the order of choice, or those of its negative.

        Raises SettingsError if the head or the direction is not in the result.
        """
        chosen = self.indices[self._at(layer, head, direction)][int(against)].tolist()
        return [self.pool.texts[index] for index in chosen if index >= 0]

    def concept_shares(self, concept: str) -> Float64[np.ndarray, " head"]:
        """How much of each head's variance lies along directions that texts of one concept describe.

        The sum over directions of their share, times the concept's part of the weights of their texts; both sides
        count, each by its fidelity. So a head's shares sum to its variance along all directions that have texts. Raises
        SettingsError if the pool has no such concept.
        """
        if self.pool.concepts is None or concept not in self.pool.concepts:
            known = "none" if self.pool.concepts is None else ", ".join(sorted(set(self.pool.concepts)))
            raise SettingsError(f"concept {concept!r} is not in the pool {self.pool.name}; it has {known}")
        # The last entry serves places of -1.
        of_concept = np.array([*(each == concept for each in self.pool.concepts), False])
        part = (self.weights * of_concept[self.indices]).sum(axis=-1) / _or_infinite(self.weights.sum(axis=-1))
        described = (part * self.fidelity).sum(axis=-1) / _or_infinite(self.fidelity.sum(axis=-1))
        found: Float64[np.ndarray, " head"] = (self.share * described).sum(axis=-1)
        return found

    def plot(self, layer: int, head: int, *, ax: Axes | None = None) -> Axes:
        """Draw one head's spectrum: its share of the squared singular values and of the variance, by direction.

        `ax` are matplotlib's axes to draw on; without it, a new pyplot figure is made. Returns the axes. Needs
        matplotlib. Raises SettingsError if the head is not in the result.
        """
        from headspan.plots.spectrum import draw_spectrum

        place = self._at(layer, head, 0)[0]
        squares = self.singular_values[place] ** 2
        return draw_spectrum(
            squares / squares.sum(), self.share[place], title=f"{head_name(layer, head)}: singular directions", ax=ax
        )

    def _at(self, layer: int, head: int, direction: int) -> tuple[int, int]:
        directions = self.share.shape[1]
        if (layer, head) not in self.heads:
            names = ", ".join(head_name(layer, head) for layer, head in self.heads[:5])
            raise SettingsError(
                f"layer {layer}, head {head}: not in this result; it has {names}{', …' * (len(self.heads) > 5)}"
            )
        if not 0 <= direction < directions:
            raise SettingsError(f"direction {direction}: not in this result; it has 0 to {directions - 1}")
        return self.heads.index((layer, head)), direction

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = [(*head, direction) for head in self.heads for direction in range(self.share.shape[1])]
        squares = self.singular_values**2
        weight = squares / squares.sum(axis=1, keepdims=True).clip(np.finfo(float).tiny)
        return {
            "layer": [layer for layer, _, _ in rows],
            "head": [head for _, head, _ in rows],
            "direction": [direction for *_, direction in rows],
            "singular_value": self.singular_values.ravel().tolist(),
            "squared_share": weight.ravel().tolist(),
            "variance_share": self.share.ravel().tolist(),
            "fidelity": self.fidelity[..., 0].ravel().tolist(),
            "texts": ["; ".join(self.texts(*row)) or None for row in rows],
            "fidelity_against": self.fidelity[..., 1].ravel().tolist(),
            "texts_against": ["; ".join(self.texts(*row, against=True)) or None for row in rows],
        }

    def _shown_columns(self) -> Mapping[str, Sequence[Any]]:
        columns = dict(self._columns())
        layers, heads = columns.pop("layer"), columns.pop("head")
        return {"head": [head_name(layer, head) for layer, head in zip(layers, heads, strict=True)], **columns}


def _or_infinite(values: np.ndarray) -> np.ndarray:
    """`values`, with infinity in place of zeros, to divide by."""
    return np.where(values > 0, values, np.inf)
