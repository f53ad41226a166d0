"""The command `spurious`: the worst group without the heads that carry a spurious cue."""

from __future__ import annotations

import argparse

from headspan.cli.chance_flags import chance_flags
from headspan.cli.commands import Section
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.numbers import FROM_0
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import comma_separated, store_argument, weights_flag
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import SettingsError, counted, percent
from headspan.head_names import head_name
from headspan.prune.choice.groups import head_group
from headspan.prune.studies.spurious import (
    AUTOMATIC,
    MOST,
    NOTHING,
    PUBLISHED_REST,
    RANDOM,
    RESTS,
    SpuriousStudy,
    spurious_study,
)
from headspan.store.reader import Store
from headspan.tasks.task import Task
from headspan.tasks.task_file import read_task


def add_spurious(section: Section) -> None:
    """Add `spurious`."""
    command = section.add(
        "spurious",
        _spurious,
        'headspan spurious run.zarr --task waterbirds \\\n      --cue "water, land" --core "a waterbird, a landbird"',
        "Heads are ranked by the variance of their contributions along the words of --cue minus that along the words "
        "of --core. As many of the first heads as give the worst group its best accuracy on held-out images are put at "
        "their means (the direct effect); figures are those of the other images. Nothing is saved.",
    )
    store_argument(command)
    what = command.add_argument_group("what is measured")
    what.add_argument("--task", metavar="TASK", required=True, help="a task of metric worst_group, as in prune")
    what.add_argument("--cue", metavar="WORDS", required=True, help="words or texts for the cue, separated by commas")
    what.add_argument("--core", metavar="WORDS", required=True, help="the same for what the classes mean")
    what.add_argument(
        "--held-out",
        metavar="KEY=VALUE",
        help="the images that choose the number of heads, by their metadata, as split=val (default: a random half)",
    )
    what.add_argument(
        "--heads",
        action="append",
        default=[],
        metavar="HEADS",
        help="also these heads, such as those chosen by hand or label:NAME; as in prune; may be repeated",
    )
    what.add_argument(
        "--also",
        action="append",
        choices=RESTS,
        metavar="WHAT",
        help=f"what is ablated with the heads: {', '.join(RESTS)}; may be repeated (default: {NOTHING}, and "
        f"{PUBLISHED_REST} as published)",
    )
    what.add_argument("--most", type=FROM_0, default=MOST, metavar="N", help=f"the most heads that are chosen ({MOST})")
    chance_flags(command.add_argument_group("chance"), seeded="the half, the draws and samples")
    weights_flag(command.add_argument_group("result"))
    export_flags(command)


def _spurious(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    store, task = Store(flags.store), read_task(flags.task)
    if task.metric != "worst_group":
        raise SettingsError(f"--task {flags.task}: has metric {task.metric}; spurious needs one of metric worst_group")
    groups = [head_group(store, name) for name in flags.heads]
    found = spurious_study(
        store,
        task,
        comma_separated(flags.cue),
        comma_separated(flags.core),
        progress,
        chosen={each.name: each.heads for each in groups if each.heads},
        held_out=flags.held_out,
        rests=tuple(dict.fromkeys(flags.also or (NOTHING, PUBLISHED_REST))),
        most=flags.most,
        draws=flags.draws,
        samples=flags.samples,
        seed=flags.seed,
        weights=flags.weights,
    )
    progress.close()
    export(flags, found)
    if not alone:
        _print(found, task)
        for each in groups:
            if not each.heads:
                say(f"note: heads {each.name}: {each.why_empty}, so the study goes on without them")
    return 0


def _print(found: SpuriousStudy, task: Task) -> None:
    groups = [name for name in found.variants[0].figures if name not in ("worst_group", "accuracy", "mean_group")]
    rows: list[tuple[str, ...]] = [("heads", "number", "also ablated", "worst", "change", "interval", "all", *groups)]
    for each in found.variants:
        change = each.change
        rows.append(
            (
                "random, same layers" if each.name == RANDOM else each.name,
                f"{len(each.heads)}",
                each.rest,
                percent(each.figures["worst_group"]),
                f"{100 * change.value:+.1f}",
                f"{100 * change.low:+.1f} to {100 * change.high:+.1f}",
                *(percent(each.figures[name]) for name in ("accuracy", *groups)),
            )
        )
    print_table(rows)
    for each in found.variants:
        if each.name == AUTOMATIC:
            names = ", ".join(head_name(*head) for head in each.heads) or "none raises the worst group"
            say(f"chosen{'' if each.rest == NOTHING else f', with {each.rest} ablated too'}: {names}")
    say(
        f"{counted(found.test_images, 'test image')}; {counted(found.held_out_images, 'held-out image')} chose the "
        "number of heads; change of the worst group in points, with its 95 % interval over test images"
    )
    for model, figures in task.published.items():
        say(f"published, {model}: {', '.join(f'{name} {value:g}' for name, value in figures.items())}")
    if task.published_note:
        say(f"published: {task.published_note}")
    for remark in found.remarks:
        say(f"note: {remark}")
