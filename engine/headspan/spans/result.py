"""The texts that TEXTSPAN chose for every head of a store, and how they are read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from headspan.config import as_ranges
from headspan.errors import SettingsError, counted
from headspan.frames import Tabular
from headspan.head_names import head_name
from headspan.spans.nulls import Chance, HeadsAbove, SpanNull, chance_columns, chance_of, heads_above
from headspan.spans.stability import FIRST_TEXTS, few_images
from headspan.spans.twin import BesideTwin, beside_twin
from headspan.store.lineage import Lineage
from headspan.store.selection import Selection
from headspan.texts.pool import Pool

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The numbers of texts at which shares are tabulated, beside that of all texts.
SHOWN_COUNTS = (1, 5, 20)
_DIMS = ("layer", "head", "text")


@dataclass(frozen=True, slots=True, repr=False)
class HeadSpans(Tabular):
    """The text span of every described head: texts of a pool, in the order in which TEXTSPAN chose them.

    The arrays' first axis follows `layers`, which are the model's layer numbers; methods take these numbers.
    """

    run: str
    # Identifies the result, so that labels and scores say which one they were made from.
    lineage: Lineage | None = field(default=None, kw_only=True, repr=False, compare=False)
    pool: Pool
    layers: tuple[int, ...]
    # Places in the pool; -1 if no variance was left to explain.
    indices: Int[np.ndarray, "layer head text"]
    # Cumulative share of the variance of the head's contributions, from 0 to 1.
    explained: Float[np.ndarray, "layer head text"]
    # How many images, of how many stores, the texts were chosen over.
    images: int
    stores: int = 1
    # What a pool without meaning explains; None for a run without draws, or of an earlier version.
    null: SpanNull | None = None
    # The number of directions in which texts are compared, and `(tr Σ)² / tr Σ²` of the contributions' covariance: how
    # many directions share their variance. None for runs of earlier versions.
    ranks: Int[np.ndarray, "layer head"] | None = None
    effective_rank: Float[np.ndarray, "layer head"] | None = None
    # The mean share of the first five texts that stay when images are resampled; NaN for a head without texts,
    # and for a pool without other texts.
    stability: Float[np.ndarray, "layer head"] | None = None
    # The same of a store with random weights, if one was named; it is not saved with the run.
    twin: HeadSpans | None = field(default=None, kw_only=True, repr=False, compare=False)
    # The images that the texts were chosen over; None for all images of the stores.
    selection: Selection | None = field(default=None, kw_only=True, repr=False, compare=False)

    def __repr__(self) -> str:
        layers, heads, texts = self.indices.shape
        return (
            f"HeadSpans({self.run!r}: {counted(texts, 'text')} for each of {counted(layers * heads, 'head')}, layers "
            f"{as_ranges(self.layers)}, over {self.over})"
        )

    @property
    def over(self) -> str:
        """The images that the texts were chosen over, in words: "2,314 images whose caption has the word dog"."""
        return counted(self.images, "image") if self.selection is None else self.selection.description

    def texts(self, layer: int, head: int, count: int | None = None) -> list[str]:
        """The first `count` texts of one head, or all. Raises SettingsError if the head is not described."""
        return [self.pool.texts[index] for index in self.places(layer, head, count)]

    def places(self, layer: int, head: int, count: int | None = None) -> list[int]:
        """The places in the pool of the first `count` texts of one head, or of all; errors as in `texts`."""
        return [index for index in self.indices[self._at(layer, head)][:count].tolist() if index >= 0]

    def explained_by(self, layer: int, head: int, count: int | None = None) -> float:
        """Share of the variance of one head's contributions that its first `count` texts explain, or all."""
        return float(self.explained[self._at(layer, head)][:count][-1])

    def chance(self, layer: int, head: int, count: int = FIRST_TEXTS) -> Chance:
        """One head's explained share at its first `count` texts, or at all if it has fewer, beside chance.

        Chance is a meaningless pool: the pool's vectors, rotated at random in the joint space. Raises SettingsError if
        the head is not described, or if the run has no draws.
        """
        place, null = self._at(layer, head), self._null()
        count = min(count, self.explained.shape[-1])
        return chance_of(
            self.explained[place][:count], null.explained[(slice(None), *place)][:, :count], null.ceiling[place][:count]
        )

    def above_chance(self, count: int = FIRST_TEXTS, level: float = 0.05) -> HeadsAbove:
        """How many heads explain more at `count` texts than chance at `level`, beside a meaningless pool's count.

        Raises SettingsError if the run has no draws, or if `level` is not between 0 and 1.
        """
        null = self._null().explained
        last = min(count, self.explained.shape[-1]) - 1
        return heads_above(self.explained[..., last].ravel(), null[..., last].reshape(len(null), -1), last + 1, level)

    def excess(self, count: int = FIRST_TEXTS) -> Float[np.ndarray, "layer head"]:
        """Each head's explained share at `count` texts, minus the mean of the draws; errors as in `above_chance`."""
        drawn = self._null().explained
        last = min(count, self.explained.shape[-1]) - 1
        above: Float[np.ndarray, "layer head"] = self.explained[..., last] - drawn[..., last].mean(axis=0, dtype=float)
        return above

    def beside_twin(self, count: int = FIRST_TEXTS, level: float = 0.05) -> BesideTwin:
        """The heads beside those of the twin at `count` texts: above chance, and their excess.

        Raises SettingsError as `above_chance` does, and if the run was made without a twin.
        """
        if self.twin is None:
            raise SettingsError(f"textspan run {self.run!r} was made without a twin; call textspan with twin=")
        own, twin = (each.above_chance(count, level) for each in (self, self.twin))
        return beside_twin(own, twin, self.excess(count), self.twin.excess(count))

    def too_few_images(self) -> str | None:
        """A sentence if the images are too few for the heads' texts to mean much; None otherwise, or if not recorded.

        They are too few if they are fewer than ten times the largest rank of a head, or if half of the heads keep less
        than half of their first five texts when images are resampled.
        """
        return None if self.ranks is None else few_images(self.images, self.ranks, self.stability)

    def by_head(self) -> HeadTable:
        """A table with a row for each head: its shares at 1, 5, 20 and all texts beside chance, rank, stability."""
        return HeadTable(self)

    def plot(self, layer: int | None = None, head: int | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw every head's excess over chance as a grid, or one head's explained share by number of texts.

        In the grid, heads that are not above chance (p > 0.05) are grey and have a ring. The curve stands beside the
        draws' mean and 95 % range, and the ceiling. A run without draws has the shares alone. `ax` are matplotlib's
        axes to draw on; without it, a new pyplot figure is made. Returns the axes. Needs matplotlib. Raises
        SettingsError if the head is not described, or if only one of `layer` and `head` is given.
        """
        from headspan.spans.drawing import draw_grid, draw_head

        if layer is None and head is None:
            first, known = min(FIRST_TEXTS, self.explained.shape[-1]), self.null is not None
            chances = [self.chance(*each) for each in self.heads()] if known else None
            above = self.above_chance() if known else None
            return draw_grid(self.layers, self.explained[..., first - 1], chances, above, first, ax)
        if layer is None or head is None:
            raise SettingsError(f"layer {layer}, head {head}: give both for one head's curve, or neither for the grid")
        own = self.explained[self._at(layer, head)]
        counts = None if self.null is None else [self.chance(layer, head, count + 1) for count in range(len(own))]
        return draw_head(head_name(layer, head), self.texts(layer, head), own, counts, ax)

    def _null(self) -> SpanNull:
        if self.null is None:
            raise SettingsError(
                f"the textspan run {self.run!r} has no draws of chance; run headspan textspan again with --draws and "
                "another --run, or with --overwrite"
            )
        return self.null

    def heads(self) -> Iterator[tuple[int, int]]:
        """Layer and head of every described head, in order."""
        for layer in self.layers:
            for head in range(self.indices.shape[1]):
                yield layer, head

    def _at(self, layer: int, head: int) -> tuple[int, int]:
        return place_of(self.layers, self.indices.shape[1], layer, head)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = [
            (layer, head, number, index)
            for layer, head in self.heads()
            for number, index in enumerate(self.places(layer, head), start=1)
        ]
        concepts = self.pool.concepts
        return {
            "layer": [layer for layer, *_ in rows],
            "head": [head for _, head, *_ in rows],
            "number": [number for *_, number, _ in rows],
            "text": [self.pool.texts[index] for *_, index in rows],
            **({} if concepts is None else {"concept": [concepts[index] for *_, index in rows]}),
            "explained": [self.explained_by(layer, head, number) for layer, head, number, _ in rows],
            **({} if self.null is None else chance_columns([self.chance(*row[:3]) for row in rows])),
            **self._twin_columns([number for *_, number, _ in rows]),
        }

    def _twin_columns(self, counts: Sequence[int], suffix: str = "") -> dict[str, list[float]]:
        """The excess of the twin's heads beside rows at `counts` texts: mean and 95 % range over its heads."""
        if self.twin is None or self.null is None:
            return {}
        at = {count: self.beside_twin(count) for count in set(counts)}
        return {
            f"twin_excess_{name}{suffix}": [getattr(at[count], value) for count in counts]
            for name, value in (("mean", "twin_excess"), ("low", "low"), ("high", "high"))
        }

    def _shown_columns(self) -> Mapping[str, Sequence[Any]]:
        heads = list(self.heads())
        first = min(FIRST_TEXTS, self.explained.shape[-1])
        columns: dict[str, Sequence[Any]] = {
            "head": [head_name(layer, head) for layer, head in heads],
            "first texts": ["; ".join(self.texts(*head, 3)) or None for head in heads],
        }
        if self.null is not None:
            chances = [self.chance(*head) for head in heads]
            columns |= {
                f"excess at {first}": [chance.excess for chance in chances],
                f"explained at {first}": [chance.explained for chance in chances],
                "by chance": [f"{chance.low:.3f} to {chance.high:.3f}" for chance in chances],
                "p": [chance.p for chance in chances],
            }
        if self.stability is not None:
            columns["stability"] = [float(self.stability[self._at(*head)]) for head in heads]
        return {**columns, "explained": [self.explained_by(*head) for head in heads]}


@dataclass(frozen=True, slots=True, repr=False)
class HeadTable(Tabular):
    """The heads of a TEXTSPAN run, one row each. Columns end with the number of texts, as in `excess_5`."""

    spans: HeadSpans

    def __repr__(self) -> str:
        return f"HeadTable({self.spans!r})"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        spans, heads = self.spans, list(self.spans.heads())
        most = spans.explained.shape[-1]
        columns: dict[str, Sequence[Any]] = {
            "layer": [layer for layer, _ in heads],
            "head": [head for _, head in heads],
        }
        for count in sorted({number for number in SHOWN_COUNTS if number < most} | {most}):
            columns[f"explained_{count}"] = [spans.explained_by(*head, count) for head in heads]
            if spans.null is not None:
                columns |= chance_columns([spans.chance(*head, count) for head in heads], f"_{count}")
            columns |= spans._twin_columns([count] * len(heads), f"_{count}")
        for name in ("ranks", "effective_rank", "stability"):
            values = getattr(spans, name)
            if values is not None:
                columns["rank" if name == "ranks" else name] = values.ravel().tolist()
        return columns


def place_of(layers: Sequence[int], heads: int, layer: int, head: int) -> tuple[int, int]:
    """The place of a head in arrays whose axes are `layers` and heads. Raises SettingsError if it is not in them."""
    if layer not in layers or not 0 <= head < heads:
        raise SettingsError(
            f"layer {layer}, head {head}: not in this result; it has layers {as_ranges(layers)} with heads 0 to "
            f"{heads - 1}"
        )
    return layers.index(layer), head
