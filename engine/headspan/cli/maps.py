"""The commands `segment` and `contrast`: maps of texts over images, as a picture and as a table."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from headspan.cli.commands import Section
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import ABOVE_ZERO, ZERO_OR_MORE, Real
from headspan.cli.progress import ProgressPrinter
from headspan.cli.query_flags import chosen_heads_of, chosen_image, given_text, heads_flags, source_flags
from headspan.cli.shared_flags import refuse_picture, store_argument
from headspan.cli.terminal import say, tell
from headspan.errors import SettingsError
from headspan.explore.maps.map_result import TextMaps
from headspan.explore.maps.segments import contrast, segment
from headspan.explore.query.whole_pictures import whole_pictures
from headspan.plots.colours import STRONGEST
from headspan.store.reader import Store

_DETAILS = (
    "A patch's value is its contribution, through the heads, to the dot product of the text and the unit embedding. "
    "Images of a store without patches, and image files, pass through the model once; what it computes is kept in the "
    "user's cache folder."
)


def add_maps(section: Section) -> None:
    """Add `segment` and `contrast`."""
    command = section.add(
        "segment", _segment, 'headspan segment run.zarr --image a.jpg --text "a red car" --out map.png', _DETAILS
    )
    _image_flags(command)
    command.add_argument(
        "--text",
        type=given_text,
        action="append",
        required=True,
        metavar="TEXT",
        help="a text; may be repeated for maps side by side",
    )
    _other_flags(command)
    command = section.add(
        "contrast",
        _contrast,
        "headspan contrast run.zarr --image a.jpg --text cat --against dog --out b.png",
        f"The map is that of the first text minus that of the second. {_DETAILS}",
    )
    _image_flags(command)
    command.add_argument(
        "--text",
        type=given_text,
        required=True,
        metavar="TEXT",
        help="the text that positive values, in orange, speak for",
    )
    command.add_argument(
        "--against",
        type=given_text,
        required=True,
        metavar="TEXT",
        help="the text that negative values, in blue, speak for",
    )
    command.add_argument(
        "--centred", action="store_true", help="the mean over an image's patches is zero, to tell two objects apart"
    )
    _other_flags(command)


def _image_flags(command: Parser) -> None:
    store_argument(command)
    command.add_argument(
        "--image",
        action="append",
        required=True,
        dest="images",
        metavar="IMAGE",
        help="an index in the store, an image file, or the key of an image of the store; may be repeated",
    )


def _other_flags(command: Parser) -> None:
    heads_flags(command.add_argument_group("heads (default: all stored ones, summed)"), "map through")
    picture = command.add_argument_group("picture")
    picture.add_argument("--out", metavar="FILE", help="write the maps over the pictures as a PNG file")
    picture.add_argument(
        "--full",
        type=ABOVE_ZERO,
        metavar="VALUE",
        help="the value of full colour (default: 99 %% of the patches are below)",
    )
    picture.add_argument(
        "--threshold", type=ZERO_OR_MORE, default=0.0, metavar="VALUE", help="no colour for values nearer to zero"
    )
    picture.add_argument(
        "--opacity",
        type=Real(most=1.0, above=True),
        default=STRONGEST,
        metavar="SHARE",
        help=f"of full colour (default: {STRONGEST})",
    )
    picture.add_argument("--squares", action="store_true", help="draw patches as squares, without interpolation")
    source_flags(command.add_argument_group("model and images"))
    export_flags(command)


def _refuse_flags(flags: argparse.Namespace) -> None:
    """Raise HeadspanError for files and numbers that cannot be used, before any work is done."""
    only_export(flags)
    refuse_picture(flags.out)


def _segment(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    _refuse_flags(flags)
    store = Store(flags.store)
    images = [chosen_image(store, image) for image in flags.images]
    heads = chosen_heads_of(store, flags)
    maps = segment(store, images, flags.text, heads, progress, weights=flags.weights, shards=flags.shards)
    return _show(store, images, maps, flags, progress)


def _contrast(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    _refuse_flags(flags)
    if flags.text == flags.against:
        raise SettingsError(
            f"--text and --against are the same text, {flags.text!r}, whose contrast is zero; change one"
        )
    store = Store(flags.store)
    images = [chosen_image(store, image) for image in flags.images]
    heads = chosen_heads_of(store, flags)
    maps = contrast(
        *(store, images, flags.text, flags.against, heads, progress),
        centred=flags.centred,
        weights=flags.weights,
        shards=flags.shards,
    )
    return _show(store, images, maps, flags, progress)


def _show(
    store: Store, images: list[int | Path], maps: TextMaps, flags: argparse.Namespace, progress: ProgressPrinter
) -> int:
    """Write the picture and the tables; print a line for each map."""
    if flags.out is not None:
        pictures = whole_pictures(store, images, progress, shards=flags.shards)
        maps.to_png(
            flags.out,
            pictures,
            full=flags.full,
            threshold=flags.threshold,
            opacity=flags.opacity,
            squares=flags.squares,
        )
    progress.close()
    if flags.out is not None:
        tell(f"picture written to {flags.out}")
    if export(flags, maps):
        return 0
    say(f"through {maps.heads_in_words()}")
    for name, of_image in zip(maps.names, maps.maps, strict=True):
        for words, values in zip(maps.words(), of_image, strict=True):
            row, column = np.unravel_index(np.abs(values).argmax(), values.shape)
            say(
                f"{name}, {words}: patches sum to {values.sum():+.3g}; the strongest adds {values[row, column]:+.3g} "
                f"(row {row}, column {column})"
            )
    return 0
