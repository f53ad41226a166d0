"""The command `reconstruct`: how well images are classified by what each head's texts reconstruct."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.numbers import FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import store_argument, weights_flag
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.config import as_ranges
from headspan.errors import SettingsError, counted, percent
from headspan.prune.direct.reconstruction import TEXT_COUNTS, Reconstruction, reconstruction
from headspan.spans.saved import read_spans
from headspan.store.reader import Store
from headspan.tasks.classification import Classification
from headspan.tasks.task_file import read_task


def add_reconstruct(section: Section) -> None:
    """Add `reconstruct`."""
    command = section.add(
        "reconstruct",
        _reconstruct,
        "headspan reconstruct run.zarr --task imagenet --texts 60",
        "The heads of a TEXTSPAN run are replaced by their means plus the part that their first texts span. The "
        "attention of all other layers is at its mean, and MLPs are kept, so the store needs --emit heads,mlps or "
        "--layers all. Beside it stand the full contributions, and the heads' means alone. Nothing is saved.",
    )
    store_argument(command)
    what = command.add_argument_group("what is measured")
    what.add_argument("--task", metavar="TASK", required=True, help="a classification, as in prune")
    what.add_argument("--spans", metavar="RUN", help="the run of textspan (default: the only one)")
    what.add_argument(
        "--texts",
        action="append",
        type=FROM_1,
        metavar="N",
        help=f"texts of each head; may be repeated (default: those of {', '.join(map(str, TEXT_COUNTS))} that the run "
        "has)",
    )
    weights_flag(command.add_argument_group("result"))
    export_flags(command)


def _reconstruct(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    store, task = Store(flags.store), read_task(flags.task)
    if task.metric != "accuracy":
        raise SettingsError(f"--task {flags.task}: has metric {task.metric}; reconstruct needs one of metric accuracy")
    spans = read_spans(store, flags.spans)
    of_task = Classification.of(task, store, progress, weights=flags.weights)
    found = reconstruction(store, spans, of_task.classes, of_task.truths, flags.texts, progress, weights=flags.weights)
    progress.close()
    if not export(flags, found):
        _print(found, of_task.chance)
    return 0


def _print(found: Reconstruction, chance: float) -> None:
    rows: list[tuple[str, ...]] = [("heads", "texts", "accuracy")]
    columns = found._columns()
    for heads, texts, accuracy in zip(columns["heads"], columns["texts"], columns["accuracy"], strict=True):
        rows.append((heads, "-" if texts is None else f"{texts}", percent(accuracy)))
    print_table([*rows, ("chance", "-", percent(chance))])
    say(f"{counted(found.images, 'image')}; heads of layers {as_ranges(found.layers)} of textspan run {found.run!r}")
    say("in all rows but the first, the attention of other layers is at its mean over images")
    say("means: the heads at their means too; chance: the most common class named for every image")
