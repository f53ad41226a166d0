"""The command `features splice`: images as few texts of a pool (SpLiCE), a baseline of naming without training."""

from __future__ import annotations

import argparse

from headspan.cli.commands import described
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import ABOVE_ZERO, FROM_0, FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.selection_flags import selected, selection_flags
from headspan.cli.shared_flags import store_argument, weights_flag
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import counted, percent, shortened
from headspan.features.scores.splice import PENALTY
from headspan.features.spliced import MOST, SplicedImages, splice_images
from headspan.store.reader import Store

_DETAILS = (
    "Each image is written as a sum of few texts with weights of at least 0 (Bhalla et al., NeurIPS 2024). Chance is "
    "the same with the pool rotated at random, which has the same angles and no meaning. Nothing is saved."
)
# Texts that are listed, and their letters.
_COUNT, _TEXT = 20, 60


def add_splice(parser: Parser, text: str) -> None:
    """Describe `features splice`, and add its flags."""
    command = described(parser, text, _splice, "headspan features splice run.zarr --texts general", _DETAILS)
    store_argument(command)
    how = command.add_argument_group("decomposition")
    how.add_argument(
        "--texts",
        metavar="POOL",
        default="general",
        help="the texts: general or world, which headspan includes, or a file (default: general)",
    )
    how.add_argument(
        "--penalty", type=ABOVE_ZERO, default=PENALTY, metavar="X", help=f"the larger, the fewer texts ({PENALTY})"
    )
    how.add_argument("--most", type=FROM_1, default=MOST, metavar="N", help=f"images, drawn at random ({MOST})")
    how.add_argument(
        "--count", type=FROM_0, default=_COUNT, metavar="N", help=f"texts that are listed; 0 for all ({_COUNT})"
    )
    how.add_argument("--seed", type=FROM_0, default=0, metavar="N", help="seed of the images and of chance (0)")
    weights_flag(how)
    selection_flags(command)
    export_flags(command)


def _splice(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    store = Store(flags.store)
    images = selected(store, flags, progress)
    found = splice_images(
        store,
        flags.texts,
        images=images,
        penalty=flags.penalty,
        most=flags.most,
        seed=flags.seed,
        weights=flags.weights,
        on_progress=progress,
    )
    progress.close()
    export(flags, found)
    if not alone:
        _print(found, flags.count)
    return 0


def _print(found: SplicedImages, count: int) -> None:
    columns = found._columns()
    rows = list(zip(columns["text"], columns["weight"], columns["share"], strict=True))
    print_table(
        [
            ("mean weight", "images", "text"),
            *(
                (f"{weight:.4f}", percent(share), shortened(text, _TEXT))
                for text, weight, share in rows[: count or None]
            ),
        ],
        words=1,
    )
    print_table(
        [
            ("", "texts of an image", "cosine", "less the mean"),
            (found.pool, f"{found.l0:.1f}", f"{found.cosine:.3f}", f"{found.centred_cosine:.3f}"),
            (
                "the pool, rotated",
                f"{found.rotated_l0:.1f}",
                f"{found.rotated_cosine:.3f}",
                f"{found.rotated_centred_cosine:.3f}",
            ),
            ("no text", "0.0", f"{found.mean_cosine:.3f}", "-"),
        ]
    )
    say(
        f"{counted(found.images, 'image')}, {int((found.weight > 0).sum()):,} of {counted(len(found.texts), 'text')} "
        f"with a weight, penalty {found.penalty:g}"
    )
