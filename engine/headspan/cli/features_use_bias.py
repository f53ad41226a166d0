"""The command `features use bias`: an attribute read from images without one class of features."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headspan.cli.chance_flags import check_chance
from headspan.cli.commands import described
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.features_use import (
    attribute_flags,
    chance_of_features,
    classes_flag,
    dictionary_flags,
    opened,
    task_of,
)
from headspan.cli.flag_parser import Parser
from headspan.cli.progress import ProgressPrinter
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import counted, percent
from headspan.features.uses.chosen import DECIDED

if TYPE_CHECKING:
    from headspan.features.uses.bias_result import BiasProbe

_DETAILS = (
    "Images are read by the nearest class's text, by a linear probe that is trained on images changed alike, and by "
    "the probe of untouched images. Half of the images train the probes, and the others are tested."
)
_KINDS = {
    "untouched": "untouched",
    "reconstruction": "all features",
    "class": "without {}",
    "random": "  as many random features",
}


def add_bias(parser: Parser, text: str) -> None:
    """Describe `features use bias`, and add its flags."""
    example = "headspan features use bias run.zarr --attribute shape --by colour"
    command = described(parser, text, _bias, example, _DETAILS)
    dictionary_flags(command, "kept")
    what = command.add_argument_group("what is measured")
    attribute_flags(what)
    classes_flag(what, "--remove", "features that are removed; may be repeated (default: each class with a name)")
    chance_of_features(command.add_argument_group("chance"), 10, 1000)
    export_flags(command)


def _bias(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    check_chance(flags)
    store, dictionary, scores = opened(flags)
    task = task_of(flags, store)
    from headspan.features.uses.bias import probe_bias

    found = probe_bias(
        *(store, dictionary, scores, task, progress),
        classes=tuple(dict.fromkeys(flags.remove or DECIDED)),
        residual=flags.residual,
        draws=flags.draws,
        samples=flags.samples,
        seed=flags.seed,
        weights=flags.weights,
    )
    progress.close()
    export(flags, found)
    if not alone:
        _print(found)
    return 0


def _print(found: BiasProbe) -> None:
    groups = [name for name in found.rows[0].figures if name not in (found.headline, "chance")]
    head = ("read by", "images", "features", "energy", "lost", found.headline, "change", "interval", "p", *groups)
    rows: list[tuple[str, ...]] = [head]
    for each in found.rows:
        change = each.change
        rows.append(
            (
                each.reader,
                _KINDS[each.kind].format(each.removed),
                f"{each.features:,}",
                percent(each.energy),
                f"{each.lost:.3f}",
                percent(each.figures[found.headline]),
                f"{100 * change.value:+.1f}",
                f"{100 * change.low:+.1f} to {100 * change.high:+.1f}",
                "-" if each.p_random is None else f"{each.p_random:.2f}",
                *(percent(each.figures[name]) for name in groups),
            )
        )
    print_table(rows)
    say(
        f"{counted(found.test_images, 'test image')}, {counted(found.train_images, 'image')} trained the probes; "
        f"residual {found.residual}; changes in points, with the 95 % interval over test images, and for random "
        f"features the range over sets, whose energy is that of the class within {percent(found.tolerance, 0)}; p is "
        "the share of random sets that cost at least as much"
    )
    for remark in found.remarks:
        say(f"note: {remark}")
