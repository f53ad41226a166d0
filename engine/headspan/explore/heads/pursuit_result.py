"""The words that explain each head, and the ranking of the heads: what `head_pursuit` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from headspan.config import as_ranges
from headspan.errors import SettingsError, counted
from headspan.frames import Tabular
from headspan.spans.nulls import Chance, HeadsAbove, chance_columns, chance_of, heads_above
from headspan.spans.result import place_of
from headspan.store.head_space import Head

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    # What as many texts explain that are drawn at random from the pool of that name; None without such a pool.
    against: str | None = None
    others: Float[np.ndarray, "draw layer head round"] | None = None

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

    def beside_others(self, layer: int, head: int, count: int | None = None) -> Chance:
        """One head's explained share beside that of as many random texts of the pool `against`; else as `chance`."""
        place, best = self._at(layer, head), self.best[self._at(layer, head)][:count].astype(np.float32)
        if self.others is None:
            raise SettingsError("this head pursuit has no other texts beside the list; call head_pursuit with against=")
        return chance_of(self.explained[place][:count], self.others[(slice(None), *place)][:, :count], best)

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
        if self.others is not None:
            beside = [self.beside_others(*head) for head in heads]
            for name in ("mean", "low", "high", "p"):
                columns[f"others_{name}"] = [getattr(each, name) for each in beside]
        most = self.explained.shape[-1]
        for number in range(most):
            texts = [self.texts(*head) for head in heads]
            columns[f"word_{number + 1}"] = [each[number] if number < len(each) else None for each in texts]
            columns[f"explained_{number + 1}"] = [self.explained_by(*head, number + 1) for head in heads]
        return columns
