"""The command `describe train`: train a language model to write what a store's model, or some heads, prefer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from headspan.cli.commands import described
from headspan.cli.describe_flags import (
    classes_flags,
    classes_of,
    language_model_flag,
    questions_flag,
    target_flags,
    target_of,
)
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import ABOVE_ZERO, FROM_0, FROM_1, ZERO_OR_MORE, Whole
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import store_argument, weights_flag
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.describe.asked.questions import QUESTIONS, fewer
from headspan.describe.policy.diversity import LENGTHS
from headspan.describe.training.settings import METHODS, RLOO, TrainingSettings
from headspan.errors import counted, percent
from headspan.plots.files import check_plot, write_plot
from headspan.store.reader import Store

if TYPE_CHECKING:
    from headspan.describe.training.frontier import Frontier
    from headspan.describe.training.trained import Trained

_DETAILS = (
    "The language model learns an adapter (LoRA). Its reward is the similarity of a description with the images of its "
    "class; the divergence from the untrained model costs --beta for each nat. A training that was interrupted "
    "continues with the same command."
)
_DEFAULTS = TrainingSettings()


def add_train(parser: Parser, text: str) -> None:
    """Describe `describe train`, and add its flags."""
    example = "headspan describe train run.zarr --language-model lm.gguf --out lm.trained"
    command = described(parser, text, _train, example, _DETAILS)
    command.set_defaults(kept="checkpoints")
    store_argument(command)
    command.add_argument("--out", required=True, metavar="FOLDER", help="the folder of the adapter")
    language_model_flag(command, required=True)
    classes_flags(command.add_argument_group("classes"))
    target = command.add_argument_group("reward")
    target_flags(target)
    weights_flag(target)
    how = command.add_argument_group("training")
    questions_flag(how, f"{len(QUESTIONS)}")
    how.add_argument("--method", choices=METHODS, default=RLOO, help=f"the method (default: {RLOO})")
    how.add_argument(
        "--beta",
        type=ZERO_OR_MORE,
        action="append",
        dest="betas",
        metavar="X",
        help=f"penalty for each nat; repeated, an adapter for each ({_DEFAULTS.beta:g})",
    )
    how.add_argument("--steps", type=FROM_1, default=_DEFAULTS.steps, metavar="N", help=f"steps ({_DEFAULTS.steps:,})")
    how.add_argument(
        "--batch-size",
        type=FROM_1,
        default=_DEFAULTS.batch,
        metavar="N",
        help=f"descriptions in a step ({_DEFAULTS.batch})",
    )
    how.add_argument(
        "--generations",
        type=Whole(2),
        default=_DEFAULTS.generations,
        metavar="N",
        help=f"descriptions of the same prompt in a step ({_DEFAULTS.generations})",
    )
    how.add_argument(
        "--mini-batch", type=FROM_1, metavar="N", help="descriptions in one pass; fewer need less memory (default: all)"
    )
    how.add_argument(
        "--tokens",
        type=FROM_1,
        default=_DEFAULTS.tokens,
        metavar="N",
        help=f"tokens of a description ({_DEFAULTS.tokens})",
    )
    how.add_argument(
        "--lr", type=ABOVE_ZERO, default=_DEFAULTS.lr, metavar="RATE", help=f"learning rate ({_DEFAULTS.lr:g})"
    )
    how.add_argument(
        "--seed",
        type=FROM_0,
        action="append",
        dest="seeds",
        metavar="N",
        help="seed of the adapter, order and sampling; repeated, an adapter for each (0)",
    )
    how.add_argument(
        "--samples", type=FROM_0, default=256, metavar="N", help="descriptions to measure a model by; 0 for none (256)"
    )
    how.add_argument("--device", default="auto", help="auto, cpu, cuda:0 (default: auto)")
    command.add_argument("--plot", metavar="FILE", help="draw reward and divergence into this .png, .svg or .pdf file")


def _train(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    betas, seeds = flags.betas or [_DEFAULTS.beta], flags.seeds or [_DEFAULTS.seed]
    settings = TrainingSettings(
        method=flags.method,
        beta=betas[0],
        steps=flags.steps,
        batch=flags.batch_size,
        generations=flags.generations,
        mini_batch=flags.mini_batch,
        tokens=flags.tokens,
        lr=flags.lr,
        seed=seeds[0],
    )
    if flags.plot is not None:
        check_plot(flags.plot)
    store = Store(flags.store)
    common = {
        "classes": classes_of(flags, store, progress),
        "target": target_of(flags, store),
        "questions": fewer(QUESTIONS, flags.questions),
        "settings": settings,
        "samples": flags.samples,
        "device": flags.device,
        "weights": flags.weights,
        "on_progress": progress,
    }
    # Imported here, since it takes torch a second to load, and wrong flags are refused before.
    from headspan.describe.training.frontier import train_frontier
    from headspan.describe.training.train import train

    found: Trained | Frontier
    if len(betas) > 1 or len(seeds) > 1:
        found = train_frontier(store, flags.out, flags.language_model, betas=betas, seeds=seeds, **common)
        progress.close()
        print_frontier(found)
    else:
        found = train(store, flags.out, flags.language_model, **common)
        progress.close()
        print_trained(found)
    if flags.plot is not None:
        write_plot(found.plot(), flags.plot)
        say(f"plot written to {flags.plot}")
    return 0


def print_trained(found: Trained) -> None:
    """Print what was trained, and the figures of the untrained and the trained model."""
    settings = found.settings
    say(
        f"{counted(settings.steps, 'step')} of {settings.method} with {found.language_model}, {len(found.classes):,} "
        f"classes, reward through {found.target}"
    )
    if found.figures:
        print_figures(found.figures)
    if worst := max(found.log["cut"]):
        say(f"the context of {found.model} cut up to {percent(worst)} of a step's descriptions")
    say(f"adapter written to {found.folder} (sha256 {found.adapter_sha256[:12]})")


def print_frontier(found: Frontier) -> None:
    """Print reward, divergence and diversity of the untrained model and of each penalty."""
    table: list[tuple[str, ...]] = [
        ("beta", "seeds", "reward", "±", "KL", "±", "distinct-1", "distinct-2", "distinct-3", "tokens", "cut")
    ]
    for row in found.rows:
        value = {name: 0.0 if each is None else each for name, each in row.items()}
        errors = "spread" if value["seeds"] > 1 else "error"
        table.append(
            (
                "untrained" if row["beta"] is None else f"{row['beta']:g}",
                f"{value['seeds']:.0f}",
                f"{value['reward']:.2f}",
                f"{value[f'reward_{errors}']:.2f}",
                f"{round(value['kl'], 2) + 0.0:.2f}",
                f"{value[f'kl_{errors}']:.2f}",
                *(f"{value[f'distinct_{length}']:.3f}" for length in LENGTHS),
                f"{value['length']:.1f}",
                percent(value["cut"], 0),
            )
        )
    print_table(table)
    several = len({run.settings.seed for run in found.runs}) > 1
    say(f"± is the {'standard deviation between seeds' if several else 'standard error of the sampled descriptions'}")
    say(f"{counted(len(found.runs), 'adapter')} written to {found.folder}")


def print_figures(figures: Mapping[str, float]) -> None:
    """Print the figures of the untrained and the trained model."""
    rows = [("model", "reward", "±", "KL", "distinct-2", "tokens", "ended", "cut")]
    for name, before in (("untrained", "untrained_"), ("trained", "")):
        value = {each: figures[before + each] for each in ("reward", "reward_error", "distinct_2", "length")}
        share = {each: percent(figures[before + each], 0) for each in ("ended", "cut")}
        rows.append(
            (
                name,
                f"{value['reward']:.2f}",
                f"{value['reward_error']:.2f}",
                # A sampled divergence near 0 may be below it.
                f"{0.0 if before else round(figures['kl'], 2) + 0.0:.2f}",
                f"{value['distinct_2']:.3f}",
                f"{value['length']:.1f}",
                share["ended"],
                share["cut"],
            )
        )
    print_table(rows)
