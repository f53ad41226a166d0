"""The command `features use bias`: an attribute read from images without one class of features."""

from __future__ import annotations

import argparse

from headspan.cli.commands import described
from headspan.cli.exports import only_export
from headspan.cli.features_use import (
    asks_for_saved,
    attribute_flags,
    chance_of_features,
    classes_flag,
    dictionary_flags,
    opened,
    result_flags,
    show_made,
    show_saved,
    task_of,
)
from headspan.cli.flag_parser import Parser
from headspan.cli.progress import ProgressPrinter
from headspan.features.uses.bias_result import BiasProbe
from headspan.features.uses.chosen import DECIDED

_DETAILS = (
    "Images are read by the nearest class's text, by a linear probe that is trained on images changed alike, and by "
    "the probe of untouched images. Half of the images train the probes, and the others are tested."
)


def add_bias(parser: Parser, text: str) -> None:
    """Describe `features use bias`, and add its flags."""
    example = "headspan features use bias run.zarr --attribute shape --by colour"
    command = described(parser, text, _bias, example, _DETAILS)
    dictionary_flags(command, "kept")
    what = command.add_argument_group("what is measured")
    attribute_flags(what)
    classes_flag(what, "--remove", "features that are removed; may be repeated (default: each class with a name)")
    chance_of_features(command.add_argument_group("chance"), 10, 1000)
    result_flags(command, "--task and --attribute")


def _bias(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    if asks_for_saved(flags):
        return show_saved(flags, progress, BiasProbe, "bias")
    store, dictionary, scores = opened(flags)
    task = task_of(flags, store)
    from headspan.features.uses.bias import probe_bias

    return show_made(
        flags,
        progress,
        lambda: probe_bias(
            *(store, dictionary, scores, task, progress),
            classes=tuple(dict.fromkeys(flags.remove or DECIDED)),
            residual=flags.residual,
            draws=flags.draws,
            samples=flags.samples,
            seed=flags.seed,
            weights=flags.weights,
            run=flags.run_name,
            overwrite=flags.overwrite,
        ),
    )
