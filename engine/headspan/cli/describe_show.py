"""The command `describe show`: saved descriptions of every class, and their quality beside that of baselines."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np

from headspan.cli.commands import described
from headspan.cli.describe_flags import runs_flags
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import FROM_0
from headspan.cli.progress import ProgressPrinter
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.describe.descriptions.quality_table import BEST_OF, QualityTable, quality_table
from headspan.describe.descriptions.result import UNDECIDED, VERDICTS, Descriptions
from headspan.describe.descriptions.saved import KIND, read_descriptions
from headspan.describe.writing.best_of import samples_for
from headspan.errors import SettingsError, counted, percent, shortened
from headspan.escapes import escaped
from headspan.store import results
from headspan.store.reader import Store

_DETAILS = (
    "Without --class, the best-rewarded descriptions of each class are shown. Of several stores, or of several runs, "
    "only the quality is shown, side by side. The table as a file has all descriptions, or the quality of several runs."
)
# Descriptions of a class, classes, and letters of a description that are printed.
_COUNT, _CLASSES, _LETTERS = 3, 20, 100
# More samples of each prompt than that are not worth their time.
_MOST = 10_000


def add_show(parser: Parser, text: str) -> None:
    """Describe `describe show`, and add its flags."""
    command = described(parser, text, _show, "headspan describe show run.zarr --run lm.trained", _DETAILS)
    runs_flags(command, "all")
    command.add_argument("--class", dest="name", metavar="NAME", help="show the descriptions of this class only")
    command.add_argument(
        "--count", type=FROM_0, default=_COUNT, metavar="N", help=f"descriptions of a class; 0 for all ({_COUNT})"
    )
    export_flags(command)


def _show(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    found = [each for path in flags.store for each in _runs(Store(path), flags.run_names)]
    if len(found) == 1:
        if not export(flags, found[0]):
            print_descriptions(found[0], flags.name, flags.count)
        return 0
    if flags.name is not None:
        raise SettingsError(f"--class {flags.name} is about one run, but there are {len(found)}; name one with --run")
    table = quality_table(*found)
    if not export(flags, table):
        print_quality(table, several=True)
        say("rewards of other models, for other classes, or through other heads are on other scales and do not compare")
    return 0


def _runs(store: Store, names: Sequence[str]) -> list[Descriptions]:
    """The runs of a store that are named, or all of them. Raises StoreError if there are none."""
    found = names or results.runs(store, KIND) or [results.only_run(store, KIND, None)]
    return [read_descriptions(store, name) for name in found]


def print_descriptions(descriptions: Descriptions, name: str | None = None, count: int = _COUNT) -> None:
    """Print a run: its quality, and the best-rewarded descriptions of each class, or of the class `name`."""
    if name is not None and name not in descriptions.classes:
        known = shortened(", ".join(descriptions.classes), 200)
        raise SettingsError(f"--class {name}: is not described in {descriptions.run}; its classes are {known}")
    say(
        f"{counted(len(descriptions), 'description')} of {len(descriptions.classes):,} classes by "
        f"{descriptions.model}, rewarded through {descriptions.target}"
    )
    if descriptions.quality:
        print_quality(quality_table(descriptions))
        for line in _remarks(descriptions):
            say(line)
    shown = [name] if name is not None else descriptions.classes[:_CLASSES]
    for each in shown:
        _print_class(descriptions, descriptions.classes.index(each), count)
    hidden = len(descriptions.classes) - _CLASSES
    if name is None and hidden > 0:
        say(f"and {hidden:,} more classes; name one with --class")


def print_quality(table: QualityTable, several: bool = False) -> None:
    """Print the rows of a table of quality; of several runs with their names."""
    head = ("descriptions", "reward", "95 %", "KL", "distinct-1", "-2", "-3", "tokens", "ended", "cut", "zero-shot")
    rows: list[tuple[str, ...]] = [head]
    for row in table.rows:
        figures = row.figures
        name = f"{row.run}: {row.source}" if several else row.source
        interval = "-"
        if "reward_low" in figures:
            interval = f"{figures['reward_low']:.2f} to {figures['reward_high']:.2f}"
        rows.append(
            (
                *(name, _number(figures.get("reward"), ".2f"), interval, _number(figures.get("kl"), ".2f")),
                *(_number(figures.get(f"distinct_{length}"), ".3f") for length in (1, 2, 3)),
                _number(figures.get("length"), ".1f"),
                *(_share(figures.get(name)) for name in ("ended", "cut", "zero_shot")),
            )
        )
    print_table(rows)


def _remarks(descriptions: Descriptions) -> list[str]:
    """What the table of quality leaves out."""
    quality = descriptions.quality
    found = []
    prompts = (("names", "class names"), ("photo", '"a photo of a …"'), ("chance", "chance"))
    shares = [f"{of} {percent(quality[f'zero_shot_{name}'])}" for name, of in prompts if f"zero_shot_{name}" in quality]
    if shares:
        images = quality.get("zero_shot_images")
        over = "" if images is None else f", over {counted(int(images), 'image')}"
        if "zero_shot_unseen" in quality:
            unseen = counted(int(quality["zero_shot_images_unseen"]), "image")
            over += f"; descriptions {percent(quality['zero_shot_unseen'])} over the {unseen} that no reward saw"
        found.append(f"zero-shot: {', '.join(shares)}{over}")
    gains = (("gain", "the untrained model"), (f"gain_best_of_{BEST_OF}", f"best of {BEST_OF}"))
    said = [
        f"{quality[name]:+.2f} ({quality[f'{name}_low']:+.2f} to {quality[f'{name}_high']:+.2f}) over {of}"
        for name, of in (*gains, ("gain_equal_kl", "best-of-N at equal KL"))
        if name in quality
    ]
    if said:
        found.append(f"reward {', '.join(said)}")
    if "equal_kl_n" in quality and math.isnan(quality["equal_kl_n"]):
        needed = samples_for(quality["kl"])
        todo = "write with that --best-of to compare"
        if needed > _MOST:
            todo = "train with a larger --beta to compare"
        found.append(
            f"no best-of-N at equal KL: a KL of {quality['kl']:.2f} takes the best of some {needed:,} samples; {todo}"
        )
    return found


def _print_class(descriptions: Descriptions, number: int, count: int) -> None:
    """The best-rewarded descriptions of a class; equal answers to several questions are one."""
    chosen = np.flatnonzero(descriptions.class_of == number)
    times: dict[str, int] = {}
    for place in chosen.tolist():
        text = descriptions.texts[place]
        times[text] = times.get(text, 0) + int(descriptions.times[place])
    first: dict[str, int] = {}
    for place in chosen[np.argsort(-descriptions.rewards[chosen], kind="stable")].tolist():
        first.setdefault(descriptions.texts[place], place)
    say()
    say(escaped(descriptions.classes[number]))
    for text, place in [*first.items()][: count or None]:
        often = f"{times[text]:,}×" if times[text] else "greedy"
        verdict = ""
        if descriptions.inspection is not None:
            judged = int(descriptions.inspection.verdicts[place])
            verdict = f"  [{'undecided' if judged == UNDECIDED else VERDICTS[judged]}]"
        shown = escaped(shortened(text, _LETTERS))
        say(f"  {descriptions.rewards[place]:7.2f}  {often:>6}  {shown}{verdict}")
    if descriptions.best_rewards is not None:
        questions = len(descriptions.questions)
        own = descriptions.best_rewards[number * questions : (number + 1) * questions]
        best = escaped(shortened(descriptions.best_texts[number * questions + int(own.argmax())], _LETTERS))
        say(f"  {own.max():7.2f}  best of {descriptions.best_of:,} answers to a question, untrained: {best}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else percent(value)
