"""The command `nearest`: the images nearest to an image or a text, as a table and as a strip of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from headspan.cli.commands import Section
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.numbers import FROM_0, FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.query_flags import chosen_heads_of, chosen_image, heads_flags, image_flag, source_flags, text_flag
from headspan.cli.shared_flags import refuse_picture, store_argument
from headspan.cli.tables import print_table
from headspan.cli.terminal import say, tell
from headspan.errors import SettingsError, shortened
from headspan.explore.nearest.neighbours import Neighbours, nearest_to_image, nearest_to_vector
from headspan.explore.nearest.property_neighbours import (
    PropertyNeighbours,
    in_words,
    property_neighbours,
    property_neighbours_of_vector,
)
from headspan.explore.nearest.strips import neighbour_strips
from headspan.plots.png import write_png
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.texts.vectors import text_vectors

# Letters of a caption in a table.
_CAPTION = 70


def add_nearest(section: Section) -> None:
    """Add `nearest`."""
    command = section.add(
        "nearest",
        _nearest,
        "headspan nearest run.zarr --image photo.jpg --label colours --out strip.png",
        "Scores are dot products of the query with the mean of each image's contributions through the heads, divided "
        "by the length of its embedding; without --head and --label they are cosines of whole embeddings. With --label "
        "the neighbours through the whole embedding and through as many random heads stand beside them.",
    )
    store_argument(command)
    query = command.add_argument_group("query")
    image_flag(query)
    text_flag(query)
    heads = command.add_argument_group("heads")
    heads_flags(heads, "search")
    heads.add_argument("--draws", type=FROM_0, default=3, metavar="N", help="sets of random heads with --label (3)")
    heads.add_argument("--seed", type=FROM_0, default=0, metavar="N", help="the seed of the random heads (0)")
    command.add_argument("--count", type=FROM_1, default=10, metavar="N", help="how many neighbours (10)")
    command.add_argument("--out", metavar="FILE", help="write the pictures, the query first, as a PNG")
    source_flags(command.add_argument_group("where things are now"))
    export_flags(command)


def _nearest(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    refuse_picture(flags.out)
    if (flags.image is None) == (flags.text is None):
        raise SettingsError("nearest needs a query: give either --image or --text")
    store = Store(flags.store)
    heads = chosen_heads_of(store, flags)
    image = None if flags.image is None else chosen_image(store, flags.image)
    found = _found(store, flags, image, heads, progress)
    if flags.out is not None:
        page = neighbour_strips(found, image, flags.text, progress, shards=flags.shards)
        progress.close()
        write_png(flags.out, page)
        tell(f"picture written to {flags.out}")
    progress.close()
    export(flags, found)
    if not alone:
        _print(store, image, found, heads)
    return 0


def _found(
    store: Store,
    flags: argparse.Namespace,
    image: int | Path | None,
    heads: Sequence[Head] | None,
    progress: ProgressPrinter,
) -> Neighbours | PropertyNeighbours:
    if image is None:
        (vector,) = text_vectors(store, [flags.text], progress, weights=flags.weights)
        if flags.label is None:
            return nearest_to_vector(store, vector, heads, flags.count)
        return property_neighbours_of_vector(
            store, vector, flags.label, flags.count, flags.seed, name=flags.text, draws=flags.draws, run=flags.label_run
        )
    if flags.label is None:
        return nearest_to_image(store, image, heads, flags.count, progress, weights=flags.weights)
    return property_neighbours(
        store,
        image,
        flags.label,
        flags.count,
        flags.seed,
        progress,
        draws=flags.draws,
        run=flags.label_run,
        weights=flags.weights,
    )


def _print(
    store: Store, image: int | Path | None, found: Neighbours | PropertyNeighbours, heads: Sequence[Head] | None
) -> None:
    if isinstance(image, int):
        (sample,) = store.few_samples([image], ["key", "caption"])
        say(f"query: {_captioned(sample['key'], sample['caption'])}")
    if isinstance(found, Neighbours):
        _print_neighbours(found, heads)
    else:
        _print_side_by_side(found)


def _print_neighbours(found: Neighbours, heads: Sequence[Head] | None) -> None:
    say(f"through {'the whole embedding' if heads is None else in_words(heads)}")
    captioned = any(found.captions)
    rows = zip(found.images.tolist(), found.keys, found.scores, found.captions, strict=True)
    print_table(
        [
            ("", "image", "key", "score", *(["caption"] if captioned else [])),
            *(
                (str(rank), str(image), key, f"{score:.4g}", *([_shortened(caption)] if captioned else []))
                for rank, (image, key, score, caption) in enumerate(rows, 1)
            ),
        ],
        words=int(captioned),
    )


def _print_side_by_side(found: PropertyNeighbours) -> None:
    for each in found.columns:
        say(each.title)
    table = found._columns()
    by_column: dict[str, list[tuple[str, str]]] = {each.name: [] for each in found.columns}
    captions: dict[str, dict[str, str]] = {each.name: {} for each in found.columns}
    for name, key, score, caption in zip(*(table[of] for of in ("through", "key", "score", "caption")), strict=True):
        by_column[name].append((key, f"{score:.4g}"))
        captions[name][key] = caption
    head = ("", *(cell for name in by_column for cell in (name, "score")))
    lines = zip(*by_column.values(), strict=True)
    print_table([head, *((str(rank), *(x for pair in line for x in pair)) for rank, line in enumerate(lines, 1))])
    # Those of the random heads are in the exported table.
    for name in ("property", "embedding"):
        if any(captions[name].values()):
            say(f"captions, {name}:")
            for key, caption in captions[name].items():
                say(f"  {_captioned(key, caption)}")


def _captioned(key: str, caption: str | None) -> str:
    return key if caption is None else f"{key}: {_shortened(caption)}"


def _shortened(caption: str | None) -> str:
    return shortened(caption, _CAPTION) if caption else "-"
