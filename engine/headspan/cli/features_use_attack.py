"""The command `features use attack`: attacks on the pixels of images that are classified by one class of features."""

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
from headspan.cli.numbers import FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import comma_separated, shards_flag
from headspan.errors import SettingsError
from headspan.features.uses.attack_result import GOALS, AttackStudy

_DETAILS = (
    "Projected gradient descent through the live model, against zero-shot classification by all features, by a class "
    "of them alone, or by all others. The column adaptive is of attacks that go through the choice of features; only "
    "that column says whether a classifier is robust."
)


def add_attack(parser: Parser, text: str) -> None:
    """Describe `features use attack`, and add its flags."""
    example = "headspan features use attack run.zarr --attribute shape --keep cross-modal"
    command = described(parser, text, _attack, example, _DETAILS)
    dictionary_flags(command, "dropped")
    what = command.add_argument_group("what is attacked")
    attribute_flags(what)
    classes_flag(what, "--keep", "a classifier keeps these features alone; may be repeated")
    classes_flag(what, "--remove", "a classifier keeps all other features; may be repeated")
    what.add_argument("--most", type=FROM_1, default=200, metavar="N", help="images that are attacked (200)")
    how = command.add_argument_group("attack")
    how.add_argument("--goal", choices=GOALS, help="any wrong class, or one drawn for each image (default: both)")
    how.add_argument(
        "--epsilon", default="2,4,8", metavar="LEVELS", help="how far a pixel may move, in levels of 255 (2,4,8)"
    )
    how.add_argument("--steps", type=FROM_1, default=20, metavar="N", help="steps of an attack (20)")
    how.add_argument("--restarts", type=FROM_1, default=2, metavar="N", help="random starts of an attack (2)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda:0 (default: auto)")
    chance_of_features(command.add_argument_group("chance"), 3, 1000)
    shards_flag(command)
    result_flags(command, "--task and --attribute")


def _attack(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    only_export(flags)
    epsilons = [_level(each) for each in comma_separated(flags.epsilon)]
    if asks_for_saved(flags):
        return show_saved(flags, progress, AttackStudy, "attack")
    store, dictionary, scores = opened(flags)
    task = task_of(flags, store)
    chosen = bool(flags.keep or flags.remove)
    from headspan.features.uses.attack import KEPT_ALONE, REMOVED, attack
    from headspan.features.uses.pgd import Search

    return show_made(
        flags,
        progress,
        lambda: attack(
            *(store, dictionary, scores, task, progress),
            keep=tuple(flags.keep or ()) if chosen else KEPT_ALONE,
            remove=tuple(flags.remove or ()) if chosen else REMOVED,
            residual=flags.residual,
            most=flags.most,
            epsilons=epsilons,
            search=Search(flags.steps, flags.restarts),
            goals=GOALS if flags.goal is None else (flags.goal,),
            draws=flags.draws,
            samples=flags.samples,
            seed=flags.seed,
            weights=flags.weights,
            shards=flags.shards,
            device=flags.device,
            run=flags.run_name,
            overwrite=flags.overwrite,
        ),
    )


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = -1.0
    if not 0 < level <= 255:
        raise SettingsError(f"--epsilon {text}: give levels of 255, above 0, separated by commas")
    return level / 255
