"""Flags that the commands of `describe` share: the language model, the classes, and what is rewarded."""

from __future__ import annotations

import argparse

from headspan.cli.head_flag import chosen_heads, head_flag
from headspan.cli.shared_flags import Flags, comma_separated
from headspan.concepts.labelled_heads import heads_of
from headspan.describe.asked.classes import DescribedClasses, described_classes
from headspan.describe.rewards.target import IMAGES, Target
from headspan.errors import SettingsError
from headspan.events import Listener
from headspan.store.reader import Store
from headspan.tasks.task_file import read_task


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


def target_flags(flags: Flags) -> None:
    """`--contrast`, `--head`, `--label`, `--label-run`, `--images` and `--scale`; `target_of` reads them."""
    flags.add_argument("--contrast", action="store_true", help="reward what fits a class better than the others")
    head_flag(flags, "reward what fits")
    flags.add_argument("--label", metavar="NAME", help="reward what fits the heads that have this label only")
    flags.add_argument(
        "--label-run", metavar="RUN", help="the run of labels that --label is about (default: the only one)"
    )
    flags.add_argument(
        "--images",
        type=int,
        default=IMAGES,
        metavar="N",
        help=f"images of a class to average over; 0 for all (default: {IMAGES})",
    )
    flags.add_argument(
        "--scale",
        type=float,
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
    if flags.heads and flags.label is not None:
        raise SettingsError("--head and --label both choose heads; give one of them")
    if flags.label_run is not None and flags.label is None:
        raise SettingsError(f"--label-run {flags.label_run}: says which labels --label is about; give --label too")
    heads = []
    if flags.label is not None:
        heads = heads_of(store, flags.label, flags.label_run)
    elif flags.heads:
        heads = chosen_heads(flags.heads, store.layers, store.heads_per_layer)
    return Target(tuple(heads), flags.contrast, flags.images or None, flags.scale)
