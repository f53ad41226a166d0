"""Maps of one head and text over images, all on one scale; patches within the threshold have no colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, UInt8

from headspan.errors import SettingsError, counted
from headspan.plots.axes import fitted, plain_text, pyplot, size_of
from headspan.plots.colours import FAINTEST, PICTURE_OPACITY, map_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Images side by side, the side of each in inches, and steps of the scale's colours.
_COLUMNS, _SIDE, _STEPS = 6, 1.45, 511
# Font size of names and of the scale.
_SMALL = 8.0
# The ITU-R BT.601 weights of grey, which browsers and Pillow use too.
_GREY = (0.299, 0.587, 0.114)


def draw_maps(
    deviations: Float32[np.ndarray, "image rows columns"],
    threshold: float,
    full: float,
    *,
    names: Sequence[str],
    title: str,
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    colorbar: bool = True,
    unit: str = "standard deviations from the head’s mean map",
    faintest: float = FAINTEST,
) -> list[Axes]:
    """Draw each map over its picture in grey, or over nothing; returns the axes with the maps, one for each image.

    Without `ax`, a new pyplot figure has the maps, and above each the picture in colour; with `ax`, one for each image,
    only the maps are drawn. `unit` labels the scale, and `faintest` is the opacity at the threshold. Raises
    HeadspanError if matplotlib is not installed, and SettingsError if there are not as many pictures or axes as images.
    """
    pyplot()
    images = len(deviations)
    if pictures is not None and len(pictures) != images:
        raise SettingsError(f"{counted(len(pictures), 'picture')} for {counted(images, 'image')}: give one for each")
    if ax is None:
        titled, shown = _new_axes(images, pictures is not None, deviations.shape[1] / deviations.shape[2], title)
        for place, picture in enumerate(pictures or ()):
            titled[place].imshow(picture)
    else:
        shown = list(ax) if isinstance(ax, Sequence | np.ndarray) else [ax]
        titled = shown
        if len(shown) != images:
            raise SettingsError(f"ax has {len(shown):,} for {counted(images, 'image')}: give one for each")
    for place, axes in enumerate(shown):
        colours = map_colours(deviations[place], threshold, full, faintest)
        _draw_map(axes, colours, None if pictures is None else pictures[place])
        width, _ = size_of(titled[place])
        plain_text(titled[place].set_title(fitted(names[place], width, _SMALL), size=_SMALL))
    if colorbar:
        _draw_scale(shown, threshold, full, unit, faintest)
    return shown


def _new_axes(images: int, with_pictures: bool, ratio: float, title: str) -> tuple[list[Axes], list[Axes]]:
    """The axes of a new figure for each image's name, and for its map."""
    columns = min(_COLUMNS, images)
    rows = -(-images // columns)
    each = 2 if with_pictures else 1
    figure, axes = pyplot().subplots(
        rows * each,
        columns,
        figsize=(max(3.6, _SIDE * columns), rows * (each * _SIDE * ratio + 0.2) + 0.9),
        layout="constrained",
        squeeze=False,
    )
    figure.get_layout_engine().set(h_pad=0.02, w_pad=0.03, hspace=0.02, wspace=0.02)
    for unused in axes.ravel():
        unused.set_axis_off()
    plain_text(figure.suptitle(fitted(title, figure.get_figwidth(), 10.0), size="medium", ha="left", x=0.01))
    of_names, of_maps = axes[0::each].ravel(), axes[each - 1 :: each].ravel()
    return list(of_names[:images]), list(of_maps[:images])


def _draw_map(
    ax: Axes,
    colours: UInt8[np.ndarray, "rows columns rgba"],
    picture: UInt8[np.ndarray, "height width 3"] | None,
) -> None:
    rows, columns = colours.shape[:2]
    height, width = (rows, columns) if picture is None else picture.shape[:2]
    grey = np.zeros((1, 1)) if picture is None else picture @ np.array(_GREY) / 255
    white = 1 - PICTURE_OPACITY * (1 - grey) if picture is not None else grey + 0.95
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(white, cmap="gray", vmin=0, vmax=1, extent=extent)
    ax.imshow(colours, extent=extent, interpolation="nearest")
    ax.set_axis_off()


def _draw_scale(shown: Sequence[Axes], threshold: float, full: float, unit: str, faintest: float) -> None:
    """One scale for all maps, with the colours that they have over white paper."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    steps = np.linspace(-full, full, _STEPS, dtype=np.float32)
    colours = map_colours(steps, threshold, full, faintest) / 255
    over_white = colours[:, 3:] * colours[:, :3] + (1 - colours[:, 3:]) * 0.95
    figure = shown[0].get_figure()
    assert figure is not None
    scale = ScalarMappable(Normalize(-full, full), ListedColormap(over_white))
    bar = figure.colorbar(scale, ax=shown, location="bottom", fraction=0.05, pad=0.03, aspect=45, shrink=0.8)
    within = f"no colour within ±{threshold:.1f}" if threshold else "0"
    end = f"{full:.1f}" if threshold else f"{full:.2g}"
    bar.set_ticks((-full, 0, full), labels=[f"−{end}", within, f"+{end}"], size=_SMALL)
    bar.set_label(unit, size=_SMALL)
    bar.outline.set_visible(False)
