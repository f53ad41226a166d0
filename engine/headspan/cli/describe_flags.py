"""Flags that the commands of `describe` share: the language model, the classes, and what is rewarded."""

from __future__ import annotations

import argparse

from headspan.cli.numbers import ABOVE_ZERO, FROM_0, FROM_1
from headspan.cli.query_flags import chosen_heads_of, heads_flags
from headspan.cli.shared_flags import Flags, comma_separated
from headspan.describe.asked.classes import DescribedClasses, described_classes
from headspan.describe.rewards.target import IMAGES, Target
from headspan.errors import SettingsError
from headspan.events import Listener
from headspan.store.reader import Store
from headspan.tasks.task_file import read_task

# The run of labels; --run is that of the descriptions.
_RUN_FLAG = "--label-run"


def runs_flags(flags: Flags, default: str) -> None:
    """The stores, and `--run`: which of their descriptions are meant; `default` says which without it."""
    flags.add_argument("store", nargs="+", help="one or several stores, folders such as run.zarr")
    flags.add_argument(
        "--run",
        action="append",
        default=[],
        dest="run_names",
        metavar="RUN",
        help=f"which descriptions are meant (default: {default}); may be repeated",
    )


def language_model_flag(flags: Flags, required: bool = False) -> None:
    """`--language-model`."""
    flags.add_argument(
        "--language-model",
        required=required,
        metavar="NAME",
        help="a folder, a .gguf file, a repository of Hugging Face's hub, or `reference`",
    )


def classes_flags(flags: Flags) -> None:
    """`--task`, `--class-key` and `--classes`; `classes_of` reads them."""
    flags.add_argument("--task", metavar="TASK", help="a task of metric accuracy or worst_group, as in prune")
    flags.add_argument(
        "--class-key", metavar="KEY", help="a key of the metadata, as in objects.shape (default: class_name)"
    )
    flags.add_argument("--classes", metavar="NAMES", help="these classes only, as in cat,dog (default: all)")


def questions_flag(flags: Flags, which: str) -> None:
    """`--questions`: fewer of the questions about a class."""
    flags.add_argument(
        "--questions", type=FROM_1, metavar="N", help=f"so many questions about a class (default: {which})"
    )


def target_flags(flags: Flags) -> None:
    """`--contrast`, `--head`, `--label`, `--label-run`, `--images` and `--scale`; `target_of` reads them."""
    flags.add_argument("--contrast", action="store_true", help="reward what fits a class better than the others")
    heads_flags(flags, "reward what fits", _RUN_FLAG)
    flags.add_argument(
        "--images",
        type=FROM_0,
        default=IMAGES,
        metavar="N",
        help=f"images of a class to average over; 0 for all (default: {IMAGES})",
    )
    flags.add_argument(
        "--scale",
        type=ABOVE_ZERO,
        metavar="X",
        help="factor of rewards; those of a single head are small beside beta (default: the model's logit scale)",
    )


def classes_of(flags: argparse.Namespace, store: Store, on_progress: Listener) -> DescribedClasses:
    """The classes that the flags name. Raises SettingsError as `described_classes` does."""
    if flags.task is not None and flags.class_key is not None:
        raise SettingsError("--task and --class-key both say which classes images have; give one of them")
    return described_classes(
        store,
        task=None if flags.task is None else read_task(flags.task),
        key=flags.class_key,
        names=None if flags.classes is None else comma_separated(flags.classes),
        on_progress=on_progress,
    )


def target_of(flags: argparse.Namespace, store: Store) -> Target:
    """What the flags reward. Raises SettingsError for flags that contradict each other or name heads not stored."""
    heads = chosen_heads_of(store, flags, _RUN_FLAG) or ()
    return Target(tuple(heads), flags.contrast, flags.images or None, flags.scale)
