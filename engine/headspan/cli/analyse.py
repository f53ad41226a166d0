"""The commands `textspan` and `report`."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import overwrite_flag, run_flag, shards_flag, store_argument, weights_flag
from headspan.cli.terminal import say
from headspan.config import parse_layers
from headspan.errors import counted
from headspan.report.collect import write_report
from headspan.spans.over_store import HeadSpans, textspan
from headspan.store.reader import Store

_TEXTS_SHOWN = 5


def add_textspan(section: Section) -> None:
    """Add `textspan`."""
    command = section.add(
        "textspan",
        _textspan,
        "headspan textspan run.zarr --texts-per-head 60",
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
        "--texts-per-head", type=int, metavar="N", default=60, help="texts for each head (default: %(default)s)"
    )
    texts.add_argument(
        "--rank",
        type=int,
        metavar="N",
        default=80,
        help="principal directions of a head's contributions in which texts are compared (default: %(default)s)",
    )
    weights_flag(texts)
    result = command.add_argument_group("result")
    run_flag(result)
    overwrite_flag(result, "the labels and scores made from it")


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
    store = Store(flags.store)
    layers = None if flags.layers is None else parse_layers(flags.layers, store.all_layers)
    also = [Store(path) for path in flags.also]
    given = (flags.texts, flags.texts_per_head, layers, flags.rank, flags.run_name)
    spans = textspan(store, *given, progress, also, flags.overwrite, weights=flags.weights)
    progress.close()
    for layer, head in spans.heads():
        _print_head(spans, layer, head)
    say(f"saved as textspan/{spans.run} in {store.path}")
    return 0


def _print_head(spans: HeadSpans, layer: int, head: int) -> None:
    explained = spans.explained[spans.layers.index(layer), head]
    first = spans.texts(layer, head, _TEXTS_SHOWN)
    texts = counted(len(explained), "text")
    verb = "explains" if len(explained) == 1 else "explain"
    say(f"L{layer}.H{head}  {texts} {verb} {explained[-1]:.0%} of the variance; the first {len(first)}:")
    for text in first:
        say(f"    {text}")


def _report(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    store = Store(flags.store)
    path = store.path.resolve()
    out = flags.out or path.with_name(f"{path.stem}-report.html")
    written = write_report(store, out, flags.run_name, progress, flags.shards, flags.heads)
    progress.close()
    say(f"report written to {written}")
    return 0
