"""Maps of texts over images as a result: arrays, a table, a plot, and a PNG with the maps over the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32
from PIL import Image as Pil

from headspan.errors import SettingsError, counted, shortened
from headspan.explore.maps.centred_maps import FULL_COLOUR
from headspan.explore.query.whole_pictures import WholePicture
from headspan.frames import Tabular
from headspan.head_names import head_name
from headspan.plots.colours import STRONGEST
from headspan.plots.overlays import Legend, Row, Style, draw_overlays
from headspan.plots.png import write_png
from headspan.store.head_space import Head

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A longer text is shortened in titles and lines.
_SHOWN_LETTERS = 100
# Titles name this many heads.
_NAMED_HEADS = 6
_UNIT = "what a patch adds to the dot product of the text and the unit embedding"
_DIFFERENCE = "what a patch adds to the dot product of the unit embedding and the first text minus the second one"


@dataclass(frozen=True, slots=True, repr=False)
class TextMaps(Tabular):
    """Maps of texts over images through some heads; with `against`, each is the difference of two texts' maps."""

    # Indices of stored images, None for others; and their keys, or the names of their files.
    images: tuple[int | None, ...]
    names: tuple[str, ...]
    # None for a vector. `against` holds the texts whose maps were subtracted.
    texts: tuple[str | None, ...]
    against: tuple[str | None, ...] | None
    heads: tuple[Head, ...]
    # How many heads the store holds.
    stored_heads: int
    # What each patch contributes to the dot product of the text and the unit embedding.
    maps: Float32[np.ndarray, "image text rows columns"]
    # Whether each map is minus its mean over the patches.
    centred: bool = False

    def __repr__(self) -> str:
        images, _, rows, columns = self.maps.shape
        words = ", ".join(self.words())
        return (
            f"TextMaps({words} through {self.heads_in_words()}: {counted(images, 'image')}, {rows} × {columns} patches)"
        )

    @property
    def full(self) -> float:
        """The value of full colour in drawings: 99 % of all patches of all maps are nearer to zero."""
        sizes = np.abs(self.maps)
        # Maps may be zero nearly everywhere, or everywhere.
        return float(np.quantile(sizes, FULL_COLOUR)) or float(sizes.max()) or 1.0

    def plot(
        self,
        pictures: Sequence[WholePicture | None] | None = None,
        *,
        ax: Axes | Sequence[Axes] | None = None,
        colorbar: bool = True,
    ) -> list[Axes]:
        """Draw each map as patches over what the model sees of `pictures`, in grey, and return the maps' axes.

        Orange is for the text and blue against it, on one scale. `pictures` are those of
        `explore.whole_pictures(store, images)`. Without `ax`, which is one of matplotlib's axes for each map, a new
        pyplot figure is made. Needs matplotlib. Raises SettingsError if there are not as many pictures as images, or
        axes as maps.
        """
        from headspan.plots.maps import draw_maps

        self._check(pictures)
        images, texts = self.maps.shape[:2]
        seen = None
        if pictures is not None and all(picture is not None for picture in pictures):
            seen = [picture.seen_pixels() for picture in pictures if picture is not None for _ in range(texts)]
        return draw_maps(
            self.maps.reshape(images * texts, *self.maps.shape[2:]),
            0.0,
            self.full,
            names=[f"{name}: {word}" if texts > 1 else name for name in self.names for word in self.words()],
            title=self._title(),
            pictures=seen,
            ax=ax,
            colorbar=colorbar,
            unit=self._unit(),
            faintest=0.0,
        )

    def draw(
        self,
        pictures: Sequence[WholePicture | None] | None = None,
        *,
        full: float | None = None,
        threshold: float = 0.0,
        opacity: float = STRONGEST,
        squares: bool = False,
        side: int = 320,
    ) -> Pil.Image:
        """The maps over their whole pictures, each where the model looked: a row for each image, with a scale below.

        Orange is for the text, blue against it, and zero has no colour. `pictures` are as in `plot`; an image without
        one has a white page. Full colour is at ±`full`, by default the property of that name; patches nearer to zero
        than `threshold` have no colour. `squares` draws patches as squares instead of interpolating between their
        centres; `side` is the longer side of each picture in pixels. Needs no matplotlib. Raises SettingsError if
        there are not as many pictures as images, or a number is out of range.
        """
        self._check(pictures)
        refuse_style(full, threshold, opacity, side)
        rows = []
        for place, name in enumerate(self.names):
            picture = None if pictures is None else pictures[place]
            if picture is None:
                rows.append(Row(name, None, (0.0, 0.0, 1.0, 1.0), self.maps[place]))
            else:
                rows.append(Row(name, picture.pixels, picture.seen, self.maps[place]))
        positive, negative = "for the text →", "← against the text"
        if self.against is not None:
            positive, negative = f"{_quoted(self.texts[0])} →", f"← {_quoted(self.against[0])}"
        # The title names a single text, for which a column may be too narrow.
        texts = tuple(self.words()) if len(self.texts) > 1 else ("",)
        legend = Legend(self._title(), texts, positive, negative, self._unit())
        style = Style(self.full if full is None else full, threshold, opacity, squares, side)
        return draw_overlays(rows, legend, style)

    def to_png(self, path: str | Path, pictures: Sequence[WholePicture | None] | None = None, **style: Any) -> None:
        """Write what `draw` returns as a PNG file, replacing an earlier one; `style` are the keywords of `draw`.

        Raises StoreError if the file cannot be written.
        """
        write_png(path, self.draw(pictures, **style))

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        places = np.indices(self.maps.shape).reshape(4, -1).tolist()
        image, text, row, column = places
        columns: dict[str, Sequence[Any]] = {
            "image": [self.images[each] for each in image],
            "name": [self.names[each] for each in image],
            "text": [self.texts[each] for each in text],
        }
        if self.against is not None:
            columns["against"] = [self.against[each] for each in text]
        return {**columns, "row": row, "column": column, "value": self.maps.ravel().tolist()}

    def _check(self, pictures: Sequence[WholePicture | None] | None) -> None:
        if pictures is not None and len(pictures) != len(self.names):
            raise SettingsError(
                f"{counted(len(pictures), 'picture')} for {counted(len(self.names), 'image')}: give one for each"
            )

    def words(self) -> list[str]:
        """Each map of an image in words: its text, and the text that it is against."""
        if self.against is None:
            return [_quoted(text) for text in self.texts]
        return [f"{_quoted(a)} against {_quoted(b)}" for a, b in zip(self.texts, self.against, strict=True)]

    def heads_in_words(self) -> str:
        """The heads by name if they are few, else how many."""
        if len(self.heads) <= _NAMED_HEADS:
            return ", ".join(head_name(layer, head) for layer, head in self.heads)
        if len(self.heads) == self.stored_heads:
            return f"all {len(self.heads)} stored heads"
        return counted(len(self.heads), "head")

    def _title(self) -> str:
        return f"{self.words()[0] if len(self.texts) == 1 else 'Maps'} through {self.heads_in_words()}"

    def _unit(self) -> str:
        unit = _UNIT if self.against is None else _DIFFERENCE
        return f"{unit}, minus the mean of the image" if self.centred else unit


def _quoted(text: str | None) -> str:
    return "a vector" if text is None else f"“{shortened(text, _SHOWN_LETTERS)}”"


def refuse_style(full: float | None, threshold: float, opacity: float, side: int = 320) -> None:
    """Raise SettingsError for a number that `TextMaps.draw` cannot use; callable before maps are computed."""
    if full is not None and not 0 < full < np.inf:
        raise SettingsError(f"full colour at {full}: give a number above 0")
    if not 0 <= threshold < np.inf:
        raise SettingsError(f"threshold {threshold}: give a number from 0")
    if not 0 < opacity <= 1:
        raise SettingsError(f"opacity {opacity}: give a number above 0 and up to 1")
    if not 16 <= side <= 4096:
        raise SettingsError(f"pictures of {side} pixels: give 16 to 4096")
