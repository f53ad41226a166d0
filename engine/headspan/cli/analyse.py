"""The commands `textspan` and `report`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from headspan.cli.commands import Section
from headspan.cli.exports import Table, export, export_flags, only_export
from headspan.cli.head_flag import chosen_heads, head_flag
from headspan.cli.magnitudes import variance_in_words
from headspan.cli.numbers import FROM_0, FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.saving import saved_or_not, tell_unsaved
from headspan.cli.selection_flags import selected, selection_flags
from headspan.cli.selection_table import print_beside_store
from headspan.cli.shared_flags import overwrite_flag, run_flag, shards_flag, store_argument, weights_flag
from headspan.cli.terminal import say, tell
from headspan.config import parse_layers
from headspan.errors import StoreError, counted, percent
from headspan.explore.beside_store import beside_store
from headspan.head_names import head_name
from headspan.report.collect import write_report
from headspan.spans.nulls import DRAWS, SEED
from headspan.spans.over_store import HeadSpans, textspan
from headspan.spans.twin import twin_command
from headspan.store.magnitudes import Magnitudes
from headspan.store.reader import Store
from headspan.user_paths import expand_user

_TEXTS_SHOWN = 5


def add_textspan(section: Section) -> None:
    """Add `textspan`."""
    command = section.add(
        "textspan",
        _textspan,
        "headspan textspan run.zarr --texts-per-head 60",
        "With --keys, --words or --class, heads are described over some images only, beside the whole store, and the "
        "result is saved only if --run names it.",
    )
    store_argument(command)
    command.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="STORE",
        help="more stores of the same model; heads are described over the images of all stores",
    )
    command.add_argument(
        "--layers", help="layers to describe, as in all, last4, 8-11 or 0,3,8-11 (default: every layer in the store)"
    )
    texts = command.add_argument_group("texts")
    texts.add_argument(
        "--texts",
        metavar="POOL",
        default="general",
        help="the pool of texts: general or world, which headspan includes, or a file with one text or "
        "text<TAB>concept per line (default: general)",
    )
    texts.add_argument(
        "--texts-per-head", type=FROM_1, metavar="N", default=60, help="texts for each head (default: %(default)s)"
    )
    texts.add_argument(
        "--rank",
        type=FROM_1,
        metavar="N",
        default=80,
        help="principal directions of a head's contributions in which texts are compared (default: %(default)s)",
    )
    weights_flag(texts)
    selection_flags(command)
    chance = command.add_argument_group("chance")
    chance.add_argument(
        "--draws",
        type=FROM_0,
        metavar="N",
        default=DRAWS,
        help="how often the pool is rotated at random, which takes its meaning, to see what chance explains; 0 draws "
        "none (default: %(default)s)",
    )
    chance.add_argument(
        "--twin",
        metavar="STORE",
        help="a store of the same images from the same architecture with random weights (precompute --pretrained "
        "random:0), whose heads are described too, to compare with",
    )
    chance.add_argument(
        "--seed", type=FROM_0, metavar="N", default=SEED, help="seed of the draws (default: %(default)s)"
    )
    result = command.add_argument_group("result")
    run_flag(result)
    overwrite_flag(result, "labels and scores")
    head_flag(result)
    export_flags(command)


def add_report(section: Section) -> None:
    """Add `report`."""
    command = section.add("report", _report, "headspan report run.zarr --out report.html")
    store_argument(command)
    command.add_argument(
        "--out", metavar="FILE", help="the file to write (default: STORE-report.html beside the store)"
    )
    command.add_argument(
        "--heads",
        metavar="HEADS",
        help="heads with a section of their own, as in L5.H1,L6.* or last4 or best20 (default: every described head)",
    )
    shards_flag(command)
    run_flag(command)


def _textspan(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    store = Store(flags.store)
    layers = None if flags.layers is None else parse_layers(flags.layers, store.all_layers)
    heads = chosen_heads(flags.heads, store.layers if layers is None else layers, store.heads_per_layer)
    also = [Store(path) for path in flags.also]
    twin = None if flags.twin is None else _twin(store, flags.twin)
    selection = selected(store, flags, progress)
    given = (flags.texts, flags.texts_per_head, layers, flags.rank, flags.run_name)
    save = selection is None or flags.run_name is not None
    spans, unsaved = saved_or_not(
        lambda: textspan(
            store,
            *given,
            progress,
            also,
            flags.overwrite,
            weights=flags.weights,
            draws=flags.draws,
            seed=flags.seed,
            save=save,
            twin=twin,
            images=selection,
        )
    )
    progress.close()
    magnitudes = store.magnitudes(images=selection)
    whole = None if selection is None else store.magnitudes()
    if not export(flags, Table.of_heads(spans, heads, magnitudes, whole)):
        for layer, head in heads:
            _print_head(spans, magnitudes, layer, head)
        if selection is not None:
            print_beside_store(beside_store(store, spans, weights=flags.weights))
        for sentence in _summary(spans):
            say(sentence)
    if unsaved is None and save:
        tell_or_say = tell if only_export(flags) else say
        tell_or_say(f"saved as textspan/{spans.run} in {store.path}")
    tell_unsaved(unsaved)
    return 0


def _twin(store: Store, path: str) -> Store:
    """The twin at `path`. Raises StoreError with the command that makes it, if nothing is there."""
    if not expand_user(path).exists():
        raise StoreError(f"{path}: there is no store; make the twin with {twin_command(store, path)}")
    return Store(path)


def _print_head(spans: HeadSpans, magnitudes: Magnitudes, layer: int, head: int) -> None:
    chance = None if spans.null is None else spans.chance(layer, head, _TEXTS_SHOWN)
    over = "" if chance is None else f"  {100 * chance.excess:+.1f} points over chance (p {chance.p:.3f})"
    if spans.twin is not None:
        beside = spans.beside_twin(_TEXTS_SHOWN)
        over += f", twin's heads {_points(beside.low, beside.high)}"
    say(f"{head_name(layer, head)}{over}  {variance_in_words(magnitudes, layer, head)}")
    for text in spans.texts(layer, head, _TEXTS_SHOWN):
        say(f"    {text}")
    say(f"  {_explained(spans, layer, head)}")


def _explained(spans: HeadSpans, layer: int, head: int) -> str:
    """What the first texts explain, beside chance where it was drawn, and last what all texts do."""
    most = spans.explained.shape[-1]
    first = min(_TEXTS_SHOWN, most)
    parts = [f"first {counted(first, 'text')}: {percent(spans.explained_by(layer, head, first))}"]
    rest = f"all {most}: {percent(spans.explained_by(layer, head))}"
    if spans.null is not None:
        chance, everything = spans.chance(layer, head, first), spans.chance(layer, head, most)
        parts[0] += f" (chance {percent(chance.low)} to {percent(chance.high)}, ceiling {percent(chance.ceiling)})"
        rest += f" (chance {percent(everything.mean)})"
    if spans.stability is not None:
        stability = spans.stability[spans.layers.index(layer), head]
        parts += [] if math.isnan(stability) else [f"stability {stability:.2f}"]
    return "; ".join([*parts, *([rest] if most > first else [])])


def _summary(spans: HeadSpans) -> list[str]:
    """Whether the images are few, and how many heads are above chance."""
    few = spans.too_few_images()
    sentences = [] if few is None else [few]
    if spans.null is not None:
        found = spans.above_chance(_TEXTS_SHOWN)
        sentences.append(
            f"{found.above} of {counted(found.heads, 'head')} above chance at {counted(found.texts, 'text')} (p ≤ "
            f"{found.level}); chance gives {found.expected:.1f}, at most {found.high:.0f} in 95 % of pools"
        )
    if spans.twin is not None:
        beside = spans.beside_twin(_TEXTS_SHOWN)
        sentences.append(
            f"twin with random weights: {beside.twin.above} of {counted(beside.twin.heads, 'head')} above chance; mean "
            f"excess {100 * beside.twin_excess:+.1f} points, here {100 * beside.excess:+.1f}; 95 % of its heads "
            f"{_points(beside.low, beside.high)}, and {beside.above} of {counted(beside.own.heads, 'head')} here above"
        )
    return sentences


def _points(low: float, high: float) -> str:
    """A range of shares in percentage points."""
    return f"{100 * low:+.1f} to {100 * high:+.1f} points"


def _report(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    store = Store(flags.store)
    path = store.path.resolve()
    name = f"{path.stem}-report.html"
    # The report of a store in a bucket is written here.
    out = flags.out or (path.with_name(name) if isinstance(path, Path) else Path(name))
    written = write_report(store, out, flags.run_name, progress, flags.shards, flags.heads)
    progress.close()
    say(f"report written to {written}")
    return 0
