"""The command `describe write`: descriptions of classes by a language model, beside those of its untrained self."""

from __future__ import annotations

import argparse

from headspan.cli.commands import described
from headspan.cli.describe_flags import (
    classes_flags,
    classes_of,
    language_model_flag,
    questions_flag,
    target_flags,
    target_of,
)
from headspan.cli.describe_show import print_descriptions
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import FROM_0, FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.saving import saved_or_not, tell_unsaved
from headspan.cli.shared_flags import comma_separated, overwrite_flag, store_argument, weights_flag
from headspan.cli.terminal import say, tell
from headspan.describe.asked.questions import QUESTIONS, fewer
from headspan.describe.descriptions.quality_table import BEST_OF
from headspan.describe.rewards.target import IMAGES
from headspan.errors import SettingsError
from headspan.store.reader import Store

_DETAILS = (
    "Every question about a class gets one greedy answer and some sampled ones, with their rewards. The untrained "
    "model answers too: the best of N of its samples needs no training, so training must beat it at the same KL. "
    "Descriptions are saved as a run, which `headspan describe show` shows."
)


def add_write(parser: Parser, text: str) -> None:
    """Describe `describe write`, and add its flags."""
    command = described(parser, text, _write, "headspan describe write run.zarr --trained lm.trained", _DETAILS)
    store_argument(command)
    model = command.add_argument_group("language model: one of these")
    model.add_argument("--trained", metavar="FOLDER", help="the folder that describe train wrote")
    language_model_flag(model)
    classes_flags(command.add_argument_group("classes (default: those of the training)"))
    target = command.add_argument_group("reward (default: that of the training)")
    target_flags(target)
    weights_flag(target)
    how = command.add_argument_group("descriptions")
    questions_flag(how, f"those of the training, else {len(QUESTIONS)}")
    how.add_argument(
        "--samples", type=FROM_1, default=16, metavar="N", help="sampled answers to each question about a class (16)"
    )
    how.add_argument(
        "--best-of",
        type=FROM_0,
        default=BEST_OF,
        metavar="N",
        help=f"answers by the untrained model, to choose the best from; 0 leaves it out ({BEST_OF})",
    )
    how.add_argument(
        "--tokens", type=FROM_1, metavar="N", help="tokens of a description (that of the training, else 32)"
    )
    how.add_argument(
        "--batch-size", type=FROM_1, default=64, metavar="N", help="descriptions that are written at the same time (64)"
    )
    how.add_argument("--seed", type=FROM_0, default=0, metavar="N", help="seed of the samples (0)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda:0 (default: auto)")
    result = command.add_argument_group("result")
    result.add_argument(
        "--run", dest="run_name", metavar="NAME", help="name of the run (default: that of the model's folder)"
    )
    overwrite_flag(result)
    export_flags(command)


def _write(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    if (flags.trained is None) == (flags.language_model is None):
        what = "neither is given" if flags.trained is None else "both are given"
        raise SettingsError(
            f"descriptions are by --trained FOLDER or by an untrained --language-model NAME, but {what}; give one"
        )
    store = Store(flags.store)
    target = target_of(flags, store) if flags.trained is None or _own_target(flags) else None
    classes = None
    if flags.trained is None or flags.task is not None or flags.class_key is not None:
        classes = classes_of(flags, store, progress)
    # Imported here, since it takes torch a second to load, and wrong flags are refused before.
    from headspan.describe.training.trained import open_trained
    from headspan.describe.writing.opening import trained_classes
    from headspan.describe.writing.write import write

    language_model = flags.language_model if flags.trained is None else open_trained(flags.trained)
    if classes is None and flags.classes is not None:
        classes = trained_classes(store, language_model, comma_separated(flags.classes), progress)
    asked = QUESTIONS if isinstance(language_model, str) else language_model.questions
    descriptions, unsaved = saved_or_not(
        lambda: write(
            store,
            language_model,
            run=flags.run_name,
            classes=classes,
            target=target,
            questions=fewer(asked, flags.questions),
            samples=flags.samples,
            best_of=flags.best_of,
            tokens=flags.tokens,
            seed=flags.seed,
            batch=flags.batch_size,
            device=flags.device,
            save=True,
            overwrite=flags.overwrite,
            weights=flags.weights,
            on_progress=progress,
        )
    )
    progress.close()
    if not export(flags, descriptions):
        print_descriptions(descriptions)
    if unsaved is None:
        (tell if alone else say)(f"saved as descriptions/{descriptions.run} in {store.path}")
    tell_unsaved(unsaved)
    return 0


def _own_target(flags: argparse.Namespace) -> bool:
    """Whether flags say what is rewarded."""
    named = (flags.label, flags.label_run, flags.scale)
    return flags.contrast or bool(flags.heads) or any(each is not None for each in named) or flags.images != IMAGES
